"""Where the cost of a network lies, before and after, as strips."""

from __future__ import annotations

from reconv.costing.render import human
from reconv.costing.summary import Row, Summary
from reconv.drawing.strip import REST, Cell, Strip, strip
from reconv.reporting.html import measured, named

MACS, LATENCY = "MACs", "ms"


def unit_of(*summaries: Summary) -> str:
    """Milliseconds where every convolution of all was timed."""
    timed = all(row.latency_ms is not None for summary in summaries for row in summary.rows)
    return LATENCY if timed else MACS


def costs_svg(before: Summary | None, after: Summary | None) -> str:
    """Both networks as strips on one scale."""
    known = [(name, one) for name, one in (("before", before), ("after", after)) if one is not None]
    known = known if len(known) > 1 else [("the network", one) for _, one in known]
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
