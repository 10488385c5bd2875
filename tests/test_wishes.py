"""What a person settles holds; every proposal has its verdict; fronts of plans are what they say."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise

import pytest
from fakes import FakeTarget
from messages import told
from planned import DATA, IMAGE, network
from torch import nn

from reconv.costing.summary import summary
from reconv.errors import ConvError
from reconv.planning.considered import TAKEN
from reconv.planning.make import plan
from reconv.planning.plan import Plan, Point
from reconv.planning.planner import front_of
from reconv.planning.wishes import Wish, Wishes
from reconv.reporting.front import front_svg
from reconv.reporting.page import page
from reconv.rewriting.apply import apply
from reconv.rewriting.job import rewrite
from reconv.spec import parse

FAKE = FakeTarget()
HALF = {"budget": "latency=0.5", "data": DATA, "target": FAKE}
SMALL = {"site": "3", "rule": "bottleneck", "block": "ic16oc4k1x1nb -> ic4oc4k5x5p2nb -> ic4oc16k1x1"}


@cache
def free() -> Plan:
    """What is planned where nobody wishes anything."""
    return plan(network(), IMAGE, **HALF)


@pytest.mark.parametrize(
    "given, made",
    [
        (None, Wishes()),
        ({}, Wishes()),
        ({"pin": ["a.*"]}, Wishes(("a.*",))),
        ({"forbid": [{"site": "*", "rule": "sep*"}]}, Wishes(forbid=(Wish("*", "sep*"),))),
        ({"force": [SMALL]}, Wishes(force=(Wish("3", "bottleneck", parse(SMALL["block"])),))),
        ({"force": [{**SMALL, "error": 0.1, "latency_ms": None, "absorbs": ["4"], "also": {"7": "norm(4)"}}]},
         Wishes(force=(Wish("3", "bottleneck", parse(SMALL["block"]), ("4",), (("7", "norm(4)"),)),))),
    ],
)  # fmt: skip
def test_wishes_are_read_and_written(given, made):
    assert Wishes.of(given) == made
    assert Wishes.of(made.to_dict()) == made
    assert bool(made) == bool(given)


@pytest.mark.parametrize(
    "given, why",
    [
        ([], ""), ("pin", ""), ({"keep": []}, ""), ({"pin": "a"}, "'a' is no list"), ({"pin": [3]}, "3 is no text"),
        ({"forbid": [{"site": "a"}]}, "rule"), ({"forbid": ["a"]}, "'a' is no wish"),
        ({"force": [{"site": "a", "rule": 3}]}, "3 is no text"),
        ({"force": [{"site": "a", "rule": "r", "block": "none such"}]}, "none such"),
        ({"force": [{"site": "a", "rule": "r", "also": ["b"]}]}, r"also must be an object, not \['b'\]"),
        ({"force": [{"site": "a", "rule": "r", "rank": 3}]}, "'rank': 3} is no wish"),
    ],
)  # fmt: skip
def test_wishes_of_another_form_are_shown_theirs(given, why):
    with pytest.raises(ConvError, match=r'wishes must have their form.*Write \{"pin": \[SITE') as raised:
        Wishes.of(given)
    assert isinstance(raised.value, ValueError)
    assert re.search(why, str(raised.value))
    told(raised.value)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"pin": ["3", "none"]}, "must name a convolution of the network; got site=none. It has 0, 3, 6"),
        ({"forbid": [{"site": "9", "rule": "*"}]}, "got site=9"),
        ({"forbid": [{"site": "*", "rule": "seperable"}]}, "a forbidden rule must be known; got rule=seperable"),
        ({"force": [{"site": "3", "rule": "none"}]}, "a forced rule must be one of those"),
        ({"force": [{"site": "3", "rule": "fold_batch_norm"}]}, "a forced rule must be one of those"),
        ({"force": [{"site": "6", "rule": "low_rank_pointwise"}]}, "must serve the site; got site=6.*It refuses"),
        ({"force": [{"site": "6", "rule": "subpixel"}]}, "a forced rule must be one of those"),
    ],
)  # fmt: skip
def test_wishes_that_cannot_hold_are_said(given, message):
    with pytest.raises(ConvError, match=message) as raised:
        plan(network(), IMAGE, wishes=given, **HALF)
    told(raised.value)


def test_a_pinned_site_is_left_alone_by_every_rule():
    made = plan(network(), IMAGE, wishes={"pin": ["0", "3"]}, **HALF)
    assert {"0", "3"} <= {edit.site for edit in free().edits}
    touched = {n for e in made.edits for n in (e.site, *e.absorbs, *(name for name, _ in e.also))}
    assert touched
    assert not touched & {"0", "1", "3", "4"}
    assert {r.reason for r in made.refusals if r.site == "3"} == {"the plan pins the site: it stays as it is"}
    assert apply(network(), made, IMAGE)[3].weight.shape == (16, 16, 5, 5)


@pytest.mark.parametrize("rule", ["bottleneck", "fold_batch_norm", "*[lo]*"])
def test_a_forbidden_rule_serves_nowhere_it_is_forbidden(rule):
    made = plan(network(), IMAGE, wishes={"forbid": [{"site": "[03]", "rule": rule}]}, **HALF)
    assert any(fnmatchcase(e.rule, rule) for e in free().edits if e.site in "03")
    assert not any(fnmatchcase(e.rule, rule) for e in made.edits if e.site in "03")
    assert "the plan forbids it there" in {r.reason for r in made.refusals if r.site == "3"}


@pytest.mark.parametrize("more", [{}, {"budget": "latency=0.5"}, {"budget": "error=0.5"}, {"rules": "exact"}])
@pytest.mark.parametrize("forced", [SMALL, {"site": "3", "rule": "separable"}])
def test_a_forced_proposal_is_taken_though_it_is_slower(forced, more):
    slow = FakeTarget(grouped=1e4)  # nobody would take a separable convolution
    made = plan(network(), IMAGE, data=DATA, target=slow, wishes={"force": [forced]}, **more)
    mine = [e for e in made.edits if e.site == "3" and e.rule == forced["rule"]]
    assert len(mine) == 1
    assert str(mine[0].block) == forced.get("block", str(mine[0].block))
    assert type(apply(network(), made, IMAGE)[3]) is not nn.Conv2d


@pytest.mark.parametrize("block", ["ic16oc4k1x1nb -> ic4oc9k5x5p2", "ic16oc4k1x1 -> ic4oc16k5x5", "ic9oc16k1x1"])
def test_a_forced_block_that_does_not_fit_is_an_error(block):
    wrong = {"site": "3", "rule": "bottleneck", "block": block}
    with pytest.raises(
        ConvError, match="a forced block must give what the site gives; got site=3, rule=bottleneck, gives="
    ):
        plan(network(), IMAGE, wishes={"force": [wrong]}, **HALF)


def test_a_plan_is_searched_again_around_what_it_pins():
    first = plan(network(), IMAGE, wishes={"force": [SMALL]}, **HALF)
    edited = Plan.from_dict({**first.to_dict(), "wishes": {"pin": ["3"], "forbid": [], "force": []}})
    again = plan(network(), IMAGE, wishes=edited, budget="latency=0.4", data=DATA, target=FAKE)
    assert _there(again, "3") == _there(first, "3")
    assert again.met
    assert again.wishes.pin == ("3",)


def _there(made: Plan, site: str) -> list[tuple[str, object]]:
    return [(e.rule, e.block) for e in made.edits if e.site == site]


def test_every_proposal_has_its_figures_and_a_verdict():
    made = free()
    taken = {(e.site, e.rule, e.block) for e in made.edits if e.latency_ms is not None and e.error}
    assert taken
    assert taken == {(c.site, c.rule, c.block) for c in made.considered if c.verdict == TAKEN}
    for site in ("0", "3", "6"):
        rows = made.explain(site)
        assert len({(r.rule, r.block) for r in rows}) > 10
        assert all(r.verdict and r.latency_ms is not None and r.macs for r in rows)
    verdicts = {r.verdict.partition(":")[0] for r in made.considered}
    unfitted = "other sizes of its form stand for it"
    fitted = {TAKEN, "another fits as well and costs no more", "others near it on the front stand for it"}
    assert verdicts >= {*fitted, unfitted}
    assert all(r.fit_error is None for r in made.considered if r.verdict == unfitted)
    assert all(r.fit_error is not None for r in made.considered if r.verdict in fitted)
    assert any(" moves the output less: " in r.verdict for r in made.considered)
    assert Plan.from_dict(made.to_dict()) == made
    with pytest.raises(
        ConvError, match=r"must be one for which proposals were considered; got site=4\. There are 0, 3, 6"
    ):
        made.explain("4")


def test_a_front_is_measured_from_fast_to_slow_and_none_beats_another():
    scores: list[float] = []

    def parameters(model: nn.Module) -> float:
        return float(sum(p.numel() for p in model.parameters()))

    def evaluate(model: nn.Module) -> float:
        scores.append(parameters(model))
        return scores[-1]

    made = plan(network(), IMAGE, front=5, evaluate=evaluate, data=DATA, target=FAKE)
    assert not made.edits or made.latency_ratio < 1  # no budget: exact rules alone
    found = [p.measured for p in made.alternatives]
    assert 2 <= len(found) <= 5
    assert {p.score for p in found} <= set(scores)
    assert len(scores) == 5
    for fast, slow in pairwise(found):
        assert fast.latency_ratio < slow.latency_ratio
        assert fast.error > slow.error
    for one in made.alternatives:
        student = apply(network(), one, IMAGE, DATA)
        assert summary(student, IMAGE).network.macs == one.measured.macs
        assert parameters(student) == one.measured.score
        assert one.budget.startswith("latency=")
    assert set(made.front) >= {p for p in found if p in front_of(made.front)}
    assert front_of(made.front) == made.front


def test_wishes_leave_the_fit_on_data_as_it_is():
    """Two ways of saying which sites are meant."""
    given = {"budget": "macs=0.5", "data": DATA, "target": FAKE, "rules": "bottleneck"}
    pinned, meant = (
        plan(network(), IMAGE, **given, wishes={"pin": ["0"]}),
        plan(network(), IMAGE, **given, sites="[36]"),
    )
    assert pinned.edits == meant.edits != ()
    assert pinned.measured == meant.measured


@pytest.mark.parametrize("front", [-1, 65])
def test_a_front_has_a_sensible_number_of_plans(front):
    with pytest.raises(ConvError, match="front must be between 0 and 64"):
        plan(network(), IMAGE, front=front, **HALF)


def test_points_that_others_beat_are_no_front():
    def at(ratio: float, error: float) -> Point:
        return Point(ratio, ratio, error, 1, 1, 1)

    points = [at(1.0, 0.0), at(0.5, 0.2), at(0.6, 0.2), at(0.4, 0.3), at(0.4, 0.4), at(0.9, 0.5)]
    assert front_of(points) == (at(0.4, 0.3), at(0.5, 0.2), at(1.0, 0.0))


def test_the_trade_off_is_drawn():
    made = free()
    assert len(made.front) > 1
    picture = front_svg(made)
    assert picture.count("class='ring'") == 1
    assert picture.count("<title>latency ×") == len({*made.front, made.measured})
    assert "<h2>The trade-off</h2>" in page(None, None, made, {})
    scored = Plan(front=tuple(Point(r, r, 1 - r, 1, 1, 1, 2, score=r) for r in (0.2, 0.5)))
    assert front_svg(scored).count("<title>latency ×") == 4
    assert "1 layer changed" not in front_svg(scored)


def test_a_plan_made_before_is_carried_out_as_it_is(tmp_path):
    made = plan(network(), IMAGE, wishes={"force": [SMALL]}, **HALF)
    made.save(tmp_path / "plan.json")
    result = rewrite(network(), IMAGE, plan=Plan.load(tmp_path / "plan.json"), data=DATA, target=FAKE, epochs=0)
    assert [(e.site, e.rule, e.block) for e in result.plan.edits] == [(e.site, e.rule, e.block) for e in made.edits]
    assert result.plan.budget == "latency=0.5"
    assert result.met == (result.latency_ratio <= 0.5)
