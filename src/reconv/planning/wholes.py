"""Edits of whole modules: they change the structure inside, so that they come before all others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from reconv.errors import conv_error
from reconv.layers.described import Described
from reconv.planning.edits import Fitting, hasten, place
from reconv.planning.plan import Edit, Refusal
from reconv.ruleset import Rule
from reconv.ruleset.fold_branches import NO_BRANCHES
from reconv.ruleset.merge_linear import NONE_FOLLOW
from reconv.ruleset.simplify import simplified
from reconv.spec import BatchNorm, Block, ConvSpec
from reconv.surgery import Site, clone, fresh, swap
from reconv.surgery.find_regions import Runs, inner_first, region_site
from reconv.surgery.outputs import distance
from reconv.surgery.sites import chosen, within
from reconv.surgery.trace import is_conv
from reconv.targets import LatencyCache, Problem, Target, Timing, layout_of, time_blocks, try_networks, why_not

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a network's output, by an edit that is exact
SECONDS = 2.0  # to measure the network with and without
COARSE = 0.05  # the same in half precision
Patterns = str | Sequence[str]


@dataclass
class Wholes:
    """A network (a copy, in evaluation mode) with the edits of whole modules that made it.

    Args:    sites: the modules as they were before, by name. meant: names of all that the user's patterns mean.
             closed: the modules in which no convolution is edited by itself.
             kept: whether the edits stay, however the network measures.
    """

    model: nn.Module
    edits: tuple[Edit, ...] = ()
    sites: dict[str, Site] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    meant: set[str] = field(default_factory=set)
    closed: tuple[str, ...] = ()
    kept: bool = False

    def open_sites(self, sites: Iterable[Site], patterns: Patterns) -> list[Site]:
        """The convolutions that the patterns mean, by their own names or that of a module that was edited."""
        edited = {edit.site for edit in self.edits}
        meant = [s for s in sites if chosen(s.name, patterns) or within(s.name, edited)]
        return [s for s in meant if not within(s.name, self.closed)]


def serves_wholes(rule: Rule) -> bool:
    """Whether a rule may be asked for whole modules, too."""
    return getattr(rule, "whole", False)


def apply_wholes(student: nn.Module, edits: Sequence[Edit], inputs: tuple[Any, ...], fit: Fitting) -> nn.Module:
    """Applies edits of whole modules in their order, in place; returns the root.

    Raises:  ConvError: when the plan names a module that the network does not have, or a rule refuses.
    """
    if not edits:
        return student
    seen = clone(student).eval()
    runs = Runs.of(seen, fresh(inputs))
    now: dict[str, Site] = {}
    for edit in edits:
        try:
            site = now.get(edit.site) or region_site(seen, edit.site, runs)
        except AttributeError as error:
            raise conv_error("apply", "each site of the plan must be a module of the network", got={"site": edit.site},
                             do="Give the network that the plan was made for.", also=ValueError) from error  # fmt: skip
        if site.refusal:
            raise conv_error("apply", "the module must be one that can be rewritten as a whole",
                             got={"site": edit.site, "rule": edit.rule}, do=f"It cannot: {site.refusal}.",
                             also=ValueError)  # fmt: skip
        tensors = fit(site, edit, seen, ()).tensors
        now[edit.site] = site.after(edit.block, dict(tensors))
        seen = place(seen, site.names, edit.block, tensors)
        student = place(student, site.names, edit.block, tensors)
        hasten(student, site.names)
    return student


def rewrite_wholes(model: nn.Module, inputs: tuple[Any, ...], rules: Sequence[Rule], by_name: Collection[str],
                   patterns: Patterns, engine: Target, forced: bool) -> Wholes:  # fmt: skip
    """The network with whole modules rewritten: simplified where that measures faster, and made stronger.

    Args:    by_name: stronger rules serve whole modules only where they were asked for by their names.
             forced: simplified modules stay, faster or not.
    """
    cache, layout = LatencyCache(), layout_of(model)

    def loses(site: Site, block: Block) -> str | None:
        if forced:
            return None
        own, (call, *_) = _norms_folded(site), site.calls
        problems = [Problem(b, call.input_shape, site.dtype, site.device, layout) for b in (own, block)]
        before, after = time_blocks(engine, problems, cache)
        if isinstance(before, str) or isinstance(after, str):
            return f"the engine cannot run it: {after if isinstance(after, str) else before}"
        return None if after.median_ms < before.median_ms else f"it measured no faster: {block}"

    made = exact_wholes(model, inputs, rules, patterns, loses)
    made.kept = forced and bool(made.edits)
    cache.close()
    if made.edits and not forced:
        before, after = try_networks(engine, [clone(model).eval(), made.model], inputs, SECONDS)
        if isinstance(after, str):
            made = _undone(made, model, f"the engine cannot run the network with it: {after}")
        elif isinstance(before, Timing) and after.median_ms >= before.median_ms:
            made = _undone(made, model, "the network measured no faster with it")
    made = stronger_wholes(made, inputs, [rule for rule in rules if rule.name in by_name], patterns)
    if made.kept and (reason := why_not(engine, (made.model, fresh(inputs)))):
        return _undone(made, model, f"the engine cannot run the network with it: {reason}")
    return made


def _undone(made: Wholes, model: nn.Module, reason: str) -> Wholes:
    """The network as it was, and why."""
    refusals = [r for r in made.refusals if r.rule != "*"]  # which say what closes to other rules
    refusals += [Refusal(e.site, e.rule, reason) for e in made.edits]
    return Wholes(clone(model).eval(), refusals=refusals, meant=made.meant)


def _norms_folded(site: Site) -> Block:
    """The module as it is once `fold_batch_norm` has served each of its convolutions."""

    def one_conv(run: Sequence[Block]) -> bool:
        first, *rest = run
        return isinstance(first, ConvSpec) and bool(rest) and all(isinstance(part, BatchNorm) for part in rest)

    return simplified(site.block, site.tensors, site.input_shape, one_conv).block


def exact_wholes(model: nn.Module, inputs: tuple[Any, ...], rules: Sequence[Rule], patterns: Patterns,
                 loses: Callable[[Site, Block], str | None]) -> Wholes:  # fmt: skip
    """Every module that an exact rule simplifies, inner ones first.

    Args:    loses: why a block does not stand in for the site's own; None where it measures faster.
    """
    made = Wholes(clone(model).eval())
    rules = [rule for rule in rules if rule.group == "exact" and serves_wholes(rule)]
    if not rules:
        return made
    expected = _answer(made.model, inputs)
    _simplify(made, inputs, rules, patterns, loses, None)
    if made.edits and _differs(made.model, inputs, expected, next(iter(made.sites.values())).dtype):
        made = Wholes(clone(model).eval())  # again, with a look at the network after each
        _simplify(made, inputs, rules, patterns, loses, expected)
    return made


def _simplify(made: Wholes, inputs: tuple[Any, ...], rules: Sequence[Rule], patterns: Patterns,
              loses: Callable[[Site, Block], str | None], expected: Any) -> None:  # fmt: skip
    for site in _sites(made, inputs, patterns):
        for rule in rules:
            reason = rule.refuse(site)
            proposal = None if reason else next(iter(rule.propose(site)))
            reason = loses(site, proposal.block) if proposal else reason
            if proposal is None or reason:
                made.refusals += [Refusal(site.name, rule.name, reason)] if reason and _worth_saying(reason) else []
                continue
            edit = Edit(site.name, rule.name, proposal.block, 0.0, whole=True)
            site = _tried(made, site, edit, rule, inputs, expected)


def _worth_saying(reason: str) -> bool:
    """Not of every module that it is no case for a rule."""
    return reason not in (NO_BRANCHES, NONE_FOLLOW)


def stronger_wholes(made: Wholes, inputs: tuple[Any, ...], rules: Sequence[Rule], patterns: Patterns) -> Wholes:
    """The smallest modules that the rules make stronger, each rewritten as a whole; what is in them stays."""
    rules = [rule for rule in rules if rule.group == "stronger" and serves_wholes(rule)]
    expected = _answer(made.model, inputs) if rules else None
    for site in _sites(made, inputs, patterns) if rules else ():
        inside = next((n for n in made.closed if n != site.name and within(n, [site.name])), None)
        for rule in rules:
            reason = f"a part of it, {inside}, is rewritten as a whole" if inside is not None else rule.refuse(site)
            if reason:
                made.refusals.append(Refusal(site.name, rule.name, reason))
                continue
            edit = Edit(site.name, rule.name, next(iter(rule.propose(site))).block, 0.0, whole=True)
            after = _tried(made, site, edit, rule, inputs, expected)
            if after is not site:
                made.kept, made.closed, site = True, (*made.closed, site.name), after
                why = f"{rule.name} rewrites {site.name or 'the network'} as a whole: its convolutions stay"
                made.refusals.append(Refusal(site.name, "*", why))
    return made


def _sites(made: Wholes, inputs: tuple[Any, ...], patterns: Patterns) -> Iterable[Site]:
    """The modules that are meant, inner ones first, as they are by then."""
    runs = Runs.of(made.model, fresh(inputs))
    for name in inner_first(made.model):
        try:
            module = made.model.get_submodule(name)
        except AttributeError:  # within one that was rewritten
            continue
        convs = [f"{name}.{inner}".lstrip(".") for inner, part in module.named_modules() if is_conv(part)]
        if isinstance(module, Described) or not convs:
            continue
        if chosen(name, patterns) or all(chosen(conv, patterns) for conv in convs):
            made.meant.add(name)
            yield region_site(made.model, name, runs)


def _tried(made: Wholes, site: Site, edit: Edit, rule: Rule, inputs: tuple[Any, ...], expected: Any) -> Site:
    """The site after an edit, if the network then answers as `expected` (None: not looked at); else as it was."""
    old = made.model.get_submodule(site.name)
    proposal = next(iter(rule.propose(site)))
    tensors = rule.init(site, proposal).tensors
    made.model = place(made.model, site.names, edit.block, tensors)
    reason = None if expected is None else _differs(made.model, inputs, expected, site.dtype)
    if reason:
        made.model = swap(made.model, site.names, old)
        made.refusals.append(Refusal(site.name, rule.name, reason))
        return site
    hasten(made.model, site.names)
    made.edits = (*made.edits, edit)
    made.sites.setdefault(site.name, site)
    return site.after(edit.block, tensors)


@torch.no_grad()
def _answer(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return model(*fresh(inputs))


def _differs(model: nn.Module, inputs: tuple[Any, ...], expected: Any, dtype: torch.dtype) -> str | None:
    """Why the network does not do what it did: something outside of a module may need what is in it."""
    try:
        apart = distance(_answer(model, inputs), expected)
    except Exception as error:  # whatever a forward pass may raise
        return f"the network fails without what is in it: {type(error).__name__}: {error}"
    if apart > TOLERANCE.get(dtype, COARSE):
        return f"the network answers otherwise with it: {apart:.2g} of its output"
    return None
