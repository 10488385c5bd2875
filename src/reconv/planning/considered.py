"""What became of every proposal: what it measured, and why it was or was not taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reconv.spec import Block, parse

TAKEN = "taken"
FIGURES = ("latency_ms", "macs", "params", "memory", "fit_error", "error")
Key = tuple[str, str, Block, tuple[str, ...]]  # site, rule, block, and what it absorbs


@dataclass(frozen=True)
class Considered:
    """One proposal for one site, as far as it came.

    Args:    latency_ms, macs, params, memory: over all runs of the site; None where not looked at.
             fit_error: of the layer, on its own responses or weights. error: of the network's output with it alone.
             verdict: "taken", or why not.
    """

    site: str
    rule: str
    block: Block
    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    memory: float | None = None
    fit_error: float | None = None
    error: float | None = None
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        figures = {name: getattr(self, name) for name in FIGURES}
        return {"site": self.site, "rule": self.rule, "block": str(self.block), **figures, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Considered:
        figures = {name: None if data.get(name) is None else float(data[name]) for name in FIGURES}
        return cls(str(data["site"]), str(data["rule"]), parse(data["block"]), **figures, verdict=str(data["verdict"]))


def judged(rows: Iterable[Considered], taken: Mapping[str, Considered]) -> tuple[Considered, ...]:
    """The rows, all with a verdict.

    Args:    taken: by site, the row that the plan takes there.
    """
    return tuple(row if row.verdict else replace(row, verdict=_verdict(row, taken.get(row.site))) for row in rows)


def _verdict(row: Considered, taken: Considered | None) -> str:
    """Of a proposal that the search could choose."""
    if taken is row:
        return TAKEN
    if taken is None:
        return "the site stays as it is: what this moves the output by is better spent, or spared, elsewhere"
    name = f"{taken.rule} {taken.block}"
    if _less(taken.error, row.error):
        return f"{name} moves the output less: {taken.error:.3g} against {row.error:.3g}"
    if _less(taken.latency_ms, row.latency_ms):
        return f"{name} is faster: {taken.latency_ms:.3g} ms against {row.latency_ms:.3g} ms"
    return f"{name} served the network as a whole better"


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other
