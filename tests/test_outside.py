"""Networks from outside: libraries' architectures, .pt2 and .onnx files become networks that can be rewritten."""

import json
import re
import socket
import sys
import zipfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from fakes import FakeTarget
from nets import let_torchvision_import
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from reconv.costing.summary import summary
from reconv.errors import ConvError
from reconv.models import resolve
from reconv.planning.make import plan
from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.rewriting.export import export
from reconv.rewriting.store import load, save_run
from reconv.spec import parse
from reconv.surgery.fingerprint import structure_hash

IMAGE = torch.linspace(-1, 1, 2 * 3 * 9 * 7).reshape(2, 3, 9, 7)


@pytest.fixture(autouse=True)
def libraries():
    let_torchvision_import()


# libraries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref, kind, convs",
    [("torchvision:squeezenet1_1", "SqueezeNet", 26), ("torchvision:lraspp_mobilenet_v3_large", "LRASPP", None),
     ("torchvision:googlenet", "GoogLeNet", None), ("transformers:regnet", "RegNetForImageClassification", None),
     ("transformers:resnet", "ResNetBackbone", None), ("transformers:mobilenet_v2", "MobileNetV2For.*", None)],
)  # fmt: skip
def test_an_architecture_by_name_fetches_nothing(ref, kind, convs, monkeypatch):
    def fetch(*_):
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", fetch)
    model = resolve(ref)
    assert re.fullmatch(kind, type(model).__name__)
    assert not model.training
    if convs is not None:
        assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs


def tiny_transformer(folder: Path) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(
        "resnet", depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic", num_labels=3)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_folder_of_transformers_is_rewritten_exported_and_loaded(tmp_path):
    theirs, ref, x = tiny_transformer(tmp_path / "hf"), f"transformers:{tmp_path}/hf", torch.randn(2, 3, 32, 32)
    model = resolve(ref)
    assert torch.equal(model(x).logits, theirs(x).logits)
    row = next(row for row in summary(model, x).rows if str(row.spec).startswith("ic8oc16k3x3"))
    edit = Edit(row.name, "fold_batch_norm", parse(str(row.spec).removesuffix("nb")),
                absorbs=(row.name.replace("convolution", "normalization"),))  # fmt: skip
    plan = Plan((edit,), (), {"ref": ref, "hash": structure_hash(model)})
    student = apply(model, plan, x)
    torch.testing.assert_close(student(x).logits, theirs(x).logits)
    assert export(student, x, tmp_path / "net.onnx").dynamic_batch
    save_run(tmp_path / "run", model=student, plan=plan, config={})
    assert torch.equal(load(tmp_path / "run")(x).logits, student(x).logits)


@pytest.mark.parametrize(
    "change, message",
    [(lambda d: d.update(architectures=["os.system"]), "must name a class of transformers"),
     (lambda d: d.update(architectures=["AutoConfig"]), "must name a class of transformers"),
     (lambda d: d.update(model_type="resnet", hidden_sizes=[8, 24]), "as save_pretrained of transformers writes it")],
)  # fmt: skip
def test_a_broken_folder_of_transformers_is_said(tmp_path, change, message):
    tiny_transformer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvError, match=message):
        resolve(f"transformers:{tmp_path}")


def test_weights_of_transformers_come_from_safetensors_only(tmp_path):
    model = tiny_transformer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConvError, match=r"config\.json and model\.safetensors"):
        resolve(f"transformers:{tmp_path}")


# .pt2 --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Every layer that is raised, one called twice, a functional one, and odd outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, (3, 2), stride=2, groups=2, output_padding=1), nn.Conv2d(4, 4, 1, groups=2),
        )  # fmt: skip
        self.line = nn.Sequential(nn.Conv1d(4, 5, 3, padding=1), nn.BatchNorm1d(5, affine=False))
        self.shared = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.scale = nn.Parameter(torch.linspace(1, 2, 5))
        self.register_buffer("shift", torch.ones(5))
        self.fixed = torch.ones(1)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        y = self.features(x)
        y = self.shared(self.shared(y))
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")
        a, b = self.line(y.flatten(2)).mean(2).mul(self.scale).add(self.shift + self.fixed).chunk(2, 1)
        top, where = a.max(1)
        scores = self.head(torch.cat([a, b], 1).view(x.shape[0], -1))
        return {"scores": scores, "rest": [top, (where, y.double(), torch.einsum("bi,bi->b", a, a))]}


def saved(path: Path, model: nn.Module, inputs: tuple = (IMAGE,), dynamic: bool = True) -> Path:
    shapes = tuple({0: torch.export.Dim("n", min=1, max=64)} for _ in inputs) if dynamic else None
    with torch.no_grad():
        torch.export.save(torch.export.export(model.eval(), inputs, dynamic_shapes=shapes), path)
    return path


def trained(model: nn.Module) -> nn.Module:
    """With statistics of a batch norm that are not those of the beginning."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_a_pt2_file_becomes_a_network_of_modules(tmp_path):
    net = trained(Net())
    read = resolve(str(saved(tmp_path / "net.pt2", net)))
    x = torch.cat([IMAGE, IMAGE.flip(2)])
    for got, expected in zip(pytree.tree_leaves(read(x)), pytree.tree_leaves(net(x)), strict=True):
        torch.testing.assert_close(got, expected)
    assert pytree.tree_structure(read(x)) == pytree.tree_structure(net(x))
    assert {n: t.shape for n, t in net.state_dict().items()}.items() <= {
        n: t.shape for n, t in read.state_dict().items()}.items()  # fmt: skip
    kinds = {name: type(m) for name, m in net.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.ReLU)}
    assert {name: type(read.get_submodule(name)) for name in kinds} == kinds
    rows = [[(row.name, str(row.spec), row.macs) for row in summary(m, IMAGE).rows] for m in (net, read)]
    assert [row[0] for row in rows[1]] == [row[0] for row in rows[0]]
    assert [row[2] for row in rows[1]] == [row[2] for row in rows[0]]


def test_a_network_of_a_pt2_file_is_rewritten_loaded_and_exported(tmp_path):
    net = trained(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    ref = str(saved(tmp_path / "net.pt2", net))
    model = resolve(ref)
    edits = (Edit("0", "fold_batch_norm", parse("ic3oc6k3x3"), absorbs=("1",)),
             Edit("0", "fuse_activation", parse("ic3oc6k3x3 -> relu"), absorbs=("2",)))  # fmt: skip
    plan = Plan(edits, (), {"ref": ref, "hash": structure_hash(model)})
    student = apply(model, plan, IMAGE)
    torch.testing.assert_close(student(IMAGE), net(IMAGE))
    assert export(student, IMAGE, tmp_path / "net.onnx").ops == {"Conv": 2, "Relu": 1}
    save_run(tmp_path / "run", model=student, plan=plan, config={})
    assert torch.equal(load(tmp_path / "run")(IMAGE), student(IMAGE))


@pytest.mark.parametrize(
    "dynamic, x, message",
    [(False, IMAGE[:1], r"sizes=\(1, 3, 9, 7\), exported=\(2, 3, 9, 7\)"),
     (True, IMAGE[..., 1:], r"exported=\(any, 3, 9, 7\).*dynamic_shapes"), (True, IMAGE.repeat(40, 1, 1, 1), "sizes"),
     (True, IMAGE[0], "sizes")],
)  # fmt: skip
def test_sizes_that_the_file_was_not_exported_for_are_refused(tmp_path, dynamic, x, message):
    read = resolve(str(saved(tmp_path / "net.pt2", nn.Conv2d(3, 2, 3), dynamic=dynamic)))
    read(IMAGE)
    with pytest.raises(ConvError, match=message):
        read(x)


def changed(path: Path, change) -> None:
    """Writes the file anew, with its graph changed."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    (name,) = (name for name in entries if name.endswith("models/model.json"))
    entries[name] = json.dumps(change(json.loads(entries[name]))).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, data)


def target(text: str, **argument: object):
    """Changes what the first node calls, and its first argument."""

    def change(program):
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = text
        if argument:
            node["inputs"] = [{"name": "self", "arg": argument, "kind": 1}]
        return program

    return change


def renamed(old: str, new: str):
    return lambda program: json.loads(json.dumps(program).replace(old, new))


EVIL = {
    "a function of torch": (target("torch.hub.load", as_string="x"), "operator=torch.hub.load"),
    "a function of Python": (target("torch.serialization.os.system", as_string="touch ran"), "ATen"),
    "an operator that writes a file": (target("torch.ops.aten.save.default", as_string="ran"), "operator=torch.ops"),
    "an operator that reads a file": (target("torch.ops.aten.from_file.default", as_string="ran"), "argument='ran'"),
    "methodcaller": (target("_operator.methodcaller", as_string="x"), "operator=_operator.methodcaller"),
    "another library": (target("torch.ops.torchvision.nms.default"), "operator=torch.ops.torchvision.nms.default"),
    "a name that is code": (renamed('"0.weight"', '"0\\")(open(\\"ran\\",\\"w\\")).weight"'), "pt2: "),
    "a changed schema": (lambda p: p | {"schema_version": {"major": 9, "minor": 1}}, "must be 8.x; got schema=9"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", EVIL.values(), ids=EVIL)
def test_a_pt2_file_is_data_and_never_code(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "net.pt2", nn.Sequential(nn.Conv2d(3, 2, 3)))
    changed(path, change)
    with pytest.raises(ConvError, match=message):
        resolve(str(path))
    assert not (tmp_path / "ran").exists()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


class Listing(nn.Module):
    def forward(self, x):
        return deque([x, x + 1])


def training(path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.BatchNorm2d(3)).train(), (IMAGE,))
    torch.export.save(program, path)


UNSUITABLE = {
    "a counter": (lambda p: saved(p, Counting(), dynamic=False), r"its own tensors; got operator=aten\.add_\.Tensor"),
    "in training": (training, r"its own tensors; got operator=.*evaluation mode"),
    "a class": (lambda p: saved(p, Listing()), "outputs must be tensors, alone or in"),
    "a number": (
        lambda p: torch.export.save(torch.export.export(Adding(), (IMAGE, 2)), p),
        "every input must be a tensor",
    ),
    "cut": (lambda p: cut(saved(p, nn.ReLU())), "whole, and written by torch"),
    "empty": (lambda p: p.write_bytes(b""), "whole, and written by torch"),
    "another zip": (lambda p: torch.save({"a": IMAGE}, p), "whole, and written by torch"),
}


class Adding(nn.Module):
    def forward(self, x, number):
        return x + number


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, message", UNSUITABLE.values(), ids=UNSUITABLE)
def test_damaged_and_unsuitable_pt2_files_are_said(tmp_path, make, message):
    make(tmp_path / "net.pt2")
    with pytest.raises(ConvError, match=message):
        resolve(str(tmp_path / "net.pt2"))


# .onnx -------------------------------------------------------------------------------------------


def test_an_onnx_file_becomes_a_network_of_modules(tmp_path):
    net = trained(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)))
    export(net, IMAGE, tmp_path / "net.onnx")
    read = resolve(str(tmp_path / "net.onnx"))
    torch.testing.assert_close(read(IMAGE[:1]), net(IMAGE[:1]))
    rows = [[(str(row.spec), row.macs) for row in summary(m, IMAGE).rows] for m in (net, read)]
    assert rows[0] == rows[1]


def test_a_network_read_from_onnx_is_rewritten_and_goes_out_again(tmp_path):
    """Channels go where it is seen who reads them, kernels get smaller where their border is zero."""
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                                nn.Conv2d(8, 6, 5, padding=2), nn.Flatten(), nn.Linear(6 * 9 * 7, 5)))  # fmt: skip
    net[3].weight.data *= F.pad(torch.ones(3, 3), (1, 1, 1, 1))
    export(net, IMAGE, tmp_path / "net.onnx")
    read, x = resolve(str(tmp_path / "net.onnx")), IMAGE[:1]
    for budget, rules, apart in ((None, "trim", 1e-5), ("macs=0.8", "prune_channels", float("inf"))):
        made = plan(read, x, budget, None, FakeTarget(), rules=rules)
        assert rules in {edit.rule for edit in made.edits}
        student = apply(read, made, x)
        report = export(student, x, tmp_path / f"{rules}.onnx")
        assert report.max_abs_error <= report.tolerance
        assert (student(x) - net(x)).abs().max() <= apart


def onnx_file(path: Path, operator: str, domain: str = "", shape: Sequence[int | str] = (1, 3, 9, 7)) -> Path:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_what_the_converter_lacks_is_named(tmp_path):
    with pytest.raises(ConvError, match=r"onnx2pytorch must know every operator.*Crinkle.*file\.py:callable"):
        resolve(str(onnx_file(tmp_path / "net.onnx", "Crinkle", "mine")))


def test_a_converter_that_does_not_start_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "onnx2pytorch.py").write_text("raise RuntimeError('halted')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx2pytorch", raising=False)
    with pytest.raises(ConvError, match=r"the package onnx2pytorch must import.*halted") as error:
        resolve(str(onnx_file(tmp_path / "net.onnx", "Relu")))
    assert isinstance(error.value, ImportError)


def test_a_wrong_conversion_is_an_error(tmp_path, monkeypatch):
    import onnx2pytorch

    path = onnx_file(tmp_path / "net.onnx", "Relu")
    monkeypatch.setattr(onnx2pytorch, "ConvertModel", lambda *a, **k: nn.Sigmoid())
    with pytest.raises(ConvError, match="must compute what ONNX Runtime computes"):
        resolve(str(path))


def test_what_could_not_be_compared_is_told(tmp_path):
    path = onnx_file(tmp_path / "net.onnx", "Relu", shape=(1, 3, "height", "width"))
    with pytest.warns(UserWarning, match=r"not compared with ONNX Runtime.*x: tensor\(float\).*'height', 'width'"):
        assert resolve(str(path))(IMAGE).min() == 0


@pytest.mark.parametrize("data", [b"", b"hello", None])
def test_damaged_onnx_files_are_said(tmp_path, data):
    path = onnx_file(tmp_path / "net.onnx", "Relu")
    path.write_bytes(path.read_bytes()[:-9] if data is None else data)
    with pytest.raises(ConvError, match="must be a whole ONNX model"):
        resolve(str(path))
