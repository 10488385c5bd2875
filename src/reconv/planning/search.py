"""Chooses one candidate a site, so that budgets hold and the output moves least: a multiple-choice knapsack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from reconv.planning.candidates import PARTS, Candidate
from reconv.planning.together import Apart, exclude, excluding

TIE = 1e-6  # weight of the second goal, which only settles ties
SECONDS = 20.0  # after which the best choice found so far is taken


def choose(
    candidates: Mapping[str, Sequence[Candidate]], limits: Mapping[str, float], goal: str = "error",
    every: bool = False, apart: Apart | None = None, elsewhere: float = 0.0,
    barred: Sequence[Mapping[str, Candidate]] = (),
) -> dict[str, Candidate] | None:  # fmt: skip
    """The best choice, or None where no choice keeps the limits.

    Args:    limits: upper bounds on the sums over sites: latency in ms, macs, params, and error, which bounds the root
             of the summed squares (errors of different sites taken as independent). memory bounds the sum of the
             weights' bytes and the largest peak of a site.
             goal: what is made small: "error", or "latency" where an error limit is all that was given.
             every: change as many sites as the limits allow, before the goal.
             apart: what two edits cost together beyond the sum of both.
             elsewhere: the peak in bytes while no site runs. barred: choices that must not come again.
    Example:
             >>> keep, half = Candidate("a", None, {"latency": 2.0}), Candidate("a", None, {"latency": 1.0}, 0.1)
             >>> choose({"a": [keep, half]}, {"latency": 1.5})["a"].error
             0.1
    """
    flat = [c for row in candidates.values() for c in row]
    if not flat:
        return {}
    pairs = _together(flat, apart or {})

    def column(name: str) -> np.ndarray:
        """A cost of each candidate, then of each pair."""
        return np.array([*(c.costs[name] for c in flat), *(max(0.0, more[name]) for _, _, more in pairs)], dtype=float)

    squared, latency = np.array([*(c.error**2 for c in flat), *(0.0 for _ in pairs)]), column("latency")
    first, second = (squared, latency) if goal == "error" else (latency, squared)
    objective = _unit(first) + TIE * _unit(second)
    if every:
        objective[: len(flat)] += 2 * len(flat) * np.array([c.edit is None for c in flat])
    size = len(flat) + len(pairs)
    constraints = [LinearConstraint(_one_each(candidates, size), 1, 1)]
    for name, limit in limits.items():
        bound = limit**2 if name == "error" else limit
        if name == "memory":  # a row for the time while each site runs, and one while none does
            site = _one_each(candidates, size).toarray()
            spent = column("weight_bytes") + np.vstack([site * column("peak_bytes"), site[0] * elsewhere])
        else:
            spent = squared if name == "error" else column(name)
        scale = max(float(spent.max()), 1e-300)
        constraints.append(LinearConstraint(spent / scale, -np.inf, bound / scale))
    if barred:
        same = np.zeros((len(barred), size))
        for row, choice in zip(same, barred, strict=True):
            row[: len(flat)] = [choice.get(c.site) is c for c in flat]
        constraints.append(LinearConstraint(same, -np.inf, len(candidates) - 1))
    constraints += [LinearConstraint(rows, -np.inf, 1) for rows in (*_excluding(flat, size), *_of_pairs(pairs, size))]
    found = milp(objective, constraints=constraints, integrality=np.arange(size) < len(flat), bounds=Bounds(0, 1),
                 options={"mip_rel_gap": 0.0, "time_limit": SECONDS})  # fmt: skip
    if found.x is None:
        return None
    taken = [c for c, x in zip(flat, found.x, strict=False) if x > 0.5]
    return {c.site: c for c in taken}


def cheapest(candidates: Mapping[str, Sequence[Candidate]], names: Sequence[str],
             apart: Apart | None = None) -> dict[str, Candidate]:  # fmt: skip
    """Per site the candidate that spends least of the named costs, each relative to the site as it is."""
    pairs: dict[int, dict[int, Mapping[str, float]]] = {}  # by what may stand beside it
    for (one, other), more in (apart or {}).items():
        pairs.setdefault(id(one), {})[id(other)] = pairs.setdefault(id(other), {})[id(one)] = more
    chosen: dict[str, Candidate] = {}

    def spent(c: Candidate, kept: Candidate) -> tuple[float, float]:
        beside = pairs.get(id(c.edit), {})
        more = [beside[id(other.edit)] for other in chosen.values() if id(other.edit) in beside]
        return sum(sum(_cost(costs, n) for costs in (c.costs, *more)) / max(_cost(kept.costs, n), 1e-300)
                   for n in names), c.error  # fmt: skip

    for site, row in sorted(
        candidates.items(), key=lambda pair: pair[1][0].edit is None
    ):  # those that must change first
        taken = [c.edit for c in chosen.values() if c.edit]
        fits = [c for c in row if c.edit is None or not any(exclude(c.edit, other) for other in taken)]
        chosen[site] = min(fits or row, key=lambda c: spent(c, row[0]))
    return chosen


def _cost(costs: Mapping[str, float], name: str) -> float:
    return sum(costs[part] for part in PARTS.get(name, (name,)))


def beyond(choice: Mapping[str, Candidate], apart: Apart) -> dict[str, float]:
    """What the edits of a choice cost together, beyond the sum of its candidates."""
    taken = {id(c.edit) for c in choice.values() if c.edit}
    total: dict[str, float] = defaultdict(float)
    for (one, other), more in apart.items():
        if id(one) in taken and id(other) in taken:
            for name, value in more.items():
                total[name] += max(0.0, value)
    return total


Pair = tuple[int, int, Mapping[str, float]]  # the places of two candidates, and what they cost together


def _together(flat: Sequence[Candidate], apart: Apart) -> list[Pair]:
    place = {id(c.edit): i for i, c in enumerate(flat) if c.edit}
    return [(place[id(a)], place[id(b)], more) for (a, b), more in apart.items() if id(a) in place and id(b) in place]


def _of_pairs(pairs: Sequence[Pair], size: int) -> Iterator[csr_array]:
    """A row for each pair: it counts where both are taken."""
    if pairs:
        rows, ones = np.repeat(np.arange(len(pairs)), 3), np.tile([1.0, 1.0, -1.0], len(pairs))
        columns = np.array([(a, b, size - len(pairs) + i) for i, (a, b, _) in enumerate(pairs)]).ravel()
        yield csr_array((ones, (rows, columns)), shape=(len(pairs), size))


def _excluding(flat: Sequence[Candidate], size: int) -> Iterator[csr_array]:
    """A row for each two edits of which only one can be made."""
    place = {id(c.edit): i for i, c in enumerate(flat) if c.edit}
    pairs = [(place[id(a)], place[id(b)]) for a, b in excluding(c.edit for c in flat if c.edit)]
    if pairs:
        rows = np.repeat(np.arange(len(pairs)), 2)
        yield csr_array((np.ones(len(rows)), (rows, np.array(pairs).ravel())), shape=(len(pairs), size))


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled so that the largest is 1."""
    most = float(values.max())
    return values / most if most > 0 else values


def _one_each(candidates: Mapping[str, Sequence[Candidate]], size: int) -> csr_array:
    rows = np.repeat(np.arange(len(candidates)), [len(row) for row in candidates.values()])
    return csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(candidates), size))
