"""The report says what a run did, whatever its names and whatever is missing, and looks at networks as it says."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from commanded import reconv
from nets import let_torchvision_import
from PIL import Image
from receptive_nets import CASES
from torch import Tensor, nn

from reconv.costing.middle import effective_fields, theoretical_fields, within
from reconv.costing.render import as_dict, from_dict
from reconv.costing.summary import summary
from reconv.data import Feed
from reconv.errors import ConvError
from reconv.planning.considered import Considered
from reconv.planning.plan import Edit, Plan, Point, Refusal
from reconv.reporting.page import page
from reconv.rewriting.apply import apply
from reconv.rewriting.job import Result
from reconv.rewriting.looking import look, scores_alone
from reconv.rewriting.store import read_run, save_run, weights_hash
from reconv.spec import parse
from reconv.surgery.clone import clone
from reconv.surgery.fingerprint import structure_hash

FOLLOWED = ("plain", "uneven", "strides", "skipping", "dilated", "grouped", "same", "residual", "shortcut", "inception")
INPUT = torch.rand((1, 3, 9, 7), generator=torch.Generator().manual_seed(1))
DATA = torch.rand((12, 3, 9, 7), generator=torch.Generator().manual_seed(2))
SMALL = parse("ic8oc6k1x5p0x2nb -> ic6oc12k5x1p2x0")
NASTY = "<script>alert('1')</script>\"'><img src=x onerror=y>"
VOID = {"meta", "img", "br", "rect", "polyline", "polygon", "circle", "line", "path", "ellipse"}


def net() -> nn.Module:
    """As in commanded.py: two convolutions, a batch norm behind the first."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(12, 5)).eval()  # fmt: skip


FOLD = Edit("0", "fold_batch_norm", parse("ic3oc8k3x3p1"), 0.0, absorbs=("1",))
SMALLER = Edit("3", "asymmetric", SMALL, 0.25, 0.5)


def plan(**changes: object) -> Plan:
    made = Plan((SMALLER, FOLD), (Refusal("3", "separable", "too wide"),), budget="macs=0.6", considered=(
        Considered("3", "asymmetric", SMALL, 0.5, 1.0, 1.0, 1.0, 0.125, 0.25, "taken"),
        Considered("3", "bottleneck", parse("ic8oc2k1x1 -> ic2oc12k5x5p2"), 0.75, verdict="it is slower"),
        Considered("0", "remove", parse("ic3oc8k1x1nb"), -0.5, verdict="it moves too much")))  # fmt: skip
    return replace(made, **changes)


def run_folder(folder: Path, ref: str = "net.py:make", **config: object) -> Plan:
    model = net()
    made = plan(model={"ref": ref, "hash": structure_hash(model)})
    student = apply(model, made, INPUT)
    save_run(folder, model=student, plan=made, before=summary(model, INPUT), after=summary(student, INPUT), error=0.5,
             config={"model": {"ref": ref, "hash": structure_hash(model), **config},
                     "settings": {"input": ["1x3x9x7"], "budget": "macs=0.6"}})  # fmt: skip
    return made


class Checked(HTMLParser):
    """What a browser would see; every tag is closed, nothing is fetched, nothing is run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "iframe", "link", "object")
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#"))
                if tag == "img":
                    self.images.append(b64decode(value.partition(",")[2]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


# -- the page -----------------------------------------------------------------------------------------------
def test_it_says_all_that_a_run_did():
    model = net()
    made = plan(front=(Point(0.5, 1, 0.25, 1, 1, 1), Point(1, 2, 0, 1, 1, 1)), latency_ratio=0.5)
    student = apply(model, made, INPUT)
    before, after = summary(model, INPUT), summary(student, INPUT)
    seen = look(model, student, made, (INPUT,), Feed.of(DATA), [row.name for row in before.rows])
    settings = {"model": {"ref": "net.py:make"}, "settings": {"budget": "macs=0.6", "data": "a b.npz"},
                "result": {"scores": [0.75, 0.5]}}  # fmt: skip
    found = Checked(page(before, after, made, settings, 0.5, seen))
    for words in ("Where the cost lies", "after: ", "The network", "The trade-off", "What each layer became",
                  "Layer by layer", "What was refused, and why", "too wide", "Feature maps", "Receptive fields",
                  "Every convolution", "Settings and versions",
                  "reconv rewrite net.py:make --budget macs=0.6 --data 'a b.npz'",
                  "-0.25", "it is slower", "2 proposals were considered", "It does the work of 1, too.",
                  "theoretical 7×7", "8 samples: samples held out of the data."):  # fmt: skip
        assert words in found.text, words
    assert found.text.count("after: effective") == 2
    assert len(found.images) == 8
    assert all(Image.open(BytesIO(image)).format == "PNG" for image in found.images)
    assert sum(tag == "svg" for tag in found.tags) == 4  # strips, front, and a picture for each changed layer


def test_it_says_what_is_not_there():
    found = Checked(page(None, None, Plan(), {}))
    assert "No layer was changed" in found.text
    assert "reconv report RUN_FOLDER adds it" in found.text
    assert "Where the cost lies" not in found.text
    assert found.images == []


def test_a_layer_that_stays_tells_what_was_offered():
    found = Checked(page(None, None, plan(edits=()), {})).text
    assert "Layers that stay as they are" in found
    assert "it moves too much" in found
    assert "Below 0 ms: it makes other layers cheaper, too." in found


@pytest.mark.parametrize("layers", [1, 13])
def test_layers_with_the_same_picture_share_it(layers):
    before = summary(net(), INPUT)
    row = replace(before.rows[1], name="")
    rows = tuple(replace(row, name=f"layer{i}") for i in range(layers))
    edits = tuple(replace(SMALLER, site=row.name) for row in rows)
    found = Checked(page(replace(before, rows=rows), None, plan(edits=edits), {}))
    assert sum(tag == "svg" for tag in found.tags) == 2  # with the strip
    assert found.text.count("The same picture as of layer0.") == layers - 1


def test_many_proposals_are_not_all_listed():
    many = tuple(Considered("3", "bottleneck", SMALL, float(i), verdict=f"reason {i}.") for i in range(30, 0, -1))
    found = Checked(page(None, None, plan(considered=many), {})).text
    assert "reason 12." in found
    assert "reason 13." not in found
    assert "18 more" in found


def test_the_page_of_resnet50_is_small():
    let_torchvision_import()
    import timm

    torch.manual_seed(0)
    model, image = timm.create_model("resnet50", pretrained=False).eval(), torch.randn(1, 3, 224, 224)
    before = summary(model, image)
    folds, smaller, offers = [], [], []
    for row in before.rows:
        spec, block = row.spec, row.spec.replace(bias=True)
        if row.name in ("layer2.1.conv2", "layer3.1.conv2"):
            half = spec.out_channels // 2
            block = parse(f"ic{spec.in_channels}oc{half}k1x3p0x1nb -> ic{half}oc{spec.out_channels}k3x1p1x0")
            smaller.append(Edit(row.name, "asymmetric", parse(f"{block}nb"), 0.05))
        norm = row.name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        folds.append(Edit(row.name, "fold_batch_norm", block, 0.0, absorbs=(norm,)))
        offers += [Considered(row.name, "bottleneck", block, 0.5 + i, 1e9, 1e6, 1e7, 0.1, 0.01 * i,
                              f"another fits as well and costs no more ({i})") for i in range(40)]  # fmt: skip
    made = Plan((*smaller, *folds), considered=tuple(offers))
    student = apply(model, made, image)
    seen = look(model, student, made, (image,), None, [row.name for row in before.rows])
    assert not seen.missing
    assert len(seen.apart) == 53
    assert {"layer2.1.conv2", "layer3.1.conv2", "layer4.2.conv3"} < {view.name for view in seen.views}
    text = page(before, summary(student, image), made, {}, 0.5, seen)
    assert len(Checked(text).images) == 16
    assert len(text.encode()) < 3 * 2**20


def test_nothing_from_outside_is_run_or_breaks_the_page():
    names = Considered(NASTY, NASTY, SMALL, verdict=NASTY), Considered("3", NASTY, SMALL, verdict=NASTY)
    made = Plan((replace(SMALLER, rule=NASTY), replace(SMALLER, site=NASTY, absorbs=(NASTY,))),
                (Refusal(NASTY, NASTY, NASTY),), {"sites": {NASTY: NASTY}}, NASTY, NASTY, reason=NASTY, met=False,
                considered=names)  # fmt: skip
    model = nn.Sequential()
    model.add_module(NASTY.replace(".", ""), nn.Conv2d(3, 4, 3))
    before = summary(model, INPUT)
    seen = look(model, model, made, (INPUT,), None, [row.name for row in before.rows])
    seen = replace(seen, missing={NASTY: NASTY}, source=NASTY, scores={NASTY: 0.5})
    settings = {"model": {"ref": NASTY}, NASTY: NASTY, "settings": {"data": NASTY}, "result": {"scores": [1, 2]}}
    found = Checked(page(replace(before, target=NASTY), before, made, settings, 0.5, seen))
    assert found.text.count(NASTY) > 15
    assert found.images != []


def test_without_pillow_one_line_says_what_is_missing(monkeypatch):
    model = net()
    seen = look(model, model, plan(), (INPUT,), None, ["0", "3"])
    monkeypatch.setitem(sys.modules, "PIL", None)
    found = Checked(page(None, None, plan(), {}, seen=seen))
    assert found.text.count("pip install 'reconv[pictures]'") == 1
    assert found.images == []
    assert "off by" in found.text


# -- what both networks make of samples -----------------------------------------------------------------------
def test_a_folded_layer_is_compared_with_the_batch_norm_behind_it():
    model = net().double()
    model[1].running_mean += 0.5
    student = apply(model, plan(edits=(FOLD,)), INPUT.double())
    seen = look(model, student, plan(edits=(FOLD,)), (INPUT.double(),), None, ["0", "3"])
    assert not seen.missing
    assert list(seen.apart) == ["0", "3"]
    assert max(seen.apart.values()) < 1e-12
    assert seen.source == "the example inputs"


def test_how_far_layers_are_apart_and_what_they_give():
    model, student = net(), net()
    with torch.no_grad():
        student[3].weight.zero_()
        student[3].bias.copy_(model[3].bias)
    seen = look(model, student, plan(edits=(SMALLER,)), (INPUT,), Feed.of(DATA[:5]), ["0", "3"])
    apart = dict(seen.apart)
    with torch.no_grad():
        then, now = model[:4](DATA[:5]), student[:4](DATA[:5])
    assert apart["0"] == 0
    assert apart["3"] == pytest.approx(float((now - then).norm() / then.norm()), rel=1e-4)
    assert seen.count == 5
    first, view = seen.views
    assert (first.name, view.name) == ("0", "3")
    for channel, was, became in view.maps:
        sample = [i for i in range(5) if np.array_equal(seen.image, DATA[i].numpy())]
        np.testing.assert_allclose(was, then[sample[0], channel].numpy(), atol=1e-5)
        np.testing.assert_allclose(became, now[sample[0], channel].numpy(), atol=1e-5)
    assert view.before is not None
    assert view.after is not None
    assert view.before.heat.shape == (9, 7)
    assert view.after.heat.max() == 0  # nothing of the input counts any more


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_it_looks_in_any_number_of_dimensions(dims):
    conv = getattr(nn, f"Conv{dims}d")
    model = nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, 4, 3, stride=2))
    data = torch.rand((4, 2, *(9, 7, 5)[:dims]))
    seen = look(model, model, Plan(), (data[:1],), Feed.of(data), ["0", "2"])
    assert not seen.missing
    found = Checked(page(None, None, Plan(), {}, seen=seen))
    assert len(found.images) == 8
    assert f"theoretical {'×'.join('5' * dims)}" in found.text


def test_a_network_that_is_one_layer_and_scripted_parts():
    seen = look(nn.Conv1d(2, 3, 3), nn.Conv1d(2, 3, 3), Plan(), (torch.rand(1, 2, 9),), None, [""])
    assert list(seen.apart) == [""]
    assert "the network itself" in page(None, None, Plan(), {}, seen=seen)
    mixed = nn.Sequential(torch.jit.script(nn.Conv1d(2, 3, 3)), nn.Conv1d(3, 2, 3))
    seen = look(mixed, mixed, Plan(), (torch.rand(1, 2, 9),), None, ["0", "1"])
    assert not seen.missing
    assert list(seen.apart) == ["1"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self.a(x) * scale, self.b(y)


def test_a_network_of_several_inputs_is_seen_from_its_first():
    inputs = (torch.rand(1, 3, 9, 7), torch.rand(1, 2, 6, 6), 2.0)
    data = [((torch.rand(4, 3, 9, 7), torch.rand(4, 2, 6, 6)), torch.zeros(4)) for _ in range(3)]
    model = Two()
    seen = look(model, model, Plan(), inputs, Feed.of(data, inputs), ["a", "b"])
    assert not seen.missing
    assert seen.image.shape == (3, 9, 7)
    a, b = seen.views
    assert a.before is not None
    assert b.before is None  # it sees nothing of the first input
    assert len(b.maps) == 4
    assert len(Checked(page(None, None, Plan(), {}, seen=seen)).images) == 2 + 2 + 2


class Failing(nn.Module):
    """Takes the batch that it was made for, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise RuntimeError("one sample is <too> few")
        return self.conv(x)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(5, 3), nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.embedding(x).mT)


@pytest.mark.parametrize(
    "model, data, part, reason",
    [
        (Failing(), DATA, "layers", "one sample is <too> few"),
        (Text(), torch.zeros(3, 9, dtype=torch.int64), "receptive fields", "first input must be floating"),
        (nn.Sequential(nn.Linear(7, 2)), DATA, "layers", "no layer of both networks gives the same shape"),
    ],
    ids=["fails", "words", "no convolution"],
)
def test_what_cannot_be_had_is_noted_with_its_reason(model, data, part, reason):
    seen = look(model, model, Plan(), (data[:2],), Feed.of(data), ["conv"])
    assert reason in seen.missing[part]
    assert reason.replace("<", "&lt;").split("&")[0] in page(None, None, Plan(), {}, seen=seen)


def test_looking_changes_neither_network_nor_random_numbers():
    model = net().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.get_rng_state()
    look(model, model, plan(), (INPUT,), Feed.of(DATA), ["0", "3"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("shape, kernel", [((2, 9), 3), ((2, 9, 7), (3, 5)), ((2, 5, 7, 6), 3)])
def test_the_field_of_one_convolution_is_its_kernel(shape, kernel):
    dims = len(shape) - 1
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 3, kernel, padding="same")
    x = torch.rand((2, *shape))
    field = effective_fields(conv, (x,), [""])[""]
    weight = conv.weight.detach().sum(0).abs().sum(0)
    assert field.shape == x.shape[2:]
    corner = tuple(slice(n // 2 - k // 2, n // 2 + k // 2 + 1) for n, k in zip(x.shape[2:], weight.shape, strict=True))
    torch.testing.assert_close(field[corner], weight)
    assert int((field > 0).sum()) == weight.numel()


@pytest.mark.parametrize("name", FOLLOWED)
def test_in_theory_the_middle_sees_what_has_a_gradient(name):
    model, shape = clone(CASES[name][0]), CASES[name][1]
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1)
    x = torch.rand((64, *shape[1:]), generator=torch.Generator().manual_seed(0))  # so that each is once the largest
    names = [each for each, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)]
    theory, practice = theoretical_fields(model, (x,), names), effective_fields(model, (x,), names)
    assert theory.keys() == practice.keys() == set(names)
    for each in names:
        window = theory[each]
        assert window is not None
        clipped = tuple((max(0, low), min(size, high)) for (low, high), size in zip(window, x.shape[2:], strict=True))
        assert within(practice[each], 1 - 1e-12) == clipped


def test_in_theory_the_middle_may_see_nothing_that_is_known():
    pooled = nn.Sequential(nn.Conv1d(1, 1, 1), nn.AdaptiveAvgPool1d(1))
    assert theoretical_fields(pooled, (torch.ones(1, 1, 7),), ["0", "1"]) == {"0": ((3, 4),), "1": ((0, 7),)}
    assert theoretical_fields(pooled, (torch.ones(1, 1, 7),), []) == {}


def test_the_field_of_a_network_that_writes_into_its_input():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(1, 1, 1), nn.ReLU(inplace=True))
    x = torch.ones(1, 1, 5)
    assert (effective_fields(model, (x,), ["1"])["1"] > 0).tolist() == [False, False, True, False, False]
    assert torch.equal(x, torch.ones(1, 1, 5))


@pytest.mark.parametrize(
    "field, share, ends",
    [
        ([0, 0, 0], 0.95, ((0, 0),)),
        ([1, 1, 1, 1], 1.0, ((0, 4),)),
        ([1, 1, 1, 1], 0.5, ((1, 3),)),
        ([0, 0, 5, 0], 0.95, ((2, 3),)),
        ([[0, 0, 0], [1, 2, 0]], 0.95, ((1, 2), (0, 2))),
    ],
)
def test_where_most_of_a_field_lies(field, share, ends):
    assert within(torch.tensor(field, dtype=torch.float32), share) == ends


def numbers(model: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in model.parameters()))


def test_scores_of_layers_alone():
    model = net()
    scores, missing = scores_alone(model, plan(), (INPUT,), None, numbers)
    fewer = 12 * 8 * 25 - (6 * 8 * 5 + 12 * 6 * 5)
    assert scores == {"3": numbers(model) - fewer}  # an exact edit scores what the network did
    assert missing == {}
    wrong = plan(edits=(replace(SMALLER, block=parse("ic8oc5k1x1")),))
    scores, missing = scores_alone(model, wrong, (INPUT,), None, lambda m: 1.0)
    assert scores == {}
    assert list(missing) == ["score of 3"]


# -- run folders ----------------------------------------------------------------------------------------------
def test_a_summary_is_read_as_it_was_written():
    known = summary(net(), INPUT)
    timed = replace(known.rows[0], latency_ms=0.5, latency_spread_ms=0.25, receptive_field=None)
    for each in (known, replace(known, rows=(timed, known.rows[1]), target="torch:1")):
        again = from_dict(json.loads(json.dumps(as_dict(each))))
        assert again == each
        assert again.network.states == each.network.states


def test_a_run_is_read_as_it_was_written(tmp_path):
    made = run_folder(tmp_path)
    held = read_run(tmp_path)
    assert held.plan == made
    assert held.error == 0.5
    assert held.before == summary(net(), INPUT)


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("plan.json", "{"),
        ("plan.json", '{"format": 1, "edits": [{}]}'),
        ("summary.json", ""),
        ("summary.json", "{}"),
        ("summary.json", '{"format": 1, "before": {"rows": [{}]}, "after": null, "error": null}'),
        ("summary.json", '{"format": 1, "before": null, "after": null, "error": "much"}'),
        ("summary.json", None),
        ("plan.json", None),
        ("model.safetensors", "{"),
    ],
)
def test_of_a_broken_run_the_file_is_named(here, file, content):
    run_folder(here / "run")
    (here / "run" / "report.html").write_text("old")
    path = here / "run" / file
    path.unlink() if content is None else path.write_text(content)
    said = reconv("report", "run", "--trust-code", status=1).stderr
    assert file in said
    assert (here / "run" / "report.html").read_text() == "old"


def test_the_command_writes_the_page_anew(here):
    run_folder(here / "run", weights_hash=weights_hash(net()))
    said = reconv("report", "run").stderr
    path = here / "run" / "report.html"
    assert "--trust-code" in said
    assert "Not shown: what the layers give and see" in Checked(path.read_text()).text
    reconv("report", "run", "--trust-code", "--data", "net.py:data", "--evaluate", "net.py:score")
    found = Checked(path.read_text())
    assert "score alone" in found.text
    assert "4 samples: samples held out of the data." in found.text
    assert len(found.images) == 8
    reconv("report", "run", "--base", "net.py:make", "--input", "2x3x9x7")
    assert "1 sample: the example inputs." in Checked(path.read_text()).text


@pytest.mark.parametrize(
    "flags, status, words",
    [
        (["nowhere"], 2, "must be a run folder"),
        (["run", "--base", "nonsense"], 2, "--base"),
        (["run", "--holdout", "2"], 2, "--holdout"),
        (["run", "--base", "net.py:flat"], 1, "must be the network that the run began with"),
        (["run", "--data", "net.py:data"], 1, "--trust-code"),
        (["run", "--mean", "0.5"], 2, "--mean"),
    ],
)
def test_mistakes_of_the_command(here, flags, status, words):
    run_folder(here / "run", weights_hash="another")
    assert words in reconv("report", *flags, status=status).stderr


def test_code_that_the_run_names_is_not_run(here):
    run_folder(here / "run")
    (here / "net.py").write_text((here / "net.py").read_text() + "\ndef spoil():\n    pathlib.Path('ran').touch()\n")
    config = json.loads((here / "run" / "config.json").read_text())
    config["settings"] |= {"data": "net.py:spoil"}
    (here / "run" / "config.json").write_text(json.dumps(config))
    (here / "net.py:spoil").touch()
    reconv("report", "run", "--base", "net.py:make")
    assert not (here / "ran").exists()
    reconv("report", "run", "--base", "net.py:make", "--trust-code", status=1)
    assert (here / "ran").exists()


def test_data_of_the_run_are_taken_again(here):
    run_folder(here / "run")
    np.savez(here / "data.npz", x=DATA.numpy())
    config = json.loads((here / "run" / "config.json").read_text())
    config["settings"] |= {"data": "data.npz", "holdout": 0.5, "seed": 3}
    (here / "run" / "config.json").write_text(json.dumps(config))
    reconv("report", "run", "--base", "net.py:make")
    assert "6 samples: samples held out of the data" in Checked((here / "run" / "report.html").read_text()).text
    reconv("report", "run", "--base", "net.py:make", "--holdout", "0.25")
    assert "3 samples: samples held out of the data" in Checked((here / "run" / "report.html").read_text()).text


# -- notebooks ------------------------------------------------------------------------------------------------
def test_plans_and_results_show_themselves():
    made = plan(model={"sites": {"3": "ic8oc12k5x5p2"}})
    shown = Checked(made._repr_html_() or "").text
    for words in ("macs=0.6", "ic8oc12k5x5p2", str(SMALL), "0.25"):
        assert words in shown
    model = net()
    before = summary(model, INPUT)
    result = Result(model, made, before, before, 0.5, 1.0, (0.75, 0.5))
    found = Checked(result._repr_html_())
    assert "after: " in found.text
    assert "error of the output" in found.text


def test_nothing_of_the_page_is_wrong_usage_of_a_broken_summary():
    with pytest.raises((KeyError, TypeError, ValueError, ConvError)):
        from_dict({"rows": [], "total": {}, "network": {}, "target": None})
