"""What each layer became, and why: its picture, what else was offered, and why that was not taken."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from html import escape

from reconv.costing.summary import Summary
from reconv.drawing.picture import picture
from reconv.errors import ConvError
from reconv.planning.considered import TAKEN, Considered
from reconv.planning.plan import Edit, Plan
from reconv.reporting.costs import cost_of, rows_of
from reconv.reporting.html import fold, inline, measured, named, number, table
from reconv.reporting.seen import Seen
from reconv.ruleset import rule_named
from reconv.spec import Block, output_shape

MOST = 12  # proposals of a layer that are listed; plan.json has all
Shape = tuple[int, ...]


def changed(before: Summary | None, after: Summary | None, plan: Plan, seen: Seen) -> str:
    """The layers with edits: a table, and one after the other."""
    groups = _by_site(plan, before)
    if not groups:
        return edits(before, after, plan)
    how = "" if seen.scores else ("<p class='note'>The score with each layer rewritten alone: <code>reconv report "
                                  "RUN_FOLDER --evaluate module:callable</code>.</p>")  # fmt: skip
    return (edits(before, after, plan, seen) + how + "<h2>Layer by layer</h2>"
            + _cards(groups, before, after, plan))  # fmt: skip


def edits(before: Summary | None, after: Summary | None, plan: Plan, seen: Seen | None = None) -> str:
    """What each layer became, as a table."""
    groups, seen = _by_site(plan, before), seen or Seen()
    if not groups:
        return "<h2>Layers</h2><p>No layer was changed.</p>"
    rows = [_cells(site, made, before, after, plan, seen) for site, made in groups.items()]
    notes = ["Error alone: ‖student − teacher‖ / ‖teacher‖ of the network's output with this layer alone rewritten, "
             "not recovered."]  # fmt: skip
    if seen.apart:
        notes.append("Own error: the same of what the layer gives in the final network, on the samples.")
    if before is not None:
        notes.append("± is half of the range in which the middle half of all calls lies.")
    shown = table(list(rows[0]), [list(row.values()) for row in rows], numbers=range(4, 9), codes=(0, 1, 2), long=(2,))
    return f"<h2>What each layer became</h2>{shown}<p class='note'>{' '.join(notes)}</p>"


def unchanged(plan: Plan) -> str:
    """The layers that stay, and what was offered for them."""
    edited = {edit.site for edit in plan.edits}
    sites = [site for site in dict.fromkeys(one.site for one in plan.considered) if site not in edited]
    if not sites:
        return ""
    parts = [fold(f"<code>{escape(named(site))}</code> <span>{_offers(plan.explain(site))}</span>",
                  _considered(plan.explain(site)), "layer") for site in sites]  # fmt: skip
    return "<h2>Layers that stay as they are</h2>" + "".join(parts)


def _by_site(plan: Plan, before: Summary | None) -> dict[str, list[Edit]]:
    """In the order in which the layers run, where that is known."""
    groups: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        groups.setdefault(edit.site, []).append(edit)
    order = {row.name: i for i, row in reversed(list(enumerate(before.rows if before else ())))}

    def place(site: str) -> int:
        return min((order[row.name] for row in rows_of(before, site)), default=len(order))

    return {site: groups[site] for site in sorted(groups, key=place)}


# -- the table ----------------------------------------------------------------------------------------------
def _cells(site: str, edits: Sequence[Edit], before: Summary | None, after: Summary | None, plan: Plan,
           seen: Seen) -> dict[str, str]:  # fmt: skip
    """By the head of their column; columns of what was not looked at are left out."""
    was, now = cost_of(before, site), cost_of(after, site)
    errors = [edit.error for edit in edits if edit.error is not None]
    latency = next((edit.latency_ms for edit in reversed(edits) if edit.latency_ms is not None), None)
    cells = {"layer": named(site), "was": _spec_text(before, site) or plan.sites.get(site, ""),
             "became": str(edits[-1].block), "rules": ", ".join(edit.rule for edit in edits),
             "error alone": number(max(errors, default=None))}  # fmt: skip
    if before is not None:
        cells["was, ms"] = measured(was.latency_ms, was.spread_ms) if was else "unknown"
    timed = now is not None and now.latency_ms is not None
    cells["now, ms"] = measured(now.latency_ms, now.spread_ms) if now and timed else number(latency)
    cells |= {"own error": number(seen.apart.get(site))} if seen.apart else {}
    return cells | ({"score alone": number(seen.scores.get(site))} if seen.scores else {})


def _spec_text(before: Summary | None, site: str) -> str:
    specs = dict.fromkeys(str(row.spec) for row in rows_of(before, site))
    return next(iter(specs)) if len(specs) == 1 else f"{len(specs)} convolutions" if specs else ""


# -- one layer ----------------------------------------------------------------------------------------------
def _cards(groups: Mapping[str, Sequence[Edit]], before: Summary | None, after: Summary | None, plan: Plan) -> str:
    """A picture that several layers share is drawn for the first of them."""
    drawn: dict[object, tuple[str, str]] = {}
    parts = []
    for count, (site, edits) in enumerate(groups.items(), 1):
        name = f"layer-{count}"
        blocks = _blocks(site, edits, before)
        first = drawn.setdefault(tuple(blocks), (name, site))
        if first[0] == name:
            label = f"{named(site)}, before and after"
            shown = f'<div class="wide">{inline(picture(blocks, label))}</div>'
        else:
            shown = f'<p>The same picture as of <a href="#{first[0]}"><code>{escape(named(first[1]))}</code></a>.</p>'
        offers = tuple(one for one in plan.considered if one.site == site)
        body = shown + _why(site, edits, offers, before) + _considered(offers)
        parts.append(fold(_title(site, edits, before, after), body, "layer", name))
    return "".join(parts)


def _title(site: str, edits: Sequence[Edit], before: Summary | None, after: Summary | None) -> str:
    was, now = cost_of(before, site), cost_of(after, site)
    figures = ""
    if was and now and was.latency_ms is not None and now.latency_ms is not None:
        figures = f"{was.latency_ms:.3g} → {now.latency_ms:.3g} ms"
    elif was and now:
        figures = f"{number(was.macs)} → {number(now.macs)} MACs"
    rules = ", ".join(edit.rule for edit in edits)
    return f'<code>{escape(named(site))}</code> <span>{escape(rules)}</span> <span class="number">{figures}</span>'


def _blocks(site: str, edits: Sequence[Edit], before: Summary | None) -> list[tuple[str, Block, Shape | None]]:
    """What to draw; with the input, where it is one that the block takes."""
    rows = list(rows_of(before, site))
    blocks = [("before", rows[0].spec)] if len(rows) == 1 else []
    shape = rows[0].input_shape if rows else ()
    return [(title, block, shape if _takes(block, shape) else None)
            for title, block in (*blocks, ("after", edits[-1].block))]  # fmt: skip


def _takes(block: Block, shape: Shape) -> bool:
    try:
        output_shape(block, shape)
    except ConvError:
        return False
    return True


def _why(site: str, edits: Sequence[Edit], offers: Sequence[Considered], before: Summary | None) -> str:
    """Each rule's own words, and the figures that it was taken for."""
    parts = []
    for edit in edits:
        rule = rule_named(edit.rule)
        text = (inspect.getdoc(type(rule)) or "").split("\n\n")[0] if rule else ""
        known = f" ({rule.group}; {rule.source})" if rule else ""
        also = f" It also changes {len(edit.also)} other modules." if edit.also else ""
        absorbed = f" It does the work of {', '.join(edit.absorbs)}, too." if edit.absorbs else ""
        parts.append(f"<p><strong>{escape(edit.rule)}</strong>{escape(known)}: {escape(text + absorbed + also)}</p>")
    taken = next((one for one in offers if one.verdict == TAKEN), None)
    if taken is None:
        return "".join(parts)
    was = cost_of(before, site)
    spent = "" if taken.latency_ms is None else f" It takes {taken.latency_ms:.3g} ms"
    if spent and was and was.latency_ms is not None:
        spent += f" where the layer took {was.latency_ms:.3g} ms"
    moved = "" if taken.error is None else f" Alone it moves the output of the network by {taken.error:.3g}."
    what = f"<code>{escape(str(taken.block))}</code> of {escape(taken.rule)}"
    return "".join(parts) + f"<p>{_offers(offers)}; {what} was taken.{spent}{'.' if spent else ''}{moved}</p>"


def _offers(offers: Sequence[Considered]) -> str:
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
