"""Exported files: plain operators, the same outputs in a process without reconv, or an error and no file."""

import importlib.util
import re

import onnx
import onnxruntime
import openvino
import pytest
import torch
from nets import let_torchvision_import
from torch import nn

from reconv.errors import ConvError
from reconv.layers import build
from reconv.rewriting import export as module
from reconv.rewriting.agreement import agreement
from reconv.rewriting.export import export
from reconv.spec import parse
from reconv.targets.onnxruntime import OnnxRuntime
from reconv.targets.openvino import OpenVino

IMAGE = torch.linspace(-1, 1, 3 * 7 * 9).reshape(1, 3, 7, 9)
BLOCK = "ic3oc8k3x3p1g1 -> shuffle(4) -> (ic8oc3k1x3p0x1 | ic8oc5k3x1p1x0) -> se(2) -> ic8oc4k1x1"


def tower(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def rewritten() -> nn.Module:
    return tower(build(parse(BLOCK)), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


class Tree(nn.Module):
    """Several inputs, one unused; outputs in a dict with a tuple, a discrete one among them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, vector, image, unused):
        y = self.conv(image)
        return {"map": y, "rest": (y.mean((1, 2, 3)) + vector.sum(1), y.argmax(1))}


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        return self.conv(image).reshape(1, 4, 35)


class PerSample(nn.Module):
    """Kernels of each sample's own: as many groups as there are samples (CondConv: Yang et al. 2019, 1904.04971)."""

    def __init__(self) -> None:
        super().__init__()
        let_torchvision_import()
        from timm.layers import CondConv2d

        self.mix, self.conv = nn.Linear(3, 2), CondConv2d(3, 4, 3, num_experts=2)

    def forward(self, image):
        return self.conv(image, self.mix(image.mean((2, 3))))


def moving(block: str) -> nn.Module:
    """Deformable layers whose points do move, and leave the map here and there."""
    model = nn.Sequential(build(parse(block)), nn.ReLU())
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "offset_conv" in name:
            nn.init.normal_(parameter, 0, 0.4)
    return model


CASES = {
    "rewritten": (rewritten(), IMAGE, True),
    "channels last": (rewritten().to(memory_format=torch.channels_last), IMAGE, True),
    "inputs and outputs": (Tree(), (torch.ones(1, 2), IMAGE, torch.ones(1, 5)), True),
    "fixed batch": (FixedBatch(), IMAGE, False),
    "fused activations": (tower(build(parse("ic3oc8k3x3p1 -> relu -> ic8oc4k1x1g2 -> relu"))), IMAGE, True),
    "pixel shuffle": (tower(build(parse("ic3oc16k3x3p1 -> pixel_shuffle(2x2, crop1:0x0)"))), IMAGE, True),
    "pixel shuffle, factors": (tower(build(parse("ic3oc12k1x1 -> pixel_shuffle(1x3) -> relu"))), IMAGE, True),
    "deformable": (moving("deform(ic3oc4k3x2s2x1p0:2x1d1x2, og3)"), IMAGE, True),
    "1D": (nn.Sequential(build(parse("ic2oc6k5p2d1 -> ic6oc3k1"))), torch.ones(3, 2, 11), True),
}


LINE = torch.linspace(-1, 1, 2 * 4 * 7).reshape(2, 4, 7)
VOLUME = torch.linspace(-1, 1, 4 * 5 * 3 * 4).reshape(1, 4, 5, 3, 4)
WIDE = torch.cat([IMAGE, IMAGE.flip(1)], 1)[:, :4]
GATHER = {"GatherElements"}
NODES = {  # the nodes of whole kinds, and what must not be there
    "deformable": ("deform(ic4oc6k3x3p1, og1, mask)", WIDE, {}, {"DeformConv": 1, "Conv": 1}, GATHER),
    "groups": ("deform(ic4oc6k2x3p2:1x0g2nb, og2)", WIDE, {"opset": 19}, {"DeformConv": 1, "Conv": 1}, GATHER),
    "padded first": ("deform(ic4oc2k3x3p1mreflect, og1, mask)", WIDE, {}, {"Pad": 1, "DeformConv": 1}, GATHER),
    "half": ("deform(ic4oc6k3x3p1, og1, mask)", WIDE.half(), {}, {"DeformConv": 1}, GATHER),
    "before DeformConv": (
        "deform(ic4oc6k3x3p1, og2, mask)",
        WIDE,
        {"opset": 18},
        {"GatherElements": 4},
        {"DeformConv"},
    ),
    "1D": ("deform(ic4oc6k3p1, og2, mask)", LINE, {}, {"GatherElements": 2}, {"DeformConv"}),
    "3D": ("deform(ic4oc6k3x2x1p1x0x0g2, og1)", VOLUME, {}, {"GatherElements": 8}, {"DeformConv"}),
    "transposed": ("ic4oc6k3x2s2x3p1x0g2top1x2", WIDE, {}, {"ConvTranspose": 1, "Relu": 1}, {"Conv", "Slice", "Pad"}),
    "transposed 1D": ("ic4oc3k3s2d2t", LINE, {}, {"ConvTranspose": 1, "Relu": 1}, {"Conv", "Slice", "Pad"}),
    "transposed 3D": ("ic4oc6k3x3x2s2tnb", VOLUME, {}, {"ConvTranspose": 1, "Relu": 1}, {"Conv", "Slice", "Pad"}),
    "grouped 3D": ("ic4oc6k3x3x2g2", VOLUME, {}, {"Conv": 1, "Relu": 1}, {"Slice", "Pad"}),
}


@pytest.mark.parametrize("block, inputs, settings, held, never", NODES.values(), ids=NODES)
def test_onnx_has_plain_nodes(tmp_path, block, inputs, settings, held, never):
    report = export(moving(block).to(inputs.dtype), inputs, tmp_path / "net.onnx", **settings)
    assert {op: report.ops.get(op, 0) for op in held} == held
    assert not never & report.ops.keys()
    assert report.opset == onnx.load(report.path).opset_import[0].version == settings.get("opset", 20)
    assert report.dynamic_batch


@pytest.mark.parametrize("suffix, dynamic", [(".pt2", True), (".onnx", False)])
def test_where_a_format_needs_the_batch_size_it_is_fixed(tmp_path, suffix, dynamic):
    report = export(PerSample(), IMAGE, tmp_path / f"net{suffix}")
    assert report.max_abs_error <= report.tolerance
    assert report.dynamic_batch is dynamic
    assert bool(re.match(r"the batch size is fixed at \d: \w+Error: ", report.note)) is not dynamic


def test_openvino_reads_a_deformable_convolution_of_an_earlier_opset(tmp_path):
    model = moving("deform(ic3oc4k3x3p1, og1, mask)").eval()
    path = export(model, IMAGE, tmp_path / "net.onnx", opset=18).path
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(torch.from_numpy(compiled([IMAGE.numpy()])[0]), model(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine, node", [(OnnxRuntime, "DeformConv"), (OpenVino, "GatherElements")])
def test_engines_are_timed_on_what_they_know(engine, node, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "make", staticmethod(lambda model, *rest: seen.append(model) or list))
    engine(1).runner((moving("deform(ic3oc4k3x3p1, og1)").eval(), (IMAGE,)), 1)
    assert node in {each.op_type for each in onnx.load_from_string(seen[0]).graph.node}


def test_an_eager_layer_in_between_is_not_traced_as_an_operator(tmp_path):
    model = moving("deform(ic3oc4k3x3p1, og1)").eval()
    before = model(IMAGE)
    export(model, IMAGE, tmp_path / "net.onnx")
    assert torch.equal(model(IMAGE), before)
    program = torch.export.export(model, (IMAGE,))
    assert not any("onnx" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("model, inputs, dynamic", CASES.values(), ids=CASES)
def test_the_file_computes_what_the_network_computes(tmp_path, capfd, model, inputs, dynamic, suffix):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = export(model, inputs, tmp_path / "deep" / f"net{suffix}")
    assert report.max_abs_error <= report.tolerance
    assert report.dynamic_batch is dynamic
    assert ("batch size is fixed at 1" in report.note) is not dynamic
    assert report.ops
    assert not any("reconv" in op for op in report.ops)
    assert [p.name for p in report.path.parent.iterdir()] == [f"net{suffix}"]
    held = report.path.read_bytes()
    assert __file__.encode() not in held
    assert b"site-packages" not in held
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_dynamic_file_takes_other_batches_and_stays_exact(tmp_path):
    model = rewritten().eval()
    path = export(model, IMAGE, tmp_path / "net.onnx").path
    images = torch.cat([IMAGE, -IMAGE, 2 * IMAGE])
    session = onnxruntime.InferenceSession(path)
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    torch.testing.assert_close(got, model(images), rtol=1e-4, atol=1e-6)


class Branching(nn.Module):
    """Python that depends on values cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        y = self.conv(image)
        return y if y.sum().item() > 0 else -y


class Constant(nn.Module):
    def forward(self, image):
        return 3


class Values(nn.Module):
    """What ONNX has no operators for."""

    def forward(self, image):
        return torch.linalg.svdvals(image)


FAILURES = {
    "suffix": (rewritten(), "net.tflite", "must end in .onnx or .pt2"),
    "no suffix": (rewritten(), "net", "must end in"),
    "not traceable": (Branching(), "net.pt2", "torch must be able to export"),
    "not traceable, onnx": (Branching(), "net.onnx", "torch must be able to export"),
    "no such operator": (
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Values()), Values()),
        "net.onnx",
        "operator=aten._linalg_svd.default, sites=1.1, 2, error=.DispatchError: No ONNX function",
    ),
    "no such operator, at the top": (Values(), "net.onnx", "sites=Values, error"),
    "no tensor": (Constant(), "net.pt2", "returns no tensor"),
    "scripted": (torch.jit.script(nn.Conv2d(3, 4, 3)), "net.pt2", "export"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model, name, message", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_error_and_leaves_no_file(tmp_path, model, name, message):
    with pytest.raises(ConvError, match=message):
        export(model, IMAGE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_does_not_replace_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "net.pt2").write_text("old")
    write = module.Pt2.write

    def wrong(program, *rest):
        with torch.no_grad():
            next(iter(program.state_dict.values())).add_(1)
        return write(program, *rest)

    monkeypatch.setattr(module.Pt2, "write", staticmethod(wrong))
    with pytest.raises(ConvError, match=r"outputs are .* away from the network's"):
        export(nn.Conv2d(3, 4, 3), IMAGE, tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize(
    "name, opset, message",
    [("net.pt2", 20, r"only .onnx has an opset; got opset=20\. Leave opset out"),
     ("net.onnx", 7, "torch must be able to write the network in this opset; got opset=7, written=18"),
     ("net.onnx", 99, "export: ")],
)  # fmt: skip
def test_an_opset_that_cannot_be_written_is_said(tmp_path, name, opset, message):
    with pytest.raises(ConvError, match=message):
        export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), IMAGE, tmp_path / name, opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_of_our_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Pt2, "write", staticmethod(lambda *given: {"reconv.conv.default": 1}))
    with pytest.raises(ConvError, match=r"operators of reconv's own: reconv\.conv\.default"):
        export(nn.Conv2d(3, 4, 3), IMAGE, tmp_path / "net.pt2")


def test_the_checking_process_cannot_import_reconv(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Pt2, "run", "import reconv\n")
    with pytest.raises(ConvError, match="asks for reconv"):
        export(nn.Conv2d(3, 4, 3), IMAGE, tmp_path / "net.pt2")


def test_onnx_missing_is_an_import_error_that_names_the_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    with pytest.raises(ImportError, match=r"missing=onnx. pip install 'reconv\[onnx\]'"):
        export(nn.Conv2d(3, 4, 3), IMAGE, tmp_path / "net.onnx")


A = torch.tensor([1.0, -2.0])
COMPARISONS = [
    ([A], [A.clone()], None),
    ([A], [A + 1e-4], None),
    ([A], [A + 1e-2], "away from"),
    ([A], [A[:1]], r"its outputs are float32 \(1,\), not float32 \(2,\)"),
    ([A], [A.double()], "float64"),
    ([A], [A, A], "its outputs are"),
    ([A / 0], [A / 0], None),
    ([A * float("nan")], [A], "inf away"),
    ([torch.arange(2000)], [torch.arange(2000).clamp(max=1998)], None),
    ([torch.arange(20)], [torch.arange(20).clamp(max=18)], "0.05 away"),
    ([torch.zeros(0, 3)], [torch.zeros(0, 3)], None),
    ([A.to(torch.bfloat16)], [A.to(torch.bfloat16) * 1.01], None),
]


@pytest.mark.parametrize("expected, got, message", COMPARISONS)
def test_what_counts_as_rounding(expected, got, message):
    if message is None:
        error, tolerance = agreement(expected, got)
        assert 0 <= error <= tolerance
    else:
        with pytest.raises(ValueError, match=message):
            agreement(expected, got)
