"""The layers that a plan changed, each with all that is known of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from reconv.costing.summary import Row, Summary
from reconv.planning.considered import Considered
from reconv.planning.plan import Edit, Plan
from reconv.spec import Block

T = TypeVar("T", Edit, Considered)


@dataclass(frozen=True)
class Cost:
    """Of one layer, over all of its convolution calls; None where a part is unknown."""

    latency_ms: float | None
    spread_ms: float | None
    macs: int


@dataclass(frozen=True)
class Change:
    """One layer. Args: rows: its convolution calls before. offers: the proposals that were considered for it."""

    site: str
    edits: Sequence[Edit]
    rows: Sequence[Row]
    was: Cost | None
    now: Cost | None
    offers: Sequence[Considered]

    @property
    def became(self) -> Block:
        return self.edits[-1].block

    @property
    def rules(self) -> str:
        return ", ".join(edit.rule for edit in self.edits)


def changes(before: Summary | None, after: Summary | None, plan: Plan) -> list[Change]:
    """In the order in which the layers run, where that is known."""
    then, now = _by_layer(before), _by_layer(after)
    edits, offers = by_site(plan.edits), by_site(plan.considered)
    order = {row: place for place, row in reversed(list(enumerate(before.rows if before else ())))}
    found = [Change(site, made, then.get(site, ()), _cost(then.get(site)), _cost(now.get(site)), offers.get(site, ()))
             for site, made in edits.items()]  # fmt: skip
    return sorted(found, key=lambda each: min((order[row] for row in each.rows), default=len(order)))


def by_site(each: Iterable[T]) -> dict[str, list[T]]:
    groups = defaultdict(list)
    for one in each:
        groups[one.site].append(one)
    return dict(groups)


def _by_layer(summary: Summary | None) -> Mapping[str, Sequence[Row]]:
    """The calls of each convolution, and of each module that holds some."""
    layers = defaultdict(list)
    for row in summary.rows if summary else ():
        parts = row.name.split(".")
        for name in dict.fromkeys(("", *(".".join(parts[: end + 1]) for end in range(len(parts))))):
            layers[name].append(row)
    return dict(layers)


def _cost(rows: Sequence[Row] | None) -> Cost | None:
    """None where it does not run."""
    if not rows:
        return None
    known = [row.latency_ms for row in rows if row.latency_ms is not None]
    macs = sum(row.macs for row in rows)
    if len(known) < len(rows):
        return Cost(None, None, macs)
    return Cost(sum(known), sum((row.latency_spread_ms or 0.0) ** 2 for row in rows) ** 0.5, macs)
