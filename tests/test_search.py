"""The choice is the best of all that a budget allows, whatever edits share."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconv.planning.candidates import Candidate
from reconv.planning.plan import Edit
from reconv.planning.search import beyond, cheapest, choose
from reconv.planning.together import beyond_sums
from reconv.spec import parse

COSTS = ("latency", "macs", "params", "weight_bytes", "peak_bytes")
LIMITS = ("latency", "macs", "params", "memory", "error")
EDIT = Edit("site", "rule", parse("ic1oc1k1x1"))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Candidate]]:
    """Up to three sites of up to four candidates: costs are small integers, errors sixteenths."""
    number = st.integers(0, 9)
    table = {}
    for site in "abc"[: draw(st.integers(1, 3))]:
        rows = [Candidate(site, None, {name: float(draw(number)) for name in COSTS})]
        for _ in range(draw(st.integers(0, 3))):
            costs = {name: float(draw(number)) for name in COSTS}
            rows.append(Candidate(site, EDIT, costs, draw(st.integers(1, 16)) / 16))
        table[site] = rows
    return table


def sums(choice: Any, elsewhere: float) -> dict[str, float]:
    total = {name: sum(c.costs[name] for c in choice) for name in COSTS}
    total["memory"] = total["weight_bytes"] + max(elsewhere, *(c.costs["peak_bytes"] for c in choice))
    return total | {"error": sum(c.error**2 for c in choice) ** 0.5}


@given(table=tables(), bounds=st.dictionaries(st.sampled_from(LIMITS), st.integers(0, 20)),
       goal=st.sampled_from(("error", "latency")), every=st.booleans(), elsewhere=st.integers(0, 9))  # fmt: skip
def test_the_choice_is_the_best_of_all(table, bounds, goal, every, elsewhere):
    limits = {name: bound / 16 if name == "error" else bound + 0.5 for name, bound in bounds.items()}
    feasible = [c for c in itertools.product(*table.values())
                if all(sums(c, elsewhere)[n] <= limits[n] + 1e-9 for n in limits)]  # fmt: skip
    found = choose(table, limits, goal, every, elsewhere=elsewhere)
    if not feasible:
        assert found is None
        return
    assert list(found) == list(table)
    assert all(found[site] in table[site] for site in table)
    mine = list(found.values())
    assert all(sums(mine, elsewhere)[name] <= limits[name] + 1e-6 for name in limits)

    def rank(choice: Any) -> tuple[int, float]:
        spent = sums(choice, elsewhere)
        kept = sum(c.edit is None for c in choice) if every else 0
        return kept, spent["error"] ** 2 if goal == "error" else spent["latency"]

    best = min(map(rank, feasible))
    assert rank(mine)[0] == best[0]
    assert rank(mine)[1] == pytest.approx(best[1], abs=2e-5 * 16)


def test_ties_of_the_goal_go_to_the_faster():
    rows = [Candidate("a", None, {"latency": 5.0}, 0.0), Candidate("a", EDIT, {"latency": 3.0}, 0.0)]
    assert choose({"a": rows}, {})["a"].latency_ms == 3.0


def test_nothing_to_choose_from():
    assert choose({}, {"latency": 1.0}) == {}


def _pruned(site: str, reader: str, out: int, read: int) -> Edit:
    also = ((reader, f"ic{out}oc{read}k3p1"),)
    return Edit(site, "prune_channels", parse(f"ic8oc{out}k3p1"), 0.1, 1.0, also=also)


PRUNED = {"a": _pruned("a", "b", 4, 8), "b": _pruned("b", "c", 4, 8), "c": _pruned("c", "d", 4, 8)}


def _macs(name: str, text: str) -> dict[str, float]:
    return dict.fromkeys(COSTS, float(parse(text).in_channels * parse(text).out_channels))


def test_edits_that_share_a_module_say_what_the_sum_does_not():
    apart = beyond_sums(PRUNED.values(), lambda name: "ic8oc8k3p1", _macs)
    # half of the inputs and half of the outputs of 64 leave 16, where each alone takes 32 off
    assert apart == {(PRUNED["a"], PRUNED["b"]): dict.fromkeys(COSTS, 16.0),
                     (PRUNED["b"], PRUNED["c"]): dict.fromkeys(COSTS, 16.0)}  # fmt: skip


@pytest.mark.parametrize("limit, taken", [(192, ""), (128, "a"), (96, "ac"), (80, "ab"), (64, "abc"), (63, None)])
def test_a_choice_counts_what_edits_share(limit, taken):
    # 64 a site; an edit takes 32 off its own and 32 off the next one, which give back 16 where both do
    now = dict.fromkeys(COSTS, 64.0)
    halved = {"a": (0.0, 0.1), "b": (0.0, 0.3), "c": (32.0, 0.2)}
    table = {n: [Candidate(n, None, now), Candidate(n, PRUNED[n], dict.fromkeys(COSTS, cost), error)]
             for n, (cost, error) in halved.items()}  # fmt: skip
    pairs = (("a", "b"), ("b", "c"))
    apart = {(PRUNED[x], PRUNED[y]): dict.fromkeys(COSTS, 16.0) for x, y in pairs}
    found = choose(table, {"latency": limit}, apart=apart)
    assert taken == (None if found is None else "".join(n for n, c in found.items() if c.edit))
    if found is not None:
        spent = sum(c.latency_ms for c in found.values()) + beyond(found, apart).get("latency", 0.0)
        assert spent <= limit
    least = cheapest(table, ["latency"], apart)
    assert [c.edit is not None for c in least.values()] == [True, True, True]


def test_the_cheapest_leaves_out_what_others_made_worthless():
    now = dict.fromkeys(COSTS, 64.0)
    table = {n: [Candidate(n, None, now), Candidate(n, PRUNED[n], dict.fromkeys(COSTS, 40.0))] for n in "ab"}
    apart = {(PRUNED["a"], PRUNED["b"]): dict.fromkeys(COSTS, 30.0)}
    assert [c.edit is not None for c in cheapest(table, ["latency"], apart).values()] == [True, False]


def test_the_cheapest_is_relative_to_each_site():
    rows = [
        Candidate("a", None, {"latency": 10.0, "params": 1.0}),
        Candidate("a", EDIT, {"latency": 5.0, "params": 2.0}),
        Candidate("a", EDIT, {"latency": 9.0, "params": 0.5}, 0.5),
    ]
    assert cheapest({"a": rows}, ["latency"])["a"] is rows[1]
    assert cheapest({"a": rows}, ["latency", "params"])["a"] is rows[2]


def test_the_cheapest_in_memory_weighs_weights_and_peaks_alike():
    held = ((4.0, 8.0), (1.0, 12.0), (3.0, 8.0), (9.0, 3.0))
    rows = [Candidate("a", EDIT, {"weight_bytes": w, "peak_bytes": p}) for w, p in held]
    assert cheapest({"a": rows}, ["memory"])["a"] is rows[2]
