"""A plan made for another network is refused: which site differs, and how."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from fakes import FakeTarget, grid
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.planning.plan import Plan

IMAGE = grid(1, 3, 11, 13)
NOTHING = nn.Identity()


def network(**other: nn.Module) -> nn.Module:
    """With other modules in the places of these names."""
    torch.manual_seed(0)
    parts = OrderedDict(first=nn.Conv2d(3, 16, 3, bias=False), norm=nn.BatchNorm2d(16), act=nn.ReLU(),
                        middle=nn.Conv2d(16, 16, 5), last=nn.Conv2d(16, 8, 3), pool=nn.AdaptiveAvgPool2d(1),
                        flat=nn.Flatten(), head=nn.Linear(8, 5))  # fmt: skip
    return nn.Sequential(parts | other).eval()


@pytest.fixture(scope="module")
def plan():
    found = reconv.plan(network(), IMAGE, "macs=0.5", None, FakeTarget(), ["exact", "bottleneck"],
                        sites=["first", "middle"])  # fmt: skip
    assert {(e.site, e.rule) for e in found.edits} == {("first", "fold_batch_norm"), ("middle", "bottleneck")}
    return found


def by_hand(plan: Plan) -> Plan:
    """Without what plans note of their network."""
    edits = [e.to_dict() for e in plan.edits]
    return Plan.from_dict({"format": 1, "edits": edits})


def test_it_notes_what_it_changes_and_comes_back_from_json(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.sites == plan.sites == {"first": "ic3oc16k3x3nb", "middle": "ic16oc16k5x5"}


@pytest.mark.parametrize("sites", [3, ["first"], {"first": 3}])
def test_notes_of_another_form_are_refused(sites):
    with pytest.raises(ConvError, match=r"^Plan: model\.sites must be an object of texts; got sites="):
        Plan.from_dict({"format": 1, "model": {"sites": sites}})


STANDS = r"expected what ic16oc\d+k1x1nb -> ic\d+oc\d+k5x5nb -> ic\d+oc16k1x1 stands in for, found "
OTHERS = {
    "another kernel": ({"middle": nn.Conv2d(16, 16, 3)},
                       "middle='expected ic16oc16k5x5, found ic16oc16k3x3'", f"middle='{STANDS}ic16oc16k3x3'"),
    "another stride": ({"middle": nn.Conv2d(16, 16, 5, stride=(2, 1))},
                       "middle='expected ic16oc16k5x5, found ic16oc16k5x5s2x1'", f"middle='{STANDS}ic16oc16k5x5s2x1'"),
    "more channels": ({"middle": nn.Conv2d(16, 24, 5), "last": nn.Conv2d(24, 8, 3)},
                      "middle='expected ic16oc16k5x5, found ic16oc24k5x5'", f"middle='{STANDS}ic16oc24k5x5'"),
    "no convolution": ({"middle": nn.Dropout()}, "middle='no convolution but Dropout'",
                       "middle='no convolution but Dropout'"),
    "a name less": ({"middle": nn.Sequential(nn.Conv2d(16, 16, 5))}, "middle='no convolution but Sequential'",
                    "middle='no convolution but Sequential'"),
    "two": ({"first": nn.Conv2d(3, 16, 3), "middle": nn.Conv2d(16, 16, 5, bias=False)},
            "middle='expected ic16oc16k5x5, found ic16oc16k5x5nb', first='expected ic3oc16k3x3nb, found ic3oc16k3x3'",
            None),
}  # fmt: skip


@pytest.mark.parametrize("other, noted, derived", OTHERS.values(), ids=OTHERS)
def test_each_site_that_differs_is_named(plan, other, noted, derived):
    model = network(**other)
    with pytest.raises(ConvError, match=noted) as caught:
        reconv.apply(model, plan, IMAGE)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith("apply: each site of the plan must be a convolution of the network, as it was")
    if derived is not None:
        with pytest.raises(ConvError, match=derived):
            reconv.apply(model, by_hand(plan), IMAGE)


def test_missing_sites_and_modules_are_named(plan):
    model = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 16, 3, bias=False), other=nn.Conv2d(16, 16, 5))).eval()
    for one in (plan, by_hand(plan)):
        with pytest.raises(ConvError, match=r"middle=missing, norm=missing\. .* this one has first, other\."):
            reconv.apply(model, one, IMAGE)


@pytest.mark.parametrize("model", [network(head=nn.Linear(8, 7)), network(last=nn.Conv2d(16, 8, 1)), network()],
                         ids=["another head", "another layer that stays", "the same"])  # fmt: skip
@pytest.mark.parametrize("size", [(1, 3, 11, 13), (2, 3, 14, 12)])
def test_what_it_does_not_change_may_differ(plan, model, size):
    x = grid(*size)
    assert reconv.apply(model, plan, x)(x).shape == model(x).shape
    assert reconv.apply(model.double(), by_hand(plan), x.double())(x.double()).shape == model(x.double()).shape
    model.float()


@pytest.mark.parametrize("edit, message", [
    ({"site": "middle", "rule": "fold_batch_norm", "block": "ic16oc16k5x5"},
     r"fold_batch_norm: the rule must be able to serve the site; got site=middle\. It cannot: no batch norm"),
    ({"site": "middle", "rule": "bottleneck", "block": "ic16oc16k1x1 -> ic16oc16k5x5"},
     "bottleneck: the proposal must be one that the rule makes for the site; got site=middle"),
])  # fmt: skip
def test_edits_written_by_hand_that_do_not_fit(edit, message):
    with pytest.raises(ConvError, match=message):
        reconv.apply(network(), Plan.from_dict({"format": 1, "edits": [edit]}), IMAGE)


def test_a_run_that_goes_on_with_another_network_says_so(plan, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    plan.save(tmp_path / "checkpoint" / "plan.json")  # as an interrupted run leaves it
    with pytest.raises(ConvError, match="middle='expected ic16oc16k5x5, found ic16oc16k3x3'"):
        reconv.rewrite(network(**OTHERS["another kernel"][0]), IMAGE, "macs=0.5", target=FakeTarget(), out=tmp_path,
                       resume=True)  # fmt: skip


def test_a_run_folder_is_loaded_into_no_other_network(tmp_path):
    made = reconv.rewrite(network(), IMAGE, "macs=0.5", None, FakeTarget(), ["exact", "bottleneck"], sites="middle")
    made.save(tmp_path)
    for name in ("another kernel", "more channels", "no convolution"):
        with pytest.raises(ConvError, match=rf"^load: base must have the structure .*{OTHERS[name][1]}"):
            reconv.load(tmp_path, base=network(**OTHERS[name][0]))
    with pytest.raises(ConvError, match=r"^load: base must have the structure .* model=None\. Its state dict"):
        reconv.load(tmp_path, base=network(head=nn.Linear(8, 7)))  # no site differs
