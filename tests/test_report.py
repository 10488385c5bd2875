"""The report says what a run did, whatever its names and whatever is missing."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from nets import let_torchvision_import
from PIL import Image
from reported import DATA, INPUT, SMALL, SMALLER, Checked, net, plan
from torch import nn

from reconv.costing.summary import summary
from reconv.data import Feed
from reconv.planning.considered import Considered
from reconv.planning.plan import Edit, Plan, Point, Refusal
from reconv.reporting.page import page
from reconv.rewriting.apply import apply
from reconv.rewriting.job import Result
from reconv.rewriting.looking import look
from reconv.spec import parse

NASTY = "<script>alert('1')</script>\"'><img src=x onerror=y>"


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
