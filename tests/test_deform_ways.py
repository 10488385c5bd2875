"""Every way of torch through deformable convolutions: derivatives, torch.func, compiling, exporting, autocast."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from cases import whole_numbers
from deform_cases import LAYERS, compute, operands, small_offsets, some
from torch import Tensor, nn

import reconv
from reconv import functional
from reconv.layers import DeformConv2d, build
from reconv.spec import Deform, parse


# -- derivatives and transforms -------------------------------------------------------------------
def smooth(block: Deform, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Offsets away from whole numbers, where the interpolation has a kink."""
    tensors = operands(block, shape)
    generator = torch.Generator().manual_seed(0)
    part = torch.rand(tensors["offset"].shape, generator=generator, dtype=torch.float64)
    tensors["offset"] = tensors["offset"].floor() + 0.2 + 0.6 * part
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@some("1d", "2d", "3d", "mask 1d", "mask", "mask 3d", "groups across offset groups", "stride above kernel")
def test_gradients(block, shape):
    tensors = smooth(block, (1, *shape[1:]))

    def call(*values: Tensor) -> Tensor:
        return compute(block.conv, dict(zip(tensors, values, strict=True)))

    values = tuple(tensors.values())
    assert torch.autograd.gradcheck(call, values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


def test_the_gradient_at_a_kink_is_that_of_the_right_side():
    """As torchvision's: at a whole position, what lies behind it minus what lies there; 0 outside of the map."""
    x = torch.tensor([[[1.0, 4, 9]]])
    for at, wanted in [(-2, 0), (-1, 1), (0, 3), (1, 5), (2, -9), (3, 0)]:
        offset = torch.full((1, 1, 1), float(at)).requires_grad_()
        functional.deform_conv1d(x, offset, torch.ones(1, 1, 1), stride=3).sum().backward()
        assert offset.grad.item() == wanted


TRANSFORMED = ["1d", "mask", "mask 3d"]


@some(*TRANSFORMED)
def test_vmap_is_a_loop(block, shape):
    all_of_them = [operands(block, shape, seed) for seed in (0, 10, 20)]
    stacked = {name: torch.stack([each[name] for each in all_of_them]) for name in all_of_them[0]}
    mapped = torch.func.vmap(lambda tensors: compute(block.conv, tensors))(stacked)
    assert torch.equal(mapped, torch.stack([compute(block.conv, each) for each in all_of_them]))


@some(*TRANSFORMED)
@pytest.mark.parametrize("name", ["input", "offset", "weight"])
def test_jacobians_forwards_and_backwards_agree(name, block, shape):
    tensors = {key: tensor.detach() for key, tensor in smooth(block, (1, *shape[1:])).items()}

    def call(value: Tensor) -> Tensor:
        return compute(block.conv, tensors | {name: value}).sum(1)

    backwards, forwards = (jac(call)(tensors[name]) for jac in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(backwards, forwards, rtol=1e-12, atol=1e-12)
    assert backwards.abs().max() > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@some(*TRANSFORMED)
def test_compiles_whole(backend, block, shape):
    torch.compiler.reset()
    compiled = torch.compile(functools.partial(compute, block.conv), fullgraph=True, backend=backend)
    tensors = operands(block, shape)
    assert torch.equal(compiled(tensors), compute(block.conv, tensors))


@some("1d")
def test_compiles_for_any_size(block, shape):
    torch.compiler.reset()
    compiled = torch.compile(functools.partial(compute, block.conv), fullgraph=True, backend="eager", dynamic=True)
    for batch, longer in [(7, 2), (8, 8)]:  # none is the size of another axis
        tensors = operands(block, (batch, shape[1], *(n + longer for n in shape[2:])))
        assert torch.equal(compiled(tensors), compute(block.conv, tensors))


@some(*TRANSFORMED)
def test_exports_for_any_batch(block, shape):
    class Module(torch.nn.Module):
        def forward(self, tensors: dict[str, Tensor]) -> Tensor:
            return compute(block.conv, tensors)

    tensors, many = operands(block, (2, *shape[1:])), operands(block, (5, *shape[1:]))
    batch = torch.export.Dim("batch")
    varied = {name: {0: batch} if name in ("input", "offset", "mask") else {} for name in tensors}
    program = torch.export.export(Module(), (tensors,), dynamic_shapes=(varied,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {getattr(target, "namespace", "python") for target in called} <= {"aten", "python"}
    assert torch.equal(program.module()(many), compute(block.conv, many))


@some(*TRANSFORMED)
def test_autocast_computes_in_float32(block, shape):
    """As torchvision: offsets of half precision would be wrong by whole samples. The output has the input's dtype."""
    tensors = {name: tensor.float() for name, tensor in operands(block, shape).items()}
    wanted = compute(block.conv, tensors)
    low = tensors | {"offset": tensors["offset"].bfloat16(), "weight": tensors["weight"].bfloat16()}
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        output, rounded = compute(block.conv, low), compute(block.conv, low | {"input": low["input"].bfloat16()})
        compiled = torch.compile(lambda tensors: compute(block.conv, tensors), fullgraph=True, backend="eager")(low)
    assert output.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(output, wanted)
    assert torch.equal(compiled, wanted)
    assert torch.equal(rounded, wanted.bfloat16())


# -- layers (the rest is in test_layers.py) -------------------------------------------------------
@pytest.mark.parametrize("name", ["deform modulated", "deform reflect"])
def test_layer_compiles_for_any_size(name):
    torch.compiler.reset()
    layer = small_offsets(build(LAYERS[name].block, dtype=torch.float64))
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for batch, longer in [(7, 11), (8, 17)]:
        shape = (batch, LAYERS[name].input_shape[1], longer, longer + 1)
        torch.testing.assert_close(compiled(whole_numbers(shape)), layer(whole_numbers(shape)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layer_trains_under_autocast(dims):
    layer = build(parse(f"deform(ic2oc3k{'x'.join('3' * dims)}, og2, mask)"))
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(2, 2, *(4, 5, 3)[:dims]))
    assert output.dtype == torch.float32
    output.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_layer_exports_to_onnx(tmp_path):
    torch.manual_seed(0)
    layer, x = DeformConv2d(4, 6, 3, padding=1, groups=2, offset_groups=2), torch.randn(2, 4, 6, 5)
    nn.init.normal_(layer.offset_conv.weight)
    reconv.export(layer, x, tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    [output] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_layer_is_traced_for_any_size(dims):
    layer = small_offsets(build(parse(f"deform(ic2oc4k{'x'.join('3' * dims)}p1g2, og2, mask)")))
    traced = torch.jit.trace(layer, torch.zeros(1, 2, *(4, 5, 3)[:dims]))
    x = whole_numbers((3, 2, *(7, 4, 6)[:dims])).float()
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-5)
