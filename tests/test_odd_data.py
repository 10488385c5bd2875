"""Calibration data that are too few or of another kind: they serve, or it is said before any work why not."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTarget, grid
from torch import nn

import reconv
from reconv.errors import ConvError

IMAGE = grid(1, 3, 9, 8)
MANY = grid(24, 3, 9, 8)
RULES = ["exact", "bottleneck", "separable"]


def network() -> nn.Module:
    """With a batch norm whose maps are of one position."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def planned(data, target=None, rules=RULES):
    return reconv.plan(network(), IMAGE, "macs=0.6", data, target or FakeTarget(), rules)


def applied(data):
    """With the batch norms that there were."""
    return reconv.apply(network(), planned(None, rules=RULES[1:]), IMAGE, data)


def rewritten(data, target=None, rules=RULES):
    budget = None if rules == "expand_branches" else "macs=0.6"
    return reconv.rewrite(network(), IMAGE, budget, data, target or FakeTarget(), rules, epochs=1)


FEW = {
    "one image": IMAGE,
    "one batch of one": [IMAGE],
    "batches of one": [MANY[:1], MANY[1:2], MANY[2:3]],
    "two images": MANY[:2],
}


def sound(model: nn.Module) -> bool:
    values = [t for t in (*model.state_dict().values(), model(IMAGE)) if t.is_floating_point()]
    return all(bool(t.isfinite().all()) for t in values)


@pytest.mark.parametrize("data", FEW.values(), ids=FEW)
def test_a_plan_is_made_and_applied_with_few_images(data):
    made = planned(data)
    assert made.met
    assert all(edit.error is not None and edit.error < 1 for edit in made.edits)
    student = applied(data)
    assert sound(student)
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(float(norm.running_var.min()) > 0 for norm in norms)


@pytest.mark.parametrize("rules", [RULES, "expand_branches"], ids=["smaller", "stronger"])
@pytest.mark.parametrize("data", [FEW["batches of one"], FEW["two images"]], ids=["batches of one", "two images"])
def test_a_network_is_recovered_on_few_images(data, rules):
    result = rewritten(data, rules=rules)
    assert sound(result.model)
    assert result.error < 1
    again = reconv.recover(applied(None), network(), data, 1)
    assert sound(again)


@pytest.mark.parametrize("data", [FEW["one image"], FEW["one batch of one"]], ids=["image", "batch"])
def test_one_image_cannot_judge_what_was_learned_on_it(data):
    target = FakeTarget()
    for job in (lambda: rewritten(data, target), lambda: reconv.recover(network(), network(), data, 1)):
        with pytest.raises(ConvError, match=r"two samples to hold one out; got samples=1\. Give more, or none at all"):
            job()
    assert target.seen == []


OTHER = {
    "doubles": MANY.double(),
    "bytes": (MANY * 255).to(torch.uint8),
    "whole numbers": (MANY * 9).long(),
    "half precision": MANY.half(),
    "in batches": [MANY.double()[:8], MANY.double()[8:]],
    "with labels": torch.utils.data.TensorDataset(MANY.double(), torch.arange(24)),
}


@pytest.mark.parametrize("job", [planned, applied, rewritten])
@pytest.mark.parametrize("data", OTHER.values(), ids=OTHER)
def test_another_dtype_is_told_with_the_one_that_is_expected(data, job):
    found = (data[0] if isinstance(data, list) else data[:][0]).dtype
    with pytest.raises(ConvError, match=f"must have the dtype of example_inputs; got dtype={found}, "
                                        r"example_inputs=torch\.float32\. Convert one of them") as caught:  # fmt: skip
        job(data)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("job", [planned, rewritten])
@pytest.mark.parametrize("data", OTHER.values(), ids=OTHER)
def test_and_that_before_any_work(data, job):
    target = FakeTarget()
    with pytest.raises(ConvError, match="dtype"):
        job(data, target)
    assert target.seen == []


@pytest.mark.parametrize("wrong", range(4))
def test_what_is_held_out_is_looked_at_before_any_work(wrong):
    """One batch of these four is held out."""
    data, target = list(MANY.split(6)), FakeTarget()
    data[wrong] = data[wrong].double()
    with pytest.raises(ConvError, match="dtype"):
        rewritten(data, target)
    assert target.seen == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.int64])
def test_example_inputs_of_another_dtype(dtype):
    with pytest.raises(ConvError, match=r"must accept example_inputs; .* It raised RuntimeError: .*type"):
        reconv.plan(network(), IMAGE.to(dtype), "macs=0.6", target=FakeTarget())


def test_a_network_of_doubles_takes_doubles():
    made = reconv.plan(network().double(), IMAGE.double(), "macs=0.6", MANY.double(), FakeTarget(), RULES)
    assert made.met
    with pytest.raises(ConvError, match=r"got dtype=torch\.float32, example_inputs=torch\.float64"):
        reconv.apply(network().double(), made, IMAGE.double(), MANY)
