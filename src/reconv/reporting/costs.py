"""Where the cost of a network lies, before and after: as a strip, and by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reconv.costing.render import human
from reconv.costing.summary import Row, Summary
from reconv.drawing.strip import REST, Cell, Strip, strip
from reconv.reporting.html import measured, named

MACS, LATENCY = "MACs", "ms"


@dataclass(frozen=True)
class Cost:
    """Of one layer, over all of its convolution calls; None where a part is unknown."""

    latency_ms: float | None
    spread_ms: float | None
    macs: int
    params: int


def cost_of(summary: Summary | None, site: str) -> Cost | None:
    """Of a layer and what is inside of it; None where it does not run."""
    rows = list(rows_of(summary, site))
    if not rows:
        return None
    known = [row.latency_ms for row in rows if row.latency_ms is not None]
    spreads = [row.latency_spread_ms or 0.0 for row in rows]
    whole = len(known) == len(rows)
    spread = sum(s * s for s in spreads) ** 0.5 if whole else None
    return Cost(sum(known) if whole else None, spread, sum(row.macs for row in rows), sum(row.params for row in rows))


def rows_of(summary: Summary | None, site: str) -> Iterator[Row]:
    for row in summary.rows if summary else ():
        if row.name == site or row.name.startswith(f"{site}.") or not site:
            yield row


def unit_of(*summaries: Summary) -> str:
    """Milliseconds where every convolution of all was timed."""
    timed = all(row.latency_ms is not None for summary in summaries for row in summary.rows)
    return LATENCY if timed else MACS


def costs_svg(before: Summary | None, after: Summary | None) -> str:
    """Both networks as strips on one scale."""
    known = [(name, one) for name, one in (("before", before), ("after", after)) if one is not None]
    unit = unit_of(*(one for _, one in known))
    strips = [Strip(name, [*(_cell(row, unit) for row in one.rows), *_rest(one, unit)]) for name, one in known]
    totals = ", ".join(f"{one.title} {one.cost:.3g} {unit}" for one in strips)
    return strip(strips, f"The convolutions as areas of their {unit}: {totals}", unit)


def _cell(row: Row, unit: str) -> Cell:
    told = [str(row.spec), f"{human(row.macs)} MACs", f"{human(row.params)} parameters"]
    if row.latency_ms is not None:
        told.insert(1, f"{measured(row.latency_ms, row.latency_spread_ms)} ms")
    short = "×".join(map(str, row.spec.kernel_size))
    cost = row.latency_ms if unit == LATENCY else float(row.macs)
    return Cell(named(row.name), row.kind, cost or 0.0, short, ", ".join(told))


def _rest(summary: Summary, unit: str) -> list[Cell]:
    """What the network takes beyond its convolutions, where it is known to be more."""
    name = "latency_ms" if unit == LATENCY else "macs"
    whole, parts = getattr(summary.network, name), getattr(summary.total, name)
    return [Cell(REST, REST, whole - parts)] if whole is not None and parts is not None and whole > parts else []
