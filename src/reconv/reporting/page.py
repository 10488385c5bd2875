"""`report.html`: one self-contained page that says what a run did. No scripts, nothing fetched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from reconv.costing.render import human
from reconv.costing.summary import Summary, Totals
from reconv.planning.plan import Edit, Plan
from reconv.reporting.front import front_svg

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #f0a050; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.met { color: var(--good); } .unmet { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: linear-gradient(var(--soft), var(--soft)), Canvas; }
.number { text-align: right; } td.number { white-space: nowrap; }
.wide code { white-space: nowrap; } .wide .long { min-width: 18rem; overflow-wrap: anywhere; }
.wide .long code { white-space: normal; }
.wide tr > :first-child { position: sticky; left: 0; background-color: Canvas; }
figure { margin: 0; } figure svg { max-width: 50rem; }
summary { cursor: pointer; padding: .3rem 0; }
"""


def page(
    before: Summary | None, after: Summary | None, plan: Plan, settings: Mapping[str, Any], error: float | None = None
) -> str:
    """The report of a run as HTML. Everything that comes from outside is escaped."""
    name = str((settings.get("model") or plan.model or {}).get("ref") or "a network")
    body = [f"<h1>{escape(name)}</h1>", _verdict(plan), _figures(before, after, plan, error, settings),
            _front(plan), _edits(before, plan), _refusals(plan), _convolutions(before, after),
            _settings(settings)]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>reconv: {escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _verdict(plan: Plan) -> str:
    changed = f"{len(plan.edits)} {'change' if len(plan.edits) == 1 else 'changes'}, {plan.layout} memory layout."
    if not plan.budget:
        return f"<p>{escape(changed)}</p>"
    verdict = "is met" if plan.met else "is not met"
    why = f" {plan.reason}" if plan.reason else ""
    return (
        f'<p>The budget <code>{escape(plan.budget)}</code> <strong class="{"met" if plan.met else "unmet"}">{verdict}'
        f"</strong>.{escape(why)} {escape(changed)}</p>"
    )


def _figures(
    before: Summary | None, after: Summary | None, plan: Plan, error: float | None, settings: Mapping[str, Any]
) -> str:
    """The whole network, before and after. The ratio of latencies is the interleaved one, where it is known."""
    old, new = (summary.network if summary else None for summary in (before, after))
    rows = [_compared(title, old, new, name) for title, name in
            (("latency, ms", "latency_ms"), ("parameters", "params"), ("multiply-accumulates", "macs"),
             ("activations, bytes", "activation_bytes"))]  # fmt: skip
    if plan.latency_ratio is not None and after is not None and after.network.latency_ms is not None:
        rows[0][0], rows[0][-1] = "latency, ms (ratio: interleaved)", _figure(plan.latency_ratio)
    rows.append(["error of the output", "", _figure(error), ""])
    scores = settings.get("result", settings).get("scores")
    if scores:
        rows.append(["score", *map(_figure, scores), ""])
    return "<h2>The network</h2>" + _table(("", "before", "after", "after / before"), rows, numbers=(1, 2, 3))


def _compared(title: str, old: Totals | None, new: Totals | None, name: str) -> list[str]:
    values = [getattr(totals, name) if totals else None for totals in (old, new)]
    partial = ["≥ " if totals and totals.states.get(name) == "partial" else "" for totals in (old, new)]
    ratio = values[1] / values[0] if values[0] and values[1] is not None and not any(partial) else None
    shown = [mark + _figure(value) for mark, value in zip(partial, values, strict=True)]
    return [title, *shown, _figure(ratio)]


def _front(plan: Plan) -> str:
    """The trade-off, where the search measured more than the plan itself."""
    if len(plan.front) < 2:
        return ""
    return f'<h2>The trade-off</h2><figure class="wide">{front_svg(plan)}</figure>'


def _edits(before: Summary | None, plan: Plan) -> str:
    if not plan.edits:
        return "<h2>Layers</h2><p>No layer was changed.</p>"
    spec: dict[str, str] = {}
    latency: dict[str, float | None] = {}
    for row in before.rows if before else ():
        known = latency.get(row.name, 0.0)
        spec[row.name] = str(row.spec)
        latency[row.name] = None if row.latency_ms is None or known is None else known + row.latency_ms
    rows = [_edit_cells(edit, spec.get(edit.site, ""), latency.get(edit.site)) for edit in plan.edits]
    heads = ("layer", "was", "became", "rule", "error alone", "was, ms", "now, ms")
    return "<h2>What each layer became</h2>" + _table(heads, rows, numbers=(4, 5, 6), codes=(0, 1, 2), long=2)


def _edit_cells(edit: Edit, spec: str, latency_ms: float | None) -> list[str]:
    return [edit.site, spec, str(edit.block), edit.rule, _figure(edit.error), _figure(latency_ms),
            _figure(edit.latency_ms)]  # fmt: skip


def _refusals(plan: Plan) -> str:
    """Grouped: one reason often serves many layers."""
    if not plan.refusals:
        return ""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for refusal in plan.refusals:
        groups[refusal.rule, refusal.reason].append(refusal.site)
    parts = [f"<details><summary>{escape(rule)}: {escape(reason)} ({len(sites)})</summary>"
             f"<p>{', '.join(f'<code>{escape(site)}</code>' for site in sites)}</p></details>"
             for (rule, reason), sites in groups.items()]  # fmt: skip
    return "<h2>What was refused, and why</h2>" + "".join(parts)


def _convolutions(before: Summary | None, after: Summary | None) -> str:
    if before is None and after is None:
        return ""
    return "<h2>Every convolution</h2>" + _rows("Before", before) + _rows("After", after)


def _rows(title: str, summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f'<details><summary>{title}</summary><div class="wide">{summary._repr_html_()}</div></details>'


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [[name, value] for name, value in _flat(settings)]
    return "<h2>Settings and versions</h2>" + _table(("setting", "value"), rows, codes=(1,), long=1)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (),
           codes: Sequence[int] = (), long: int | None = None) -> str:  # fmt: skip
    """`numbers` and `codes` are columns; the column `long` may break its text."""

    def cell(column: int, text: str, tag: str = "td") -> str:
        shown = f"<code>{escape(text)}</code>" if column in codes and text and tag == "td" else escape(text)
        kind = "number" if column in numbers else "long" if column == long else ""
        return f'<{tag} class="{kind}">{shown}</{tag}>' if kind else f"<{tag}>{shown}</{tag}>"

    head = "".join(cell(i, text, "th") for i, text in enumerate(heads))
    body = "\n".join("<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figure(value: float | None) -> str:
    if value is None:
        return "unknown"
    return human(value) if isinstance(value, int) else f"{value:.3g}"
