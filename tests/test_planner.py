"""The choice is corrected by what whole networks measured, however that is related to the sum of their blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeTarget
from planned import DATA, IMAGE, network
from torch import nn

from reconv.planning import planner
from reconv.planning.budget import Budget
from reconv.planning.make import plan
from reconv.planning.planner import NEAR, Line


@pytest.mark.parametrize(
    "points, whole, rows",
    [
        ([(8, 10)], 5, 3),  # the rest stays
        ([(8, 10)], 12, 10),
        ([(8, 10), (2, 1)], 4, 4),  # between two
        ([(8, 10), (2, 1)], 0.4, 1.6),  # beyond both
        ([(8, 10), (2, 1), (4, 4)], 2, 8 / 3),  # between the nearest two
        ([(8, 10), (4, 4), (6, 7)], 13, 10),
        ([(8, 10), (7, 11)], 9, 7),  # noise: more measured faster
        ([(8, 10), (8, 11)], 9, 7),
        ([(8, 10), (8, 10)], 9, 7),
    ],
)
def test_the_sum_of_rows_at_which_a_network_takes_so_long(points, whole, rows):
    assert Line(list(points)).rows_for(whole) == pytest.approx(rows)


class Crowded(FakeTarget):
    """Whole networks are interrupted more than single blocks, as on a machine with other work."""

    def _latency_ms(self, model: nn.Module, inputs: tuple[Any, ...]) -> float:
        several = sum(isinstance(m, nn.Linear) for m in model.modules())
        return super()._latency_ms(model, inputs) * (3 if several else 1)


@pytest.mark.parametrize("budget", [0.8, 0.45])
def test_a_machine_that_is_crowded_does_not_ruin_a_network(budget):
    made = plan(network(), IMAGE, f"latency={budget}", DATA, Crowded())
    calm = plan(network(), IMAGE, f"latency={budget}", DATA, FakeTarget())
    assert made.met
    assert made.measured.error <= 2.5 * calm.measured.error


@pytest.mark.parametrize("budget, figure", [("latency=0.001", "latency_ratio"), ("params=0.01", "params")])
def test_a_budget_out_of_reach_does_not_ruin_a_network_for_its_last_part(budget, figure, monkeypatch):
    near = plan(network(), IMAGE, budget, DATA, FakeTarget()).measured
    monkeypatch.setattr(planner, "NEAR", 1.0)
    nearest = plan(network(), IMAGE, budget, DATA, FakeTarget()).measured
    assert getattr(nearest, figure) <= getattr(near, figure) <= NEAR * getattr(nearest, figure)
    assert near.error < nearest.error or near == nearest


def test_what_was_considered_has_its_figures_and_what_was_refused_was_not_considered():
    made = plan(network(), IMAGE, "latency=0.6", DATA, FakeTarget())
    assert [c for c in made.considered if not (c.latency_ms and c.macs and c.params)] == []
    considered, refused = ({(one.site, one.rule) for one in several} for several in (made.considered, made.refusals))
    assert considered
    assert refused
    assert not considered & refused


@pytest.mark.parametrize("required, better", [([], False), (["a"], True)])
def test_what_is_slower_than_the_given_network_is_no_better_but_where_it_must_change(required, better):
    """Nearly as near to the budget, and of less error."""
    judge = planner.Planner(None, Budget.of("latency=0.5"), {}, {}, False, print, required)
    slower, given = (SimpleNamespace(latency_ratio=ratio, latency_ms=ratio, error=error, asked=(), edits=())
                     for ratio, error in ((1.02, 0.0), (1.0, 0.1)))  # fmt: skip
    assert (judge.better(slower, given) is slower) == better
