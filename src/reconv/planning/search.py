"""Chooses one candidate a site, so that budgets hold and the output moves least: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from reconv.planning.table import Candidate
from reconv.planning.together import exclude, excluding

TIE = 1e-6  # weight of the second goal, which only settles ties


def choose(
    candidates: Mapping[str, Sequence[Candidate]], limits: Mapping[str, float], goal: str = "error", every: bool = False
) -> dict[str, Candidate] | None:
    """The best choice, or None where no choice keeps the limits.

    Args:    limits: upper bounds on the sums over sites: latency in ms, macs, params, memory in bytes, and error,
             which bounds the root of the summed squares (errors of different sites taken as independent).
             goal: what is made small: "error", or "latency" where an error limit is all that was given.
             every: change as many sites as the limits allow, before the goal.
    Example:
             >>> keep, half = Candidate("a", None, {"latency": 2.0}), Candidate("a", None, {"latency": 1.0}, 0.1)
             >>> choose({"a": [keep, half]}, {"latency": 1.5})["a"].error
             0.1
    """
    flat = [c for row in candidates.values() for c in row]
    if not flat:
        return {}
    squared, latency = np.array([c.error**2 for c in flat]), np.array([c.latency_ms for c in flat])
    first, second = (squared, latency) if goal == "error" else (latency, squared)
    objective = _unit(first) + TIE * _unit(second)
    if every:
        objective = objective + 2 * len(flat) * np.array([c.edit is None for c in flat])
    constraints = [LinearConstraint(_one_each(candidates), 1, 1)]
    for name, limit in limits.items():
        spent = squared if name == "error" else np.array([c.costs[name] for c in flat], dtype=float)
        bound = limit**2 if name == "error" else limit
        scale = max(float(spent.max()), 1e-300)
        constraints.append(LinearConstraint(spent / scale, -np.inf, bound / scale))
    constraints += [LinearConstraint(pairs, -np.inf, 1) for pairs in _excluding(flat)]
    found = milp(objective, constraints=constraints, integrality=np.ones(len(flat)), bounds=Bounds(0, 1),
                 options={"mip_rel_gap": 0.0})  # fmt: skip
    if found.x is None:
        return None
    taken = [c for c, x in zip(flat, found.x, strict=True) if x > 0.5]
    return {c.site: c for c in taken}


def cheapest(candidates: Mapping[str, Sequence[Candidate]], names: Sequence[str]) -> dict[str, Candidate]:
    """Per site the candidate that spends least of the named costs, each relative to the site as it is."""

    def spent(c: Candidate, kept: Candidate) -> tuple[float, float]:
        return sum(c.costs[n] / max(kept.costs[n], 1e-300) for n in names), c.error

    chosen: dict[str, Candidate] = {}
    for site, row in candidates.items():
        taken = [c.edit for c in chosen.values() if c.edit]
        fits = [c for c in row if c.edit is None or not any(exclude(c.edit, other) for other in taken)]
        chosen[site] = min(fits, key=lambda c: spent(c, row[0]))
    return chosen


def _excluding(flat: Sequence[Candidate]) -> Iterator[csr_array]:
    """A row for each two edits of which only one can be made."""
    place = {id(c.edit): i for i, c in enumerate(flat) if c.edit}
    pairs = [(place[id(a)], place[id(b)]) for a, b in excluding(c.edit for c in flat if c.edit)]
    if pairs:
        rows = np.repeat(np.arange(len(pairs)), 2)
        yield csr_array((np.ones(len(rows)), (rows, np.array(pairs).ravel())), shape=(len(pairs), len(flat)))


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled so that the largest is 1."""
    most = float(values.max())
    return values / most if most > 0 else values


def _one_each(candidates: Mapping[str, Sequence[Candidate]]) -> csr_array:
    rows = np.repeat(np.arange(len(candidates)), [len(row) for row in candidates.values()])
    return csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(candidates), len(rows)))
