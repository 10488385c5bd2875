"""Rules that add to a network, without a budget: applied wherever they are not refused, slower or not."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTarget, grid
from torch import nn

from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.rewriting.apply import apply
from reconv.rewriting.job import rewrite
from reconv.ruleset import rules_named
from reconv.surgery.outputs import distance

IMAGE = grid(2, 3, 11, 13)
FAKE = FakeTarget()
TRANSPOSED = "transposed: it spreads each input value, it has no points to sample at"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6),
    ).eval()  # fmt: skip


SITES = ("0", "3", "5")
CASES = {  # rules -> the rule of the edit at each site that is not exact
    "squeeze_excite": ("squeeze_excite",) * 3,
    "stronger": ("squeeze_excite",) * 3,
    ("deform", "skip"): ("deform", "skip", "deform"),
    "deform": ("deform", None, "deform"),
    ("exact", "expand_branches"): ("expand_branches",) * 3,
    ("separable", "widen_kernel"): ("widen_kernel",) * 3,
}


@pytest.mark.parametrize("rules", CASES, ids=str)
def test_each_site_gets_the_first_that_serves_it(rules):
    model = network()
    made = plan(model, IMAGE, rules=rules, target=FAKE)
    exact = {rule.name for rule in rules_named("exact")}
    assert {e.site: e.rule for e in made.edits if e.rule not in exact} == {
        site: rule for site, rule in zip(SITES, CASES[rules], strict=True) if rule}  # fmt: skip
    assert made.met
    assert all(edit.latency_ms for edit in made.edits)
    student = apply(model, Plan.from_dict(made.to_dict()), IMAGE)
    torch.testing.assert_close(student(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


def test_what_is_not_served_says_why():
    made = plan(network(), IMAGE, rules=["deform", "skip", "separable"], target=FAKE)
    assert {(r.site, r.rule): r.reason for r in made.refusals} == {
        ("3", "deform"): TRANSPOSED,
        ("0", "skip"): "deform stands there already, one addition a site",
        ("5", "skip"): "deform stands there already, one addition a site",
        ("", "skip"): "its maps change their size: 11×13 to 23×27",  # the network as a whole
        ("*", "separable"): "it needs a budget, such as latency=0.5",
    }


def test_where_none_serves_the_network_stays():
    made = plan(network(), IMAGE, rules="deform", sites="3", target=FAKE)
    assert (made.edits, made.met, made.latency_ratio) == ((), True, 1.0)


def test_a_job_gives_what_was_added_though_it_is_slower():
    model, data = network(), grid(24, 3, 11, 13)
    for epochs in (0, 1):
        result = rewrite(model, IMAGE, None, data, FAKE, "pointwise_after", epochs=epochs)
        assert [edit.rule for edit in result.plan.edits] == ["pointwise_after"] * 3
        assert result.latency_ratio > 1
        assert result.met
        assert sum(p.numel() for p in result.model.parameters()) > sum(p.numel() for p in model.parameters())


def test_branches_that_a_job_adds_are_folded_back_at_its_end():
    model = network()
    result = rewrite(model, IMAGE, None, None, FAKE, ["exact", "expand_branches"], sites="[05]")
    assert {e.rule for e in result.plan.edits} >= {"expand_branches", "fold_batch_norm", "fold_branches"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())
    assert result.latency_ratio < 1
    torch.testing.assert_close(result.model(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("absorbs", [(), ("2",)], ids=["alone", "with its ReLU"])
def test_a_convolution_may_be_removed_with_its_relu(absorbs, monkeypatch):
    """Both forms have the same block; each is probed and applied as what it is."""
    rows = {}

    def chosen(candidates, *_, **__):
        rows.update(candidates)
        wanted = [c for c in candidates["0"] if c.edit and c.edit.absorbs == absorbs]
        return {site: row[0] for site, row in candidates.items()} | {"0": wanted[0]}

    monkeypatch.setattr("reconv.planning.planner.choose", chosen)
    model = network()
    made = plan(model, IMAGE, "error=1", rules="remove", sites="0", target=FAKE)
    (edit,) = made.edits
    assert edit.absorbs == absorbs
    assert len({c.error for c in rows["0"]}) == 3  # as it is, and both forms
    student = apply(model, made, IMAGE)
    assert isinstance(student[2], nn.ReLU) != bool(absorbs)
    assert distance(student(IMAGE), model(IMAGE)) == pytest.approx(edit.error, rel=1e-4)
