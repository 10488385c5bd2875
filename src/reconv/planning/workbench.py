"""Whole networks, rewritten and measured beside the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse
from typing import Any

import torch
from torch import nn

from reconv.costing.operators import OperatorCount
from reconv.data import Batch, first, seeded
from reconv.layers import build
from reconv.planning.bounds import bound_ms, machine_of
from reconv.planning.edits import Fit, apply_edits, current, restat, with_data
from reconv.planning.gathering import Gathered
from reconv.planning.plan import Edit, Refusal
from reconv.planning.probe import Probe
from reconv.planning.remembered import Remembered
from reconv.planning.together import in_turn
from reconv.planning.wholes import Wholes
from reconv.ruleset import Rule
from reconv.ruleset.refine import improved, started
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, ConvSpec, in_channels
from reconv.surgery import ConvCall, Norm, Site, clone, find_sites, fresh
from reconv.surgery.alive import peak_of, state_bytes
from reconv.targets import (
    LatencyCache,
    Problem,
    Target,
    Timing,
    layout_of,
    layouts_of,
    time_blocks,
    to_layout,
    try_networks,
)

SECONDS = 2.0  # to measure one set of networks
FASTER = 0.97  # an exact rule that may as well be slower must measure faster than this part, in each site's place
SCOUTED = 32  # samples on which each proposal is probed by itself
FIT_WORK = 1.5e9  # multiply-accumulates that the fit of a proposal on responses may take, beyond the first few steps
FIGURES = ("latency_ratio", "latency_ms", "original_ms", "error", "memory", "elsewhere")  # of an outcome


@dataclass(frozen=True)
class Outcome:
    """A rewritten network as measured: `latency_ratio` is its latency over the original's, in one interleaved run."""

    edits: tuple[Edit, ...]
    layout: str
    latency_ratio: float
    latency_ms: float
    original_ms: float
    error: float
    macs: float = 0.0
    params: float = 0.0
    memory: float = 0.0
    elsewhere: float = 0.0  # the most bytes of activations alive while no convolution runs
    counted: Mapping[str, float] | None = None  # macs, params and bytes of weights, where the sum does not tell
    asked: tuple[Edit, ...] = ()  # the edits that are not exact, each made for the original
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Without the edits that were asked for, and the model."""
        figures = {name: getattr(self, name) for name in FIGURES}
        return {"edits": [e.to_dict() for e in self.edits], "layout": self.layout, **figures,
                "counted": self.counted and dict(self.counted)}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        return cls(**{**data, "edits": tuple(map(Edit.from_dict, data["edits"]))})


class Workbench:
    """The original, what it is measured with, and the fits made so far."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], sites: Sequence[Site], rules: Sequence[Rule],
                 engine: Target, calibration: Sequence[Batch], restat: bool,
                 wholes: Wholes | None = None, everywhere: Sequence[Site] = (),
                 calls: Sequence[ConvCall] = ()) -> None:  # fmt: skip
        self.given = clone(model).eval()
        self.wholes = wholes or Wholes(self.given)
        self.original = self.wholes.model  # what is edited
        self.inputs, self.engine, self.rules, self.restat = inputs, engine, tuple(rules), restat
        if restat:
            sites, everywhere = with_data(sites, calibration), with_data(everywhere, calibration)
        self.sites = {site.name: site for site in sites}
        self.everywhere = {site.name: site for site in everywhere} | self.sites
        self.calls = calls  # all runs of convolutions, functional ones too
        self.exports = bool(getattr(engine, "exports", False))  # what runs is no longer PyTorch's
        exact = [rule for rule in rules if rule.group == "exact"]
        self.exact_rules = [rule for rule in exact if not (self.exports and getattr(rule, "eager", False))]
        self.cache, self.remembered = LatencyCache(), Remembered(None)
        self.probe = Probe(self.given, calibration)
        self.scout = Probe(self.given, first(calibration, SCOUTED))
        self.responses = Gathered(self.original, calibration, sites) if restat else None
        self.weights: dict[tuple[str, Block], Weights] = {}
        self.improved: set[tuple[str, Block]] = set()  # the weights that are improved on responses already
        self.forms: dict[tuple[str, Block, tuple[str, ...]], Block] = {}
        self.beside: dict[tuple[str, Block, str], dict[str, float]] = {}  # costs of what changes with a site
        # of the output, or what the network raised
        self.errors: dict[tuple[str, Block, tuple[str, ...]], float | str] = {}
        self.unable: dict[tuple[str, str], str] = {}  # why the engine does not run the network with a rule at a site

    def fit(self, site: Site, edit: Edit, student: nn.Module, before: Sequence[Site]) -> Weights:
        """The starting weights of an edit, from the table where it made them; of several modules as these are now."""
        if edit.also:
            return Fit(self.rules)(site, edit)
        known, own = self.weights.get((site.name, edit.block)), self.sites.get(site.name)
        rule = next((rule for rule in self.rules if rule.name == edit.rule and rule.group == "smaller"), None)
        if known is None and rule and own and own.block == site.block:  # its row was remembered, not measured
            return self.refined(own, Proposal(edit.rule, edit.block, edit.absorbs), rule)
        return known or Fit(self.rules)(site, edit)

    def weights_of(self, site: Site, proposal: Proposal, rule: Rule) -> Weights:
        """The starting weights of a proposal, fitted once; with data, judged by the responses."""
        key = (site.name, proposal.block)
        if key not in self.weights:
            self.weights[key] = started(rule, site, proposal, self._seen(site, rule, 0.0))
        return self.weights[key]

    def refined(self, site: Site, proposal: Proposal, rule: Rule) -> Weights:
        """The same, with data also improved on the responses, once."""
        key = (site.name, proposal.block)
        if self.responses is not None and key not in self.improved:
            plain, seen = self.weights_of(site, proposal, rule), self._seen(site, rule, FIT_WORK)
            self.weights[key] = improved(rule, site, proposal, plain, seen)
            self.improved.add(key)
        return self.weights_of(site, proposal, rule)

    def _seen(self, site: Site, rule: Rule, work: float) -> Responses | None:
        """Responses of the unedited network at this site, where they are known, for a fit of so much work."""
        seen = self.responses.of(site) if self.responses and rule.group == "smaller" else None
        return seen and replace(seen, work=work)

    @seeded(0)  # the user's random numbers stay as they are
    def finished(self, site: Site, block: Block, absorbed: tuple[str, ...] = ()) -> Block:
        """What a block becomes once the exact rules are applied: the form that will run, and so is timed."""
        key = (site.name, block, absorbed)
        if key not in self.forms:
            shapes = build(block, device="meta", dtype=site.dtype).state_dict()
            blank = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in shapes.items()}
            now = with_norm_of(site.after(block, blank, absorbed), block)  # the form does not depend on the weights
            for rule in filterfalse(_may_be_slower, self.exact_rules):
                proposal = None if rule.refuse(now) else next(iter(rule.propose(now)), None)
                now = now.after(proposal.block, blank, proposal.absorbs) if proposal else now
            self.forms[key] = now.block
        return self.forms[key]

    def latency(self, block: Block, site: Site, layout: str) -> float | None:
        """Milliseconds of a block in a site's place, over all of its runs; None where the engine cannot run it."""
        (found,) = self.latencies([block], site, layout)
        return None if isinstance(found, str) else found

    def latencies(self, blocks: Sequence[Block], site: Site, layout: str) -> list[float | str]:
        """The same for several; of a block that the engine cannot run, the reason."""
        totals: list[float | str] = [0.0] * len(blocks)
        for call in site.calls:
            problems = [Problem(b, taken(b, call), site.dtype, site.device, layout) for b in blocks]
            for i, timing in enumerate(time_blocks(self.engine, problems, self.cache)):
                so_far = totals[i]
                if not isinstance(so_far, str):
                    totals[i] = timing if isinstance(timing, str) else so_far + timing.median_ms
        return totals

    def bounds(self, blocks: Sequence[Block], site: Site) -> list[float]:
        """Milliseconds below which no engine of this machine runs a block in a site's place; 0 where not known."""
        machine = machine_of(self.engine, site.device, site.dtype)
        if machine is None:
            return [0.0] * len(blocks)
        return [sum(bound_ms(b, taken(b, call), machine, site.dtype) for call in site.calls) for b in blocks]

    def about(self, block: Block, site: Site, layout: str) -> float:
        """Roughly the latency of a block, which leaves no mark in the cache; infinite where it does not run."""
        total = 0.0
        for call in site.calls:
            problem = Problem(block, taken(block, call), site.dtype, site.device, layout)
            (timing,) = time_blocks(self.engine, [problem], self.cache, keep=False)
            total += timing.median_ms if isinstance(timing, Timing) else math.inf
        return total

    @property
    def layouts(self) -> tuple[str, ...]:
        """Memory formats to try: the network's own, and any other where exact rules are asked for."""
        several = self.exact_rules and not self.exports
        return layouts_of(self.given) if several else (layout_of(self.given),)

    def judge(self, edits: Sequence[Edit], layout: str, again: bool = False) -> Outcome | None:
        """Applies edits after those of whole modules, and none, some or all of the exact rules; measures the fastest.

        None where none runs: `unable` says why, and of the exact edits with which the engine does not run it.

        Args:    again: whether it is measured though an earlier plan did; then the outcome has its model.
        """
        key = ("whole", layout, *(edit.to_dict() for edit in edits))
        known = None if again else self.remembered.get(*key)
        if known is not None:
            self.unable |= {(site, rule): reason for site, rule, reason in known["unable"]}
            return replace(Outcome.from_dict(known["outcome"]), asked=tuple(edits))
        outcome = self._measured(edits, layout)
        if outcome is not None:
            self.remembered.put(
                {"outcome": outcome.to_dict(), "unable": [[*k, v] for k, v in self.unable.items()]}, *key
            )
        return outcome

    def _measured(self, edits: Sequence[Edit], layout: str) -> Outcome | None:
        asked, edits = tuple(edits), in_turn(edits, self.sites)
        student, sites = apply_edits(clone(self.original), self.everywhere, edits, self.fit)
        sites = {name: site for name, site in sites.items() if name in self.sites}
        if edits and self.restat:
            restat(student, self.original, edits, self.rules, self.probe.batches)
        counted = spent_by(student, self.inputs) if any(e.also for e in edits) else None
        edits = (*self.wholes.edits, *edits)
        variants = [(edits, student)]
        all_exact, _ = self.exact_edits(current(student, sites), layout)
        for count in range(1, len(self.exact_rules) + 1):
            names = {rule.name for rule in self.exact_rules[:count]}
            exact = [edit for edit in all_exact if edit.rule in names]
            if exact and (*edits, *exact) != variants[-1][0]:
                variants.append(((*edits, *exact), self.with_exact(student, sites, exact)))
        variants = [v for v in variants if self.runs(to_layout(v[1], layout))]
        if not variants:
            return None
        base, *timings = try_networks(self.engine, [self.given, *(v[1] for v in variants)], self.inputs, SECONDS)
        ran = [(t.median_ms, *v) for t, v in zip(timings, variants, strict=True) if isinstance(t, Timing)]
        self._note_unable([(v[0], t) for t, v in zip(timings, variants, strict=True)])
        if isinstance(base, str) or not ran:
            return None
        median, chosen, model = min(ran, key=lambda one: one[0])
        error, peak = self.probe.error(model, self.finer(asked)), peak_of(model, self.inputs)
        return Outcome(chosen, layout, median / base.median_ms, median, base.median_ms, error,
                       memory=state_bytes(model) + peak.most, elsewhere=peak.elsewhere, counted=counted, asked=asked,
                       model=model)  # fmt: skip

    def _note_unable(self, variants: Sequence[tuple[tuple[Edit, ...], Timing | str]]) -> None:
        """Which edits, none of which another variant that ran has, come with a variant that the engine cannot run."""
        ran = {edit for edits, timing in variants if isinstance(timing, Timing) for edit in edits}
        for edits, reason in variants:
            if isinstance(reason, str):
                for edit in set(edits) - ran:
                    self.unable[edit.site, edit.rule] = f"the engine cannot run the network with it: {reason}"

    def with_exact(self, student: nn.Module, sites: Mapping[str, Site], edits: Sequence[Edit]) -> nn.Module:
        """A copy of the student with these edits of exact rules applied."""
        return apply_edits(clone(student), current(student, sites), edits, Fit(self.rules))[0]

    def exact_edits(self, sites: Mapping[str, Site], layout: str) -> tuple[list[Edit], list[Refusal]]:
        """What the exact rules, one after the other, offer for the sites as they are, and why elsewhere nothing."""
        edits, refusals, now = [], [], dict(sites)
        for rule in self.exact_rules:
            for name in sites:
                site = now[name]
                reason = rule.refuse(site)
                proposal = None if reason else next(iter(rule.propose(site)), None)
                if proposal is not None and _may_be_slower(rule) and (reason := self._slower(proposal, site, layout)):
                    proposal = None
                if proposal is None:
                    refusals.append(Refusal(name, rule.name, reason or "it has no proposal"))
                    continue
                edits.append(Edit(name, rule.name, proposal.block, 0.0, absorbs=proposal.absorbs, also=proposal.also))
                if proposal.also and site.around:  # other sites change with it
                    model, changed = apply_edits(clone(site.around.model), now, edits[-1:], Fit(self.rules))
                    now = current(model, changed)
                else:
                    weights = rule.init(site, proposal)
                    now[name] = site.after(proposal.block, weights.tensors, proposal.absorbs)
        return edits, refusals

    def _slower(self, proposal: Proposal, site: Site, layout: str) -> str | None:
        """Why a proposal does not stand in the site's place; None where it measured faster there."""
        after, before = self.latencies([proposal.block, site.block], site, layout)
        if isinstance(after, str):
            return cannot_run(proposal.block, after)
        if isinstance(before, str):
            return cannot_run(site.block, before)
        return f"it measured {after:.4g} ms there, as it is {before:.4g} ms" if after >= FASTER * before else None

    def is_exact(self, edit: Edit) -> bool:
        return any(rule.name == edit.rule for rule in self.exact_rules)

    def changes(self, edits: Sequence[Edit]) -> int:
        """How many of the edits are of rules that are not exact."""
        return sum(not self.is_exact(edit) for edit in edits)

    def runs(self, model: nn.Module) -> bool:
        """Whether a variant runs at all (a `view` in a user's forward refuses channels_last)."""
        try:
            with torch.inference_mode():
                model(*fresh(self.inputs))
        except RuntimeError:
            return False
        return True

    def _site_of(self, edit: Edit) -> Site:
        return (self.wholes.sites if edit.whole else self.sites)[edit.site]

    def timed(self, edits: Sequence[Edit], layout: str) -> tuple[Edit, ...]:
        """The edits with the latency of each measured."""
        sites = {e.site: self._site_of(e) for e in edits}
        if self.finer(edits):  # the others run on finer maps
            mine = [e for e in edits if not (e.whole or self.is_exact(e))]
            sites |= apply_edits(clone(self.original), self.everywhere, mine, self.fit)[1]
        return tuple(
            e if e.latency_ms is not None
            else replace(e, latency_ms=self.latency(e.block, sites[e.site], layout)) for e in edits
        )  # fmt: skip

    def finer(self, edits: Sequence[Edit]) -> bool:
        """Whether maps become finer by these edits."""
        denser = {rule.name for rule in self.rules if rule.group == "denser"}
        return any(edit.rule in denser for edit in edits)


def cannot_run(block: Block, reason: str) -> str:
    return f"the engine cannot run it ({block}): {reason}"


def _may_be_slower(rule: Rule) -> bool:
    """Whether a rule says of itself that only a measurement tells if it gains."""
    return bool(getattr(rule, "where_faster", False))


def taken(block: Block, call: ConvCall) -> tuple[int, ...]:
    """The shape of a run's input, with as many channels as the block takes."""
    axis = len(call.input_shape) - 1 - call.spec.spatial_dims
    channels = in_channels(block) or call.input_shape[axis]
    return (*call.input_shape[:axis], channels, *call.input_shape[axis + 1 :])


def with_norm_of(site: Site, block: Block) -> Site:
    """The site, its batch norm of as many channels as the block gives, without values."""
    if site.norm is None or not isinstance(block, ConvSpec) or block.out_channels == len(site.norm.scale):
        return site
    blank = torch.ones(block.out_channels, dtype=torch.float64)
    return replace(site, norm=Norm(site.norm.name, blank, blank))


def spent_by(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, float]:
    """What a network costs as it is, of what adds up over its parts."""
    count = OperatorCount()
    find_sites(model, inputs, observers=[count])
    return spent_as_found(model, count)


def spent_as_found(model: nn.Module, count: OperatorCount) -> dict[str, float]:
    """The same, where its operators are counted already."""
    return {
        "macs": float(count.macs),
        "params": float(sum(p.numel() for p in model.parameters())),
        "weight_bytes": float(state_bytes(model)),
    }
