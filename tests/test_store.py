"""Run folders: what is written comes back, and what is broken is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reconv.costing.summary import summary
from reconv.errors import ConvError
from reconv.layers import Absorbed, block_of
from reconv.planning.edits import restructure
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.rewriting.apply import apply
from reconv.rewriting.store import load, read_config, save_run, weights_hash
from reconv.rewriting.weights import fit, read_weights, save_weights
from reconv.spec import parse
from reconv.surgery.fingerprint import structure_hash
from reconv.writing import replacing

FILES = ("plan.json", "config.json", "model.safetensors", "summary.json", "report.html")
INPUT = torch.arange(2 * 3 * 7 * 9, dtype=torch.float32).reshape(2, 3, 7, 9) / 100


def base() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2)
    )


def plan_for(model: nn.Module, layout: str = "contiguous", ref: str | None = None) -> Plan:
    edits = (
        Edit("0", "fold_batch_norm", parse("ic3oc6k3x3p1"), 0.0, 0.5, ("1",)),
        Edit("3", "bottleneck", parse("ic6oc2k1x1nb -> ic2oc2k3x3s2nb -> ic2oc4k1x1"), 0.125, 0.25),
    )
    refusals = (Refusal("3", "separable", "<b>too</b> small & slow"),)
    return Plan(edits, refusals, {"ref": ref, "hash": structure_hash(model)}, "latency=0.5", layout=layout)


def saved(folder: Path, layout: str = "contiguous", ref: str | None = None, **settings: object) -> nn.Module:
    plan = plan_for(base(), layout, ref)
    student = restructure(base(), plan).eval()
    save_run(folder, model=student, plan=plan, error=0.25, config={"settings": settings})
    return student


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("give", [base, base()], ids=["callable", "module"])
def test_a_run_folder_gives_the_same_network_back(tmp_path, layout, give):
    student = saved(tmp_path, layout)
    loaded = load(tmp_path, give)
    assert not loaded.training
    assert {p.name for p in tmp_path.iterdir()} == set(FILES)
    assert torch.equal(loaded(INPUT), student(INPUT))
    assert loaded.state_dict().keys() == student.state_dict().keys()
    four_dimensional = [p for p in loaded.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert {p.is_contiguous(memory_format=torch.channels_last) for p in four_dimensional} == {layout != "contiguous"}


def test_a_folded_and_fused_network_comes_back(tmp_path):
    model = base().eval()
    edits = (
        Edit("0", "fold_batch_norm", parse("ic3oc6k3x3p1"), absorbs=("1",)),
        Edit("0", "fuse_activation", parse("ic3oc6k3x3p1 -> relu"), absorbs=("2",)),
    )
    made = Plan(edits, (), {"hash": structure_hash(model)})
    student = apply(model, made, INPUT)
    assert [type(part) for part in student[1:3]] == [Absorbed, Absorbed]
    assert str(block_of(student[0])) == "ic3oc6k3x3p1 -> relu"
    torch.testing.assert_close(student(INPUT), model(INPUT))
    rows = [(row.name, str(row.spec)) for row in summary(student, INPUT).rows]
    assert rows == [("0.0", "ic3oc6k3x3p1"), ("3", "ic6oc4k3x3s2")]
    save_run(tmp_path, model=student, plan=made, config={})
    loaded = load(tmp_path, base)
    assert torch.equal(loaded(INPUT), student(INPUT))
    assert Plan.load(tmp_path / "plan.json") == made


def test_the_structure_may_come_from_timm_or_the_demo_without_trust(tmp_path):
    from reconv.demo.network import digits_vgg

    model, ref = digits_vgg(trained=False), "reconv.demo.network:digits_vgg"
    edit = Edit("features.3", "separable", parse("ic64oc64k5x5p2g64nb -> ic64oc64k1x1nb"))
    plan = Plan((edit,), (), {"ref": ref, "hash": structure_hash(model)})
    student = restructure(model, plan)
    save_run(tmp_path, model=student, plan=plan, config={})
    assert weights_hash(load(tmp_path)) == weights_hash(student)


def test_foreign_code_is_run_only_if_trusted(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "import pathlib\nfrom torch import nn\npathlib.Path(__file__).with_name('ran').touch()\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6),"
        " nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2))\n"
    )
    saved(tmp_path / "run", ref=f"{tmp_path}/net.py:make")
    with pytest.raises(ConvError, match="trust_code=True"):
        load(tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    load(tmp_path / "run", trust_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "ref",
    ["os:getcwd", "reconv.rewriting.store:load", "reconv.demo.network:load_file", "reconv.demo.network:torch.load",
     "reconv.networksevil:x", "timm:hf-hub:someone/something", "timm:../x", "net.py"],
)  # fmt: skip
def test_a_reference_to_what_is_not_ours_is_refused(tmp_path, ref):
    saved(tmp_path, ref=ref)
    with pytest.raises(ConvError):
        load(tmp_path)


def break_nothing_else(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def edit_json(name: str, change):
    def run(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return run


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop("3.1.weight")
    save_file(tensors, folder / "model.safetensors")


def change_dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v.half() if k == "3.1.weight" else v for k, v in tensors.items()}, folder / "model.safetensors")


def link_away(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


BROKEN = {
    "no plan": (lambda f: (f / "plan.json").unlink(), "must hold plan.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "must hold config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "must hold model.safetensors"),
    "plan is no JSON": (break_nothing_else("plan.json", "{"), "JSON"),
    "config is no JSON": (break_nothing_else("config.json", "{"), "config.json"),
    "config is a list": (break_nothing_else("config.json", "[]"), "JSON object"),
    "weights cut short": (truncate, "must be whole.*model.safetensors"),
    "weights empty": (break_nothing_else("model.safetensors", ""), "whole"),
    "other keys": (drop_a_tensor, r"missing=\[3.1.weight\], unexpected=\[extra\]"),
    "other dtype": (change_dtype, r"3.1.weight is 2×2×3×3 float16, not 2×2×3×3 float32"),
    "newer config": (edit_json("config.json", lambda d: d.update(format=2)), "format=2"),
    "newer plan": (edit_json("plan.json", lambda d: d.update(format=2)), "format=2"),
    "site that is not there": (edit_json("plan.json", lambda d: d["edits"][1].update(site="9")), "site=9"),
    "weights elsewhere": (link_away, "must lie in the run folder"),
}


@pytest.mark.parametrize("damage, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_run_folder_is_an_error_that_says_what(tmp_path, damage, message):
    saved(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(ConvError, match=message):
        load(tmp_path / "run", base)


def test_another_structure_is_refused(tmp_path):
    saved(tmp_path, ref="nets:make")
    with pytest.raises(ConvError, match=r"structure that the run began with.*'nets:make'"):
        load(tmp_path, nn.Conv2d(3, 6, 3))
    with pytest.raises(ConvError, match=r"torch.nn.Module or return one"):
        load(tmp_path, lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConvError, match=r"must hold config.json"):
        load(tmp_path / "nowhere", base)


class Tied(nn.Module):
    """Sharing, odd dtypes, odd layouts: what safetensors by itself refuses or forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        memory = torch.arange(12.0)
        self.register_buffer("whole", memory)
        self.register_buffer("window", memory[2:7])
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("number", torch.tensor(7, dtype=torch.int64))
        self.register_buffer("flag", torch.tensor([True, False, True]))
        self.register_buffer("f16", torch.tensor([1.5, -2.25], dtype=torch.float16))
        self.register_buffer("bf16", torch.tensor([1.5, -2.25], dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("empty_too", torch.zeros(0, 4))
        self.register_buffer("c64", torch.tensor([1 + 2j]))


def test_every_kind_of_tensor_comes_back_as_it_was(tmp_path):
    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert "a.weight" in stored
    assert "b.weight" not in stored
    tensors = read_weights(tmp_path / "w.safetensors")
    assert tensors["b.weight"] is tensors["a.weight"]
    fit(other, tensors, "w", same_dtype=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.dtype == other.state_dict()[name].dtype, name
    assert other.b.weight is other.a.weight
    assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_names_that_other_tools_leave_out_are_not_missing(tmp_path):
    model = Tied()
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "b.weight"}
    fit(Tied(), tensors, "w")
    with pytest.raises(ConvError, match=r"missing=\[a.weight, b.weight\]"):
        fit(Tied(), {k: v for k, v in tensors.items() if k != "a.weight"}, "w")


class Extra(nn.Module):
    def get_extra_state(self) -> object:
        return {"text": 1}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.parametrize(
    "model, message",
    [(Extra(), "'_extra_state', type=dict"), (nn.LazyConv2d(3, 3), "UninitializedParameter"),
     (nn.Conv2d(3, 3, 3, device="meta"), "meta")],
)  # fmt: skip
def test_what_safetensors_cannot_hold_is_said(tmp_path, model, message):
    with pytest.raises(ConvError, match=message):
        save_weights(model, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_config_and_summary_say_what_happened(tmp_path):
    model = base().eval()
    plan = plan_for(model, ref="nets:make")
    before, after = summary(model, INPUT), summary(restructure(model, plan).eval(), INPUT)
    save_run(tmp_path, model=restructure(model, plan), plan=plan, before=before, after=after, error=0.25,
             config={"settings": {"budget": "latency=0.5"}})  # fmt: skip
    config = read_config(tmp_path)
    assert config["model"] == {"ref": "nets:make", "hash": structure_hash(model)}
    assert config["settings"] == {"budget": "latency=0.5"}
    assert config["versions"]["torch"] == torch.__version__
    held = json.loads((tmp_path / "summary.json").read_text())
    assert held["error"] == 0.25
    assert held["before"] == before.to_dict()
    assert held["after"]["total"]["params"] < held["before"]["total"]["params"]
    assert Plan.load(tmp_path / "plan.json") == plan


def test_the_report_shows_the_run_and_escapes_what_comes_from_outside(tmp_path):
    model = base().eval()
    plan = plan_for(model, ref="<script>alert(1)</script>")
    before, after = summary(model, INPUT), summary(restructure(model, plan).eval(), INPUT)
    save_run(tmp_path, model=restructure(model, plan), plan=plan, before=before, after=after, error=0.25,
             config={"settings": {"data": "<img src=x onerror=y>"}})  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    for shown in ("ic6oc2k1x1nb -&gt; ic2oc2k3x3s2nb -&gt; ic2oc4k1x1", "fold_batch_norm", "latency=0.5", "0.125",
                  "&lt;b&gt;too&lt;/b&gt; small &amp; slow", "&lt;script&gt;alert(1)", "&lt;img src=x"):  # fmt: skip
        assert shown in page
    for never in ("<script", "<img", "http://", "https://", "<b>"):
        assert never not in page


@pytest.mark.parametrize(
    "one, other, same",
    [
        (nn.Linear(2, 3), nn.Linear(2, 3), True),
        (nn.Linear(2, 3), nn.Linear(3, 2), False),
        (nn.Linear(2, 3), nn.Linear(2, 3).half(), False),
        (nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3)), False),
    ],
)
def test_structure_hash(one, other, same):
    assert (structure_hash(one) == structure_hash(other)) is same
    assert weights_hash(one) != weights_hash(other)
    assert weights_hash(one) == weights_hash(one)
