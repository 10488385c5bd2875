"""`report.html`: one self-contained page that says what a run did. No scripts, nothing fetched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from reconv.costing.summary import Summary, Totals
from reconv.plain import escape
from reconv.planning.plan import Plan
from reconv.reporting.again import again
from reconv.reporting.costs import LATENCY, costs_svg, unit_of
from reconv.reporting.front import front_svg
from reconv.reporting.html import codes, fold, inline, measured, number, table
from reconv.reporting.layers import changed, unchanged
from reconv.reporting.looks import looks
from reconv.reporting.seen import Seen
from reconv.reporting.style import STYLE

TITLES = (("latency_ms", "latency, ms"), ("params", "parameters"), ("macs", "multiply-accumulates"),
          ("activation_bytes", "activations, bytes"))  # fmt: skip


def page(
    before: Summary | None,
    after: Summary | None,
    plan: Plan,
    settings: Mapping[str, Any],
    error: float | None = None,
    seen: Seen | None = None,
) -> str:
    """The report of a run as HTML. Everything that comes from outside is escaped."""
    seen = seen or Seen()
    name = str((settings.get("model") or plan.model or {}).get("ref") or "a network")
    body = [f"<h1>{escape(name)}</h1>", verdict(plan, settings), _facts(before, after, plan, error, settings),
            costs(before, after), figures(before, after, plan, error, settings), _front(plan),
            changed(before, after, plan, seen), unchanged(plan), _refusals(plan), looks(seen),
            _convolutions(before, after), again(settings)]  # fmt: skip
    return _document(name, body)


def summary_page(found: Summary, name: str) -> str:
    """What each convolution of a network costs, as a page."""
    strip = f'<figure class="wide">{inline(costs_svg(found, None))}</figure>'
    rows = f'<div class="wide">{found._repr_html_()}</div>'
    return _document(name, [f"<h1>{escape(name)}</h1>", strip, "<h2>Every convolution</h2>", rows])


def _document(name: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>reconv: {escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def verdict(plan: Plan, settings: Mapping[str, Any]) -> str:
    layers = len({edit.site for edit in plan.edits})
    changes = f"{layers} {'layer' if layers == 1 else 'layers'} changed, {plan.layout} memory layout, on {plan.target}."
    if settings.get("stopped"):
        changes += " The run was stopped: these are the figures of the best so far, not timed."
    if not plan.budget:
        return f"<p>{escape(changes)}</p>"
    verdict = "is met" if plan.met else "is not met"
    why = f" {plan.reason}" if plan.reason else ""
    return (
        f'<p>The budget <code>{escape(plan.budget)}</code> <strong class="{"met" if plan.met else "unmet"}">{verdict}'
        f"</strong>.{escape(why)} {escape(changes)}</p>"
    )


# -- the whole network ----------------------------------------------------------------------------------------
def _facts(before: Summary | None, after: Summary | None, plan: Plan, error: float | None,
           settings: Mapping[str, Any]) -> str:  # fmt: skip
    """What one looks for first, large."""
    facts = []
    for name, title in TITLES[:3]:
        old, new = (getattr(one.network, name) if one else None for one in (before, after))
        ratio = plan.latency_ratio if name == "latency_ms" and plan.latency_ratio is not None else _share(old, new)
        if ratio is not None and old is not None and new is not None:
            facts.append((f"×{ratio:.3g}", title.split(",")[0], f"{number(old)} → {number(new)}"
                          + (" ms" if name == "latency_ms" else "")))  # fmt: skip
    if scores := _scores(settings):
        facts.append((f"{scores[1] - scores[0]:+.3g}", "score", f"{number(scores[0])} → {number(scores[1])}"))
    if error is not None:
        share = f"{100 * error:.3g} %" if error >= 1e-4 or not error else "< 0.01 %"
        facts.append((share, "error of the output", "‖student − teacher‖ / ‖teacher‖"))
    items = "".join(f"<li><strong>{escape(figure)}</strong>{title}<br><span class='note'>{escape(how)}</span></li>"
                    for figure, title, how in facts)  # fmt: skip
    return f'<ul class="facts">{items}</ul>' if facts else ""


def _scores(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    found = settings.get("result", settings)
    scores = found.get("scores") if isinstance(found, Mapping) else None
    return (scores[0], scores[1]) if scores else None


def costs(before: Summary | None, after: Summary | None) -> str:
    """The strips."""
    known = [one for one in (before, after) if one is not None]
    if not any(one.rows for one in known):
        return ""
    what = "milliseconds, both networks on one scale" if unit_of(*known) == LATENCY else "multiply-accumulates"
    timed = (" Each convolution was timed by itself: in the network they may take less than their sum, where several "
             "are computed in one call.") if unit_of(*known) == LATENCY else ""  # fmt: skip
    return (f"<h2>Where the cost lies</h2><p class='note'>Areas are {what}.{timed}</p>"
            f'<figure class="wide">{inline(costs_svg(before, after))}</figure>')  # fmt: skip


def figures(before: Summary | None, after: Summary | None, plan: Plan, error: float | None,
             settings: Mapping[str, Any]) -> str:  # fmt: skip
    """The whole network, before and after. The ratio of latencies is the interleaved one, where it is known."""
    old, new = (summary.network if summary else None for summary in (before, after))
    rows = [_compared(title, old, new, name) for name, title in TITLES]
    if plan.latency_ratio is not None and after is not None and after.network.latency_ms is not None:
        rows[0][0], rows[0][-1] = "latency, ms (ratio: interleaved)", number(plan.latency_ratio)
    rows.append(["error of the output", "", number(error), ""])
    if scores := _scores(settings):
        rows.append(["score", *map(number, scores), ""])
    return "<h2>The network</h2>" + table(("", "before", "after", "after / before"), rows, numbers=(1, 2, 3))


def _compared(title: str, old: Totals | None, new: Totals | None, name: str) -> list[str]:
    values = [getattr(totals, name) if totals else None for totals in (old, new)]
    spreads = [totals.latency_spread_ms if totals and name == "latency_ms" else None for totals in (old, new)]
    partial = ["≥ " if totals and totals.states.get(name) == "partial" else "" for totals in (old, new)]
    share = None if any(partial) else _share(*values)
    shown = [mark + measured(value, spread) for mark, value, spread in zip(partial, values, spreads, strict=True)]
    return [title, *shown, number(share)]


def _share(old: float | None, new: float | None) -> float | None:
    return new / old if old and new is not None else None


# -- the rest -------------------------------------------------------------------------------------------------
def _front(plan: Plan) -> str:
    """The trade-off, where the search measured more than the plan itself."""
    if len(plan.front) < 2:
        return ""
    return f'<h2>The trade-off</h2><figure class="wide front">{inline(front_svg(plan))}</figure>'


def _refusals(plan: Plan) -> str:
    """Grouped: one reason often serves many layers."""
    if not plan.refusals:
        return ""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for refusal in plan.refusals:
        groups[refusal.rule, refusal.reason].append(refusal.site)
    parts = [fold(f"{escape(rule)}: {escape(reason)} ({len(sites)})", f"<p>{codes(sites)}</p>")
             for (rule, reason), sites in groups.items()]  # fmt: skip
    return "<h2>What was refused, and why</h2>" + "".join(parts)


def _convolutions(before: Summary | None, after: Summary | None) -> str:
    if before is None and after is None:
        return ""
    return "<h2>Every convolution</h2>" + _rows("Before", before) + _rows("After", after)


def _rows(title: str, summary: Summary | None) -> str:
    return "" if summary is None else fold(title, f'<div class="wide">{summary._repr_html_()}</div>')
