"""Whole networks, rewritten and measured beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch, seeded
from reconv.layers import build
from reconv.planning.edits import Fit, apply_edits, current, restat
from reconv.planning.plan import Edit, Refusal
from reconv.planning.probe import Probe
from reconv.ruleset import Rule
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block
from reconv.surgery import Site, clone, fresh
from reconv.targets import (
    LatencyCache,
    Problem,
    Target,
    layout_of,
    layouts_of,
    time_blocks,
    time_networks,
    to_layout,
)

SECONDS = 2.0  # to measure one set of networks


@dataclass(frozen=True)
class Outcome:
    """A rewritten network as measured: `ratio` is its latency over the original's, in one interleaved run."""

    edits: tuple[Edit, ...]
    layout: str
    ratio: float
    latency_ms: float
    original_ms: float
    error: float
    macs: float = 0.0
    params: float = 0.0
    memory: float = 0.0


class Workbench:
    """The original, what it is measured with, and the fits made so far."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], sites: Sequence[Site], rules: Sequence[Rule],
                 engine: Target, calibration: Sequence[Batch], restat: bool) -> None:  # fmt: skip
        self.original = clone(model).eval()
        self.inputs, self.engine, self.rules, self.restat = inputs, engine, tuple(rules), restat
        self.sites = {site.name: site for site in sites}
        self.exact_rules = [rule for rule in rules if rule.group == "exact"]
        self.cache = LatencyCache()
        self.probe = Probe(self.original, calibration)
        self.weights: dict[tuple[str, Block], Weights] = {}
        self.forms: dict[tuple[str, Block], Block] = {}
        self.errors: dict[tuple[str, Block], float | str] = {}  # of the output, or what the network raised

    def fit(self, site: Site, edit: Edit) -> dict[str, Tensor]:
        """The starting weights of an edit, from the table where it made them."""
        known = self.weights.get((site.name, edit.block))
        return known.tensors if known else Fit(self.rules)(site, edit)

    def weights_of(self, site: Site, proposal: Proposal, rule: Rule) -> Weights:
        """The starting weights of a proposal, fitted once."""
        key = (site.name, proposal.block)
        if key not in self.weights:
            self.weights[key] = rule.init(site, proposal)
        return self.weights[key]

    @seeded(0)  # the user's random numbers stay as they are
    def finished(self, site: Site, block: Block) -> Block:
        """What a block becomes once the exact rules are applied: the form that will run, and so is timed."""
        key = (site.name, block)
        if key not in self.forms:
            shapes = build(block, device="meta", dtype=site.dtype).state_dict()
            blank = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in shapes.items()}
            now = site.after(block, blank)  # the form does not depend on the weights
            for rule in self.exact_rules:
                proposal = None if rule.refuse(now) else next(iter(rule.propose(now)), None)
                now = now.after(proposal.block, blank, proposal.absorbs) if proposal else now
            self.forms[key] = now.block
        return self.forms[key]

    def latency(self, block: Block, site: Site, layout: str) -> float:
        """Milliseconds of a block in a site's place, summed over the site's runs."""
        return self.latencies([block], site, layout)[0]

    def latencies(self, blocks: Sequence[Block], site: Site, layout: str) -> list[float]:
        totals = [0.0] * len(blocks)
        for call in site.calls:
            problems = [Problem(b, call.input_shape, site.dtype, site.device, layout) for b in blocks]
            for i, timing in enumerate(time_blocks(self.engine, problems, self.cache)):
                totals[i] += timing.median_ms
        return totals

    @property
    def layouts(self) -> tuple[str, ...]:
        """Memory formats to try: the network's own, and any other where exact rules are asked for."""
        return layouts_of(self.original) if self.exact_rules else (layout_of(self.original),)

    def judge(self, edits: Sequence[Edit], layout: str) -> Outcome | None:
        """Applies edits, and none, some or all of the exact rules; measures the fastest. None where none runs."""
        student, sites = apply_edits(clone(self.original), self.sites, edits, self.fit)
        if edits and self.restat:
            restat(student, edits, self.rules, self.probe.batches)
        variants = [(tuple(edits), student)]
        for count in range(1, len(self.exact_rules) + 1):
            finished, exact = self.with_exact(student, sites, self.exact_rules[:count])
            if exact and (*edits, *exact) != variants[-1][0]:
                variants.append(((*edits, *exact), finished))
        variants = [v for v in variants if self.runs(to_layout(v[1], layout))]
        if not variants:
            return None
        base, *timings = time_networks(self.engine, [self.original, *(v[1] for v in variants)], self.inputs, SECONDS)
        best = min(range(len(variants)), key=lambda i: timings[i].median_ms)
        chosen, model = variants[best]
        median = timings[best].median_ms
        return Outcome(chosen, layout, median / base.median_ms, median, base.median_ms, self.probe.error(model))

    def with_exact(self, student: nn.Module, sites: Mapping[str, Site],
                   rules: Sequence[Rule]) -> tuple[nn.Module, list[Edit]]:  # fmt: skip
        """A copy of the student with these exact rules applied where they serve, and the edits that did it."""
        now = current(student, sites)
        edits, _ = self.exact_edits(now, rules)
        return apply_edits(clone(student), now, edits, Fit(self.rules))[0], edits

    def exact_edits(self, sites: Mapping[str, Site],
                    rules: Sequence[Rule] | None = None) -> tuple[list[Edit], list[Refusal]]:  # fmt: skip
        """What the exact rules (all, or these) offer for the sites as they are, and why elsewhere nothing."""
        edits, refusals, now = [], [], dict(sites)
        for rule in self.exact_rules if rules is None else rules:
            for name, site in now.items():
                reason = rule.refuse(site)
                proposal = None if reason else next(iter(rule.propose(site)), None)
                if proposal is None:
                    refusals.append(Refusal(name, rule.name, reason or "it has no proposal"))
                    continue
                edits.append(Edit(name, rule.name, proposal.block, 0.0, absorbs=proposal.absorbs))
                now[name] = site.after(proposal.block, rule.init(site, proposal).tensors, proposal.absorbs)
        return edits, refusals

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

    def timed(self, edits: Sequence[Edit], layout: str) -> tuple[Edit, ...]:
        """The edits with the latency of each measured."""
        return tuple(
            e if e.latency_ms is not None
            else replace(e, latency_ms=self.latency(e.block, self.sites[e.site], layout)) for e in edits
        )  # fmt: skip
