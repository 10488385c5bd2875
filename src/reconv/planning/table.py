"""How the table is filled that a plan is chosen from: site × proposal, each measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from reconv.data import seeded
from reconv.layers import Absorbed
from reconv.planning.candidates import COSTS, Candidate, Table, costs
from reconv.planning.edits import filled
from reconv.planning.plan import Edit, Refusal
from reconv.planning.probe import Prefix, Probe, standing_in
from reconv.planning.together import beyond_sums
from reconv.planning.workbench import Workbench, cannot_run
from reconv.ruleset import Rule
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, parse, peak_bytes
from reconv.surgery import Site, clone
from reconv.surgery.kin import aliases, remade, text_of
from reconv.surgery.norms import after_normalising
from reconv.targets import to_layout

GAIN = 0.97  # a proposal must measure faster than this part of what stands there: timing is noisy
MOST_PER_SITE = 6  # proposals whose effect on the network's output is measured
MOST_PER_FORM = 3  # proposals of one form, which differ in how many channels they have, that are fitted
_CHANNELS = re.compile(r"(ic|oc|g|permute\(|shuffle\()\d+")
Progress = Callable[[str, int, int], None]  # (what, done, of how many)


def measure(bench: Workbench, rules: Iterable[Rule], layout: str, gains: Sequence[str], progress: Progress,
            required: Collection[str] = (), elsewhere: float = 0.0) -> Table:  # fmt: skip
    """Fills the table: times every proposal of every rule, fits those that gain, probes those on the front.

    Args:    gains: costs, in one of which a proposal must gain; none: it may cost what it wants.
             required: sites that must change, whatever that costs.
             elsewhere: the most bytes of activations alive while no convolution runs.
    """
    table, rules = Table(layout), tuple(rules)
    scene = _Scene(bench, layout)
    for done, site in enumerate(bench.sites.values()):
        progress("measuring proposals", done, len(bench.sites))
        key = ("row", layout, ",".join(gains), site.name in required, site.name)
        part = Table.from_dict(known) if (known := bench.remembered.get(*key)) else None
        if part is None:
            part = _site_table(bench, site, rules, gains, site.name in required, scene)
            bench.remembered.put(part.to_dict(), *key)
        table.add(part)
    stay = [call for call in bench.calls if call.name not in table.candidates]
    held = [c.beside_bytes + peak_bytes(c.spec, c.input_shape, c.dtype.itemsize) for c in stay]
    table.elsewhere = max([elsewhere, *held])
    edits = [c.edit for row in table.candidates.values() for c in row if c.edit]
    apart = beyond_sums(edits, lambda name: text_of(bench.original.get_submodule(name)) or "",
                        lambda name, text: _as(bench, name, text, layout))  # fmt: skip
    table.apart = {pair: more for pair, more in apart.items() if math.isfinite(more["latency"])}
    progress("measuring proposals", len(bench.sites), len(bench.sites))
    return table


@dataclass
class _Scene:
    """The network in a memory format, with what its convolutions gave; made when it is first asked for."""

    bench: Workbench
    layout: str

    @cached_property
    def model(self) -> nn.Module:
        return to_layout(clone(self.bench.original), self.layout)

    @cached_property
    def prefix(self) -> Prefix:
        return Prefix(self.model, self.bench.scout.batches)


def _site_table(bench: Workbench, site: Site, rules: Sequence[Rule], gains: Sequence[str], required: bool,
                scene: _Scene) -> Table:  # fmt: skip
    """The table of one site."""
    table = Table(scene.layout)
    wanted = () if required else gains
    kept, rows = _timed(bench, site, rules, wanted, table)
    if kept is not None:
        gaining = _gaining(site, rules, rows, kept, wanted, table)
        front = _fitted(bench, site, rules, gaining, gains, table)
        table.candidates[site.name] = [kept, *_probed(site, front, bench, scene, table)]
    return table


Row = tuple[Proposal, dict[str, float]]
Fitted = tuple[Proposal, dict[str, float], Weights]


def _timed(bench: Workbench, site: Site, rules: Sequence[Rule], gains: Sequence[str],
           table: Table) -> tuple[Candidate | None, list[Row]]:  # fmt: skip
    """What the site costs as it is (None where the engine cannot run that), and with each proposal that may win."""
    offers = _offers(site, rules, table)
    standing = bench.finished(site, site.block)
    pairs = [(p, bench.finished(site, p.block, p.absorbs)) for p in offers]
    if tuple(gains) == ("latency",):
        pairs = _hopeful(bench, site, rules, standing, pairs, table)
    now, *latencies = bench.latencies([standing, *(block for _, block in pairs)], site, table.layout)
    if isinstance(now, str):
        table.refusals.append(Refusal(site.name, "*", f"it stays as it is: {cannot_run(standing, now)}"))
        return None, []
    kept = Candidate(site.name, None, costs(site.block, site, now))
    rows = _able(bench, site, [p for p, _ in pairs], latencies, table)
    for proposal, cost in rows:
        table.note(site, proposal, latency_ms=cost["latency"], macs=cost["macs"], params=cost["params"],
                   memory=cost["weight_bytes"] + cost["peak_bytes"])  # fmt: skip
    return kept, rows


def _hopeful(bench: Workbench, site: Site, rules: Sequence[Rule], standing: Block,
             pairs: Sequence[tuple[Proposal, Block]], table: Table) -> list[tuple[Proposal, Block]]:  # fmt: skip
    """The proposals, each with the form that will run, that may be faster by what this machine can reach."""
    bounds = bench.bounds([block for _, block in pairs], site)
    most = GAIN * bench.about(standing, site, table.layout) if any(bounds) else math.inf
    least = {id(p): bound for (p, _), bound in zip(pairs, bounds, strict=True) if bound >= most and not p.also}
    for rule in rules:
        mine = [p for p, _ in pairs if p.rule == rule.name]
        if mine and all(id(p) in least for p in mine):
            best = min(least[id(p)] for p in mine)
            reason = f"no proposal can gain in latency: on this machine the best takes {best:.4g} ms at least"
            table.refusals.append(Refusal(site.name, rule.name, reason))
    for proposal, _ in pairs:
        if id(proposal) in least:
            reason = f"cannot be faster: at best {least[id(proposal)]:.4g} ms on this machine"
            table.note(site, proposal, verdict=reason)
    return [pair for pair in pairs if id(pair[0]) not in least]


def _able(bench: Workbench, site: Site, offers: Sequence[Proposal], latencies: Sequence[float | str],
          table: Table) -> list[Row]:  # fmt: skip
    """What each proposal costs; those that the engine cannot run are refused."""
    rows = []
    for proposal, ms in zip(offers, latencies, strict=True):
        if isinstance(ms, str):
            reason = cannot_run(proposal.block, ms)
        else:
            cost = _with(costs(proposal.block, site, ms), _beside(bench, proposal, table.layout))
            if math.isfinite(cost["latency"]):
                rows.append((proposal, cost))
                continue
            reason = f"the engine cannot run what changes with it: {', '.join(name for name, _ in proposal.also)}"
        table.refusals.append(Refusal(site.name, proposal.rule, reason))
        table.note(site, proposal, verdict=reason)
    return rows


def _gaining(site: Site, rules: Sequence[Rule], rows: Sequence[Row], kept: Candidate, gains: Sequence[str],
             table: Table) -> list[Row]:  # fmt: skip
    """The proposals that cost less than what stands there; and why the others, and whole rules, do not serve."""
    gaining = [(p, c) for p, c in rows if not gains or any(c[g] < GAIN * kept.costs[g] for g in gains)]
    for proposal, c in _lacking(rows, gaining):
        told = ", ".join(f"{g} {c[g]:.4g} against {kept.costs[g]:.4g}" for g in gains)
        table.note(site, proposal, verdict=f"gains nothing: {told}")
    winners = {p.rule for p, _ in gaining}
    for rule in rules:
        mine = [c for p, c in rows if p.rule == rule.name]
        if mine and rule.name not in winners:
            best, now = min(c[gains[0]] for c in mine), kept.costs[gains[0]]
            reason = f"no proposal gains in {gains[0]}: the best measured {best:.4g}, as it is {now:.4g}"
            table.refusals.append(Refusal(site.name, rule.name, reason))
    return gaining


def _fitted(bench: Workbench, site: Site, rules: Sequence[Rule], rows: Sequence[Row], gains: Sequence[str],
            table: Table) -> list[Fitted]:  # fmt: skip
    """The proposals whose effect on the network is worth measuring, with weights that are fitted as well as can be."""
    by_name = {rule.name: rule for rule in rules}
    known = {b for name, b, _ in bench.errors if name == site.name}
    sizes = _worth_fitting(rows, gains)
    fits = [(p, c, bench.weights_of(site, p, by_name[p.rule])) for p, c in sizes]
    for proposal, _, weights in fits:
        table.note(site, proposal, fit_error=weights.error)
    # what others lose besides must not hide what a site gains by itself
    fronts = [_front([f for f in fits if bool(f[0].also) == also]) for also in (False, True)]
    chosen = [one for front in fronts for one in _spread(front, known)]
    either = [*fronts[0], *fronts[1]]
    left = [(one, "other sizes of its form stand for it") for one in _lacking(rows, sizes)]
    left += [(one, "another fits as well and costs no more") for one in _lacking(fits, either)]
    left += [(one, "others near it on the front stand for it") for one in _lacking(either, chosen)]
    for one, reason in left:
        table.note(site, one[0], verdict=reason)
    refined = [(p, c, bench.refined(site, p, by_name[p.rule])) for p, c, _ in chosen]
    for proposal, _, weights in refined:
        table.note(site, proposal, fit_error=weights.error)
    return refined


def _lacking(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """The rows that a step left out."""
    left = {id(one[0]) for one in after}
    return [one for one in before if id(one[0]) not in left]


def _with(cost: dict[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {name: cost[name] + more.get(name, 0.0) for name in cost}


def _beside(bench: Workbench, proposal: Proposal, layout: str) -> dict[str, float]:
    """What the modules that change with a site cost more (or less), each in its own place.

    The latency is NaN where the engine cannot run one of them.
    """
    total: dict[str, float] = {}
    for name, text in proposal.also:
        site = bench.everywhere.get(name)
        now = str(site.block) if site else str(text_of(bench.original.get_submodule(name)))
        new, old = _as(bench, name, text, layout), _as(bench, name, now, layout)
        total = {k: total.get(k, 0.0) + new[k] - old[k] for k in new}
    return total


def _as(bench: Workbench, name: str, text: str, layout: str) -> dict[str, float]:
    """What a module beside a site costs as this text; no convolution: none but its parameters. Peaks do not add up."""
    if name not in bench.everywhere:
        module = bench.original.get_submodule(name)
        like = next(module.parameters(), None)
        size, known = (like.element_size() if like is not None else 0), dict.fromkeys(COSTS, 0.0)
        count = sum(p.numel() for p in remade(name, module, text).parameters())
        return known | {"params": count, "weight_bytes": size * count}
    site, block = bench.everywhere[name], parse(text)
    key = (name, block, layout)
    if key not in bench.beside:
        ms = bench.latency(bench.finished(site, block), site.after(block, site.tensors), layout)
        known = costs(block, site.after(block, site.tensors), math.nan if ms is None else ms)
        bench.beside[key] = known | {"peak_bytes": 0.0}
    return dict(bench.beside[key])


def _offers(site: Site, rules: Sequence[Rule], table: Table) -> list[Proposal]:
    offers: dict[object, Proposal] = {}
    for rule in rules:
        reason = rule.refuse(site)
        proposals = [] if reason else list(rule.propose(site))
        if not proposals:
            why = reason or "it has no proposal that costs fewer multiply-accumulates"
            table.refusals.append(Refusal(site.name, rule.name, why))
        for proposal in proposals:
            offers.setdefault((proposal.block, proposal.absorbs), proposal)
    return list(offers.values())


def _probed(site: Site, front: Sequence[Fitted], bench: Workbench, scene: _Scene, table: Table) -> list[Candidate]:
    """Measures how the output moves with each of the proposals, where that is not known from another table."""
    candidates, model, prefix = [], scene.model, scene.prefix
    known = all((site.name, proposal.block, proposal.absorbs) in bench.errors for proposal, _, _ in front)
    unedited = [] if known else _answers(site, Proposal("", site.block), Weights(site.tensors, 0.0), bench.scout, model,
                                         prefix)  # fmt: skip
    for proposal, cost, weights in front:
        key = (site.name, proposal.block, proposal.absorbs)
        if key not in bench.errors:
            with _absorbed(model, proposal.absorbs):
                bench.errors[key] = _output_error(site, proposal, weights, unedited, bench.scout, model, prefix)
        error = bench.errors[key]
        if isinstance(error, str):
            why = f"the network fails with {proposal.block}: {error}"
            table.refusals.append(Refusal(site.name, proposal.rule, why))
            table.note(site, proposal, verdict=why)
            continue
        table.note(site, proposal, error=error)
        own = None if proposal.also else cost["latency"]  # else with what it saves elsewhere
        edit = Edit(site.name, proposal.rule, proposal.block, error, own, proposal.absorbs, also=proposal.also)
        candidates.append(Candidate(site.name, edit, cost, error))
    return candidates


def _worth_fitting(rows: Sequence[Row], gains: Sequence[str]) -> list[Row]:
    """Of the proposals of a form those that no larger one beats in what is to be gained, and a few of these.

    The larger one fits better. Forms are told apart by rule and block, the numbers of channels set aside.
    """
    forms: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        forms.setdefault((row[0].rule, _CHANNELS.sub(r"\1", str(row[0].block))), []).append(row)
    chosen: list[Row] = []
    for form in forms.values():
        useful = [one for one in form if not gains or not any(_larger(other, one) and
                  all(other[1][g] <= one[1][g] for g in gains) for other in form)]  # fmt: skip
        useful.sort(key=lambda row: row[1][gains[0] if gains else "macs"])
        chosen += [useful[i] for i in _evenly(len(useful), MOST_PER_FORM)]
    return chosen


def _larger(other: Row, one: Row) -> bool:
    sizes = [(c["params"], c["macs"]) for _, c in (other, one)]
    return sizes[0] != sizes[1] and all(a >= b for a, b in zip(*sizes, strict=True))


def _evenly(count: int, most: int) -> list[int]:
    """Places among so many: all of them, or the first, the last and others evenly between."""
    return list(range(count)) if count <= most else sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


@contextmanager
def _absorbed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Identities, or what is left of their work, in the place of modules, for a while."""
    with ExitStack() as stack:
        for name in names:
            left = after_normalising(model.get_submodule(name)) or Absorbed()
            stack.enter_context(standing_in(model, aliases(model, name), left))
        yield


def _front(fitted: Sequence[Fitted]) -> list[Fitted]:
    """Those that no other beats in both fit and every cost, from cheap to dear."""

    def beaten(one: Fitted) -> bool:
        return any(
            other is not one and other[2].error <= one[2].error
            and all(other[1][k] <= one[1][k] for k in one[1])
            and (other[2].error < one[2].error or any(other[1][k] < one[1][k] for k in one[1]))
            for other in fitted
        )  # fmt: skip

    return sorted((f for f in fitted if not beaten(f)), key=lambda f: f[1]["latency"])


def _spread(front: Sequence[Fitted], known: Collection[Block]) -> list[Fitted]:
    """At most MOST_PER_SITE of them: both ends, then those already probed, then others evenly over the front."""
    last = len(front) - 1
    probed = [i for i, (proposal, _, _) in enumerate(front) if proposal.block in known]
    even = [round(i * last / (MOST_PER_SITE - 1)) for i in range(MOST_PER_SITE)]
    taken = list(dict.fromkeys((0, last, *probed, *even, *range(len(front)))))[:MOST_PER_SITE]
    return [front[i] for i in sorted(taken) if 0 <= i <= last]


def _output_error(site: Site, proposal: Proposal, weights: Weights, unedited: list[Any] | str, probe: Probe,
                  model: nn.Module, prefix: Prefix) -> float | str:  # fmt: skip
    """How far the network's output moves with this block alone; or the network's own error."""
    answers = _answers(site, proposal, weights, probe, model, prefix)
    if isinstance(unedited, str) or isinstance(answers, str):
        return unedited if isinstance(unedited, str) else str(answers)
    error = probe.moved(answers, unedited)
    return error if math.isfinite(error) else "its output is no longer finite, or was 0"


@seeded(0)  # the user's random numbers stay as they are
def _answers(site: Site, proposal: Proposal, weights: Weights, probe: Probe, model: nn.Module,
             prefix: Prefix) -> list[Any] | str:  # fmt: skip
    """What the network gives with this block in the site's place; or its own error."""
    layer = filled(proposal.block, weights.tensors, torch.empty(0, device=site.device, dtype=site.dtype))
    around = site.around.model if site.around else model  # in `model` the convolutions are wrapped
    with ExitStack() as changes:
        changed = changes.enter_context(standing_in(model, site.names, prefix.until(layer)))
        for name, text in proposal.also:
            new = remade(name, around.get_submodule(name), text)
            new.load_state_dict(weights.also[name])
            changes.enter_context(standing_in(changed, aliases(changed, name), new))
        try:
            return probe.answers(changed, changed.get_submodule(site.norm.name) if site.norm else None, prefix)
        except Exception as raised:
            return f"{type(raised).__name__}: {raised}"
