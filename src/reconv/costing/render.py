"""A summary as a terminal table, plain data, CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table

from reconv.plain import cell, plain
from reconv.plain import escape as escaped
from reconv.spec import ConvSpec

if TYPE_CHECKING:
    from reconv.costing.summary import Row, Summary, Totals

UNBOUNDED = 100_000  # columns, to ask how wide a table would like to be
COLUMNS = ("name", "kind", "spec", "input_shape", "weight_shape", "output_shape", "params", "macs",
           "receptive_field", "activation_bytes", "latency_ms")  # fmt: skip


def as_dict(summary: Summary) -> dict[str, Any]:
    """Plain data, ready for JSON."""
    return {
        "target": summary.target,
        "rows": [_row_dict(row) for row in summary.rows],
        "total": _totals_dict(summary.total),
        "network": _totals_dict(summary.network),
    }


def _figure(value: Any, spread: float | None = None, state: str | None = None) -> dict[str, Any]:
    return {"value": value, "state": state or ("unavailable" if value is None else "complete"), "spread": spread}


def _row_dict(row: Row) -> dict[str, Any]:
    data: dict[str, Any] = {name: getattr(row, name) for name in COLUMNS}
    for name in ("input_shape", "weight_shape", "output_shape"):
        data[name] = list(data[name])
    data["spec"] = str(row.spec)
    data["receptive_field"] = _figure(list(row.receptive_field) if row.receptive_field else None)
    data["latency_ms"] = _figure(row.latency_ms, row.latency_spread_ms)
    return data


def _totals_dict(totals: Totals) -> dict[str, Any]:
    data: dict[str, Any] = {"params": totals.params}
    data["macs"] = _figure(totals.macs, state=totals.states.get("macs"))
    data["activation_bytes"] = _figure(totals.activation_bytes, state=totals.states.get("activation_bytes"))
    data["latency_ms"] = _figure(totals.latency_ms, totals.latency_spread_ms, totals.states.get("latency_ms"))
    return data


def from_dict(data: Mapping[str, Any]) -> Summary:
    """The inverse of `as_dict`; raises KeyError, TypeError, ValueError or ConvError where it is none.

    Of sums a spread is known for the latency only, as of rows.
    """
    from reconv.costing.summary import Summary

    rows = tuple(map(_row_of, data["rows"]))
    return Summary(rows, _totals_of(data["total"]), _totals_of(data["network"]), data["target"])


def _row_of(data: Mapping[str, Any]) -> Row:
    from reconv.costing.summary import Row

    known: dict[str, Any] = {name: data[name] for name in COLUMNS}
    for name in ("input_shape", "weight_shape", "output_shape"):
        known[name] = tuple(map(int, known[name]))
    field, latency = known["receptive_field"]["value"], known["latency_ms"]
    known |= {"spec": ConvSpec.parse(known["spec"]), "receptive_field": tuple(field) if field else None,
              "latency_ms": latency["value"], "latency_spread_ms": latency["spread"]}  # fmt: skip
    return Row(**known)


def _totals_of(data: Mapping[str, Any]) -> Totals:
    from reconv.costing.summary import Totals

    names = ("macs", "activation_bytes", "latency_ms")
    states = {"params": "complete"} | {name: str(data[name]["state"]) for name in names}
    macs, activation_bytes, latency_ms = (data[name]["value"] for name in names)
    return Totals(int(data["params"]), macs, activation_bytes, latency_ms, data["latency_ms"]["spread"], states)


def _cells(summary: Summary) -> list[list[str]]:
    """The rows as text, then the two lines of totals."""
    lines = [[_text(getattr(row, name)) for name in COLUMNS] for row in summary.rows]
    for title, totals in (("all convolutions", summary.total), ("whole network", summary.network)):
        known = {"name": title} | {n: _text(getattr(totals, n)) for n in
                                   ("params", "macs", "activation_bytes", "latency_ms")}  # fmt: skip
        known |= {n: f"≥ {known[n]}" for n, state in totals.states.items() if state == "partial"}
        lines.append([known.get(name, "") for name in COLUMNS])
    return lines


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return "×".join(str(v) for v in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def as_csv(summary: Summary) -> str:
    """One line a convolution call; an unknown figure is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in summary.rows:
        writer.writerow(["" if (v := getattr(row, n)) is None else plain(_text(v)) for n in COLUMNS])
    return out.getvalue()


def as_markdown(summary: Summary) -> str:
    """A Markdown table with the totals."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    rule = line(["---"] * 6 + ["---:"] * 5)
    return "\n".join([line(COLUMNS), rule, *(line(c) for c in _cells(summary))]) + "\n"


SHOWN = (("name", "convolution"), ("kind", "kind"), ("spec", "spec"), ("input_shape", "input"),
         ("output_shape", "output"), ("params", "params"), ("macs", "MACs"), ("receptive_field", "sees"),
         ("latency_ms", "ms"))  # fmt: skip


SPARED = ("input_shape", "kind", "output_shape")  # left out one by one where the terminal is narrow


@dataclass(frozen=True)
class Fitting:
    """A rich table for terminals, what a person looks at first, with as many columns as there is room for."""

    summary: Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for count in range(len(SPARED) + 1):
            table = as_table(self.summary, SPARED[:count])
            if table.__rich_measure__(console, options.update(width=UNBOUNDED)).maximum <= options.max_width:
                break
        yield table


def as_table(summary: Summary, without: Sequence[str] = ()) -> Table:
    """The rows and totals as a rich table."""
    timed = summary.target is not None
    title = f"convolutions, timed on {summary.target}" if timed else "convolutions"
    shown = [column for column in SHOWN if column[0] not in without and (timed or column[0] != "latency_ms")]
    left_out = [head for name, head in SHOWN if name in without]
    table = Table(
        title=escape(plain(title)), title_justify="left",
        caption=f"no room for: {', '.join(left_out)}" if left_out else None, caption_justify="left",
    )  # fmt: skip
    for name, head in shown:
        table.add_column(head, justify="left" if name in ("name", "kind", "spec") else "right", overflow="fold")
    for row in summary.rows:
        table.add_row(*(escape(plain(_short(name, getattr(row, name)))) for name, _ in shown))
    table.add_section()
    for title, totals in (("all convolutions", summary.total), ("whole network", summary.network)):
        cells = [title if name == "name" else _total_cell(totals, name) for name, _ in shown]
        table.add_row(*cells, style="bold")
    return table


def _total_cell(totals: Totals, name: str) -> str:
    if name not in ("params", "macs", "latency_ms"):
        return ""
    return ("≥ " if totals.states.get(name) == "partial" else "") + _short(name, getattr(totals, name))


def _short(name: str, value: Any) -> str:
    if value is not None and name in ("params", "macs"):
        return human(value)
    return _text(value)


def human(count: float) -> str:
    """1234567 -> 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def as_html(summary: Summary) -> str:
    """A plain HTML table; every name is escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        styles = [""] * 6 + [' style="text-align: right"'] * 5  # words, then figures
        parts = (f"<{tag}{style}>{escaped(c)}</{tag}>" for c, style in zip(cells, styles, strict=True))
        return "<tr>" + "".join(parts) + "</tr>"

    head = line([c.replace("_", " ") for c in COLUMNS], "th")
    body = "".join(line(cells, "td") for cells in _cells(summary))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
