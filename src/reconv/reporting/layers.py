"""What each layer became, and why: its picture, what else was offered, and why that was not taken."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from reconv.costing.summary import Row, Summary
from reconv.drawing.blocks import svg
from reconv.errors import ConvError
from reconv.plain import escape
from reconv.planning.considered import TAKEN, Considered
from reconv.planning.plan import Plan
from reconv.reporting.changes import Change, by_site, changes
from reconv.reporting.html import fold, inline, measured, named, number, table
from reconv.reporting.seen import Seen
from reconv.ruleset import rule_named
from reconv.spec import Block, output_shape

MOST = 12  # proposals of a layer that are listed; plan.json has all
PARAGRAPH = "\n\n"  # ends one
Shape = tuple[int, ...]


def changed(before: Summary | None, after: Summary | None, plan: Plan, seen: Seen) -> str:
    """The layers with edits: a table, and one after the other."""
    found = changes(before, after, plan)
    if not found:
        return _edits(found, plan, seen)
    how = "" if seen.scores else ("<p class='note'>The score with each layer rewritten alone: <code>reconv report "
                                  "RUN_FOLDER --evaluate module:callable</code>.</p>")  # fmt: skip
    return _edits(found, plan, seen) + how + "<h2>Layer by layer</h2>" + _cards(found)


def edits(before: Summary | None, after: Summary | None, plan: Plan, seen: Seen | None = None) -> str:
    """What each layer became, as a table."""
    return _edits(changes(before, after, plan), plan, seen or Seen())


def unchanged(plan: Plan) -> str:
    """The layers that stay, and what was offered for them."""
    edited = {edit.site for edit in plan.edits}
    parts = [fold(f"<code>{escape(named(site))}</code> <span>{_count(offers)}</span>", _considered(offers), "layer")
             for site, offers in by_site(plan.considered).items() if site not in edited]  # fmt: skip
    return "<h2>Layers that stay as they are</h2>" + "".join(parts) if parts else ""


# -- the table ----------------------------------------------------------------------------------------------
def _edits(found: Sequence[Change], plan: Plan, seen: Seen) -> str:
    if not found:
        return "<h2>Layers</h2><p>No layer was changed.</p>"
    compared = any(change.was for change in found)
    rows = [_cells(change, plan, seen, compared) for change in found]
    notes = ["Error alone: ‖student − teacher‖ / ‖teacher‖ of the network's output with this layer alone rewritten, "
             "not recovered."]  # fmt: skip
    if seen.apart:
        notes.append("Own error: the same of what the layer gives in the final network, on the samples.")
    if compared:
        notes.append("± is half of the range in which the middle half of all calls lies.")
    shown = table(list(rows[0]), [list(row.values()) for row in rows], numbers=range(4, 9), codes=(0, 1, 2), long=(2,))
    return f"<h2>What each layer became</h2>{shown}<p class='note'>{' '.join(notes)}</p>"


def _cells(change: Change, plan: Plan, seen: Seen, compared: bool) -> dict[str, str]:
    """By the head of their column; columns of what was not looked at are left out."""
    site, was, now = change.site, change.was, change.now
    errors = [edit.error for edit in change.edits if edit.error is not None]
    planned = [edit.latency_ms for edit in change.edits if edit.latency_ms is not None]
    cells = {"layer": named(site), "was": _spec_text(change.rows) or plan.sites.get(site, ""),
             "became": str(change.became), "rules": change.rules,
             "error alone": number(max(errors, default=None))}  # fmt: skip
    if compared:
        cells["was, ms"] = measured(was.latency_ms, was.spread_ms) if was else "unknown"
    if now is not None and now.latency_ms is not None:
        cells["now, ms"] = measured(now.latency_ms, now.spread_ms)
    else:
        cells["now, ms"] = number(planned[-1] if planned else None)
    cells |= {"own error": number(seen.apart.get(site))} if seen.apart else {}
    return cells | ({"score alone": number(seen.scores.get(site))} if seen.scores else {})


def _spec_text(rows: Sequence[Row]) -> str:
    specs = dict.fromkeys(str(row.spec) for row in rows)
    return next(iter(specs)) if len(specs) == 1 else f"{len(specs)} convolutions" if specs else ""


# -- one layer ----------------------------------------------------------------------------------------------
def _cards(found: Sequence[Change]) -> str:
    """A picture that several layers share is drawn for the first of them."""
    drawn: dict[object, tuple[str, str]] = {}
    words = {name: _words(name) for name in {edit.rule for change in found for edit in change.edits}}
    parts = []
    for count, change in enumerate(found, 1):
        name, blocks = f"layer-{count}", _blocks(change)
        first, like = drawn.setdefault(tuple(blocks), (name, named(change.site)))
        if first == name:
            shown = f'<div class="wide">{inline(svg(blocks, f"{named(change.site)}, before and after"))}</div>'
        else:
            shown = f'<p>The same picture as of <a href="#{first}"><code>{escape(like)}</code></a>.</p>'
        parts.append(fold(_title(change), shown + _why(change, words) + _considered(change.offers), "layer", name))
    return "".join(parts)


def _title(change: Change) -> str:
    was, now, figures = change.was, change.now, ""
    if was and now and was.latency_ms is not None and now.latency_ms is not None:
        figures = f"{number(was.latency_ms)} → {number(now.latency_ms)} ms"
    elif was and now:
        figures = f"{number(was.macs)} → {number(now.macs)} MACs"
    return (f"<code>{escape(named(change.site))}</code> <span>{escape(change.rules)}</span> "
            f'<span class="number">{figures}</span>')  # fmt: skip


def _blocks(change: Change) -> list[tuple[str, Block, Shape | None]]:
    """What to draw; with the input, where it is one that the block takes."""
    rows = change.rows
    blocks = [("before", rows[0].spec)] if len(rows) == 1 else []
    shape = rows[0].input_shape if rows else ()
    return [(title, block, shape if _takes(block, shape) else None)
            for title, block in (*blocks, ("after", change.became))]  # fmt: skip


def _takes(block: Block, shape: Shape) -> bool:
    try:
        output_shape(block, shape)
    except ConvError:
        return False
    return True


def _words(name: str) -> str:
    """A rule's group, source and first paragraph; nothing where it is not known here, or cannot be used."""
    try:
        rule = rule_named(name)
    except ConvError:
        rule = None
    return f" ({rule.group}; {rule.source}): {(inspect.getdoc(type(rule)) or '').split(PARAGRAPH)[0]}" if rule else "."


def _why(change: Change, words: Mapping[str, str]) -> str:
    """Each rule's own words, and the figures that it was taken for."""
    parts = []
    for edit in change.edits:
        also = f" It also changes {', '.join(name for name, _ in edit.also)}." if edit.also else ""
        absorbed = f" It does the work of {', '.join(edit.absorbs)}, too." if edit.absorbs else ""
        parts.append(f"<p><strong>{escape(edit.rule)}</strong>{escape(words[edit.rule] + absorbed + also)}</p>")
    taken = next((one for one in change.offers if one.verdict == TAKEN), None)
    if taken is None:
        return "".join(parts)
    was = change.was
    spent = "" if taken.latency_ms is None else f" It takes {number(taken.latency_ms)} ms"
    if spent and was and was.latency_ms is not None:
        spent += f" where the layer took {number(was.latency_ms)} ms"
    moved = "" if taken.error is None else f" Alone it moves the output of the network by {taken.error:.3g}."
    what = f"<code>{escape(str(taken.block))}</code> of {escape(taken.rule)}"
    return "".join(parts) + f"<p>{_count(change.offers)}; {what} was taken.{spent}{'.' if spent else ''}{moved}</p>"


def _count(offers: Sequence[Considered]) -> str:
    return f"{len(offers)} {'proposal was' if len(offers) == 1 else 'proposals were'} considered"


def _considered(offers: Sequence[Considered]) -> str:
    """Those that came furthest: what was taken, what was tried in the network, then the fastest."""
    if not offers:
        return ""
    order = sorted(offers, key=lambda one: (one.verdict != TAKEN, one.error is None, one.latency_ms is None,
                                            one.latency_ms or 0.0))  # fmt: skip
    rows = [[one.rule, str(one.block), number(one.latency_ms), number(one.fit_error), number(one.error), one.verdict]
            for one in order[:MOST]]  # fmt: skip
    known = [one.latency_ms for one in order[:MOST] if one.latency_ms is not None]
    notes = ["Below 0 ms: it makes other layers cheaper, too."] if min(known, default=0) < 0 else []
    notes += [f"{len(order) - MOST} more: reconv plan RUN_FOLDER --explain SITE."] if len(order) > MOST else []
    more = f"<p class='note'>{' '.join(notes)}</p>" if notes else ""
    return table(("rule", "block", "ms", "error of the fit", "error of the output", "why, or why not"), rows,
                 numbers=(2, 3, 4), codes=(1,), long=(1, 5)) + more  # fmt: skip
