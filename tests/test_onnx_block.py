"""Blocks as ONNX, node by node: ONNX Runtime gives what the layer gives, by the nodes of torch's own exporter."""

from __future__ import annotations

import onnx
import pytest
import torch
from cases import BUILT, fill
from torch import nn

from reconv.layers import build
from reconv.spec import parse
from reconv.targets import exported
from reconv.targets.exported import onnx_bytes
from reconv.targets.onnx_block import onnx_of
from reconv.targets.onnxruntime import runner

UNTOLD = ("deform", "pixel_shuffle", "d3top2x1")  # left to torch's exporter; the last has more padding than stride


@pytest.mark.parametrize("block, shape", BUILT.values(), ids=BUILT.keys())
def test_the_engine_gives_what_the_layer_gives(block, shape):
    layer = fill(build(block, channels=shape[1], spatial_dims=len(shape) - 2)).eval()
    x = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(7)).float()
    model = onnx_of(layer, (x,))
    assert (model is None) == (str(block) == "relu" or any(word in str(block) for word in UNTOLD))
    if model is not None:
        onnx.checker.check_model(model)
        with torch.no_grad():
            expected = layer(x)
        (found,) = runner(model, [x.numpy()], 1)()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "text, shape",
    [("ic4oc4k3x3p1g4nb -> ic4oc6k1x1 -> relu6", (1, 4, 7, 6)), ("ic4oc4k3p2:0mreflect -> se(2)", (1, 4, 9)),
     ("(ic4oc2k1x1 | shuffle(2) -> ic4oc4k2x2s2t -> ic4oc2k2x2s2)", (1, 4, 6, 6)), ("permute(4) -> silu", (2, 4, 5))],
)  # fmt: skip
def test_the_nodes_are_those_of_torch(text, shape, monkeypatch):
    layer, x = fill(build(parse(text), channels=4)).eval(), torch.ones(shape)
    ours = [node.op_type for node in onnx.load_from_string(onnx_bytes(layer, (x,))).graph.node]
    monkeypatch.setattr(exported, "onnx_of", lambda *job: None)
    theirs = [node.op_type for node in onnx.load_from_string(onnx_bytes(layer, (x,))).graph.node]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize(
    "layer, inputs",
    [(nn.Linear(3, 4), (torch.ones(1, 3),)), (nn.Sequential(nn.Conv2d(3, 4, 3)), (torch.ones(1, 3, 5, 5),)),
     (nn.Conv2d(3, 4, 3), (torch.ones(3, 5, 5),)), (nn.Conv2d(3, 4, 3), (torch.ones(1, 4, 5, 5),)),
     (nn.Conv2d(3, 4, 3).bfloat16(), (torch.ones(1, 3, 5, 5).bfloat16(),)),
     (nn.Conv2d(3, 4, 3), (torch.ones(1, 3, 5, 5), 2))],
    ids=["no convolution", "a sequence", "no batch", "other channels", "bfloat16", "two inputs"],
)  # fmt: skip
def test_all_else_is_left_to_torch(layer, inputs):
    assert onnx_of(layer, inputs) is None


def test_a_network_is_traced_again_only_when_it_has_changed(monkeypatch):
    traced: list[nn.Module] = []
    monkeypatch.setattr(exported, "_traced", lambda model, *rest: traced.append(model) or b"")
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2)), torch.ones(1, 3, 7, 7)
    for inputs in ((x,), (x + 1,)):
        onnx_bytes(net, inputs)
    assert len(traced) == 1
    onnx_bytes(net, (torch.ones(2, 3, 7, 7),))
    with torch.no_grad():
        net[0].weight.mul_(2)
    onnx_bytes(net, (x,))
    net[1] = nn.Identity()
    onnx_bytes(net, (x,))
    assert len(traced) == 4
