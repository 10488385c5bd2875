"""Applies edits to a copy of a network: each block built, filled with weights and put in its site's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from reconv.data import Batch, seeded
from reconv.errors import conv_error
from reconv.layers import Absorbed, build
from reconv.layers.compose import block_of
from reconv.layers.sequence import quicken
from reconv.planning.gathering import Lessons
from reconv.planning.plan import Edit, Plan
from reconv.ruleset import RULES, Rule, rule_named
from reconv.ruleset.refine import started
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, ConvSpec
from reconv.surgery import Site, applied, clone, find_sites, swap
from reconv.surgery.find import affine
from reconv.surgery.following import follow
from reconv.surgery.kin import Also, aliases, change
from reconv.surgery.norms import after_normalising, settle
from reconv.surgery.surroundings import Surroundings
from reconv.targets import to_layout


@seeded(0)  # the user's random numbers stay as they are
def place(
    model: nn.Module, names: Sequence[str], block: Block, tensors: Mapping[str, Tensor], absorbs: Iterable[str] = (),
    also: Also = (), others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> nn.Module:  # fmt: skip
    """Swaps `block`, holding `tensors`, in for the module of these names; absorbed modules become identities.

    In place; returns the root, which is new where the root itself was the site.

    Args:    also: other modules, and what they become; others: their tensors.
    """
    old = model.get_submodule(names[0])
    like = next((t for t in tensors.values() if t.is_floating_point()), None)
    layer = filled(block, tensors, old if like is None else like)
    trainable = any(p.requires_grad for p in old.parameters())
    model = change(swap(model, names, layer.requires_grad_(trainable)), also, others or {})
    for absorbed in absorbs:
        model = absorb(model, absorbed)
    return model


def built(block: Block, like: Tensor | nn.Module) -> nn.Module:
    """The layer of a block, on the device and in the dtype of a tensor, or of a module's first numbers."""
    like = _numbers(like)
    return build(block, device=like.device, dtype=like.dtype)


def filled(block: Block, tensors: Mapping[str, Tensor], like: Tensor | nn.Module) -> nn.Module:
    """The same with this state dict; drawing numbers at random, which these would replace, is spared."""
    like = _numbers(like)
    layer = build(block, device="meta", dtype=like.dtype).to_empty(device=like.device)
    layer.load_state_dict(dict(tensors))
    return layer


def _numbers(like: Tensor | nn.Module) -> Tensor:
    if isinstance(like, Tensor):
        return like
    return next((t for t in (*like.parameters(), *like.buffers()) if t.is_floating_point()), torch.empty(0))


def absorb(model: nn.Module, name: str) -> nn.Module:
    """Puts an identity where the module of this name was, or what is left of its work; the sequence that held it
    computes runs of convolutions.
    """
    names = aliases(model, name)
    model = swap(model, names, after_normalising(model.get_submodule(name)) or Absorbed())
    hasten(model, names)
    return model


def hasten(model: nn.Module, names: Iterable[str]) -> None:
    """Makes the sequences that hold the module of these names quick ones."""
    for name in names:
        if name:
            quicken(model, name)


class Fit:
    """Starting weights of edits, by the rules that made them.

    Args:    lessons: the original network and inputs, on whose responses "smaller" rules are fitted, each with what
             the network rewritten before it gives there; None: they are fitted to the weights alone.
    """

    def __init__(self, rules: Sequence[Rule] = RULES, lessons: Lessons | None = None) -> None:
        self.rules = {rule.name: rule for rule in (*RULES, *rules)}
        self.lessons = lessons

    def __call__(self, site: Site, edit: Edit, student: nn.Module | None = None,
                 before: Sequence[Site] = ()) -> Weights:  # fmt: skip
        """Args:    student: the network with the sites `before` already rewritten."""
        rule = self.rules.get(edit.rule) or rule_named(edit.rule)
        if rule is None:
            raise conv_error("apply", "the plan's rules must be known", got={"site": edit.site, "rule": edit.rule},
                             do="Install the package that has it, or pass the rule itself.",
                             also=ValueError)  # fmt: skip
        seen = None
        if self.lessons is not None and student is not None and rule.group == "smaller":
            seen = self.lessons.responses(student, site, before)
        return started(rule, site, Proposal(edit.rule, edit.block, edit.absorbs, edit.also), seen)


Fitting = Callable[[Site, Edit, nn.Module, Sequence[Site]], Weights]


def apply_edits(
    model: nn.Module, sites: Mapping[str, Site], edits: Iterable[Edit], fit: Fitting
) -> tuple[nn.Module, dict[str, Site]]:
    """Applies edits in their order, in place; returns the root and the sites as they are then.

    Raises:  ConvError: when the plan names a site that the network does not have, or a rule refuses.
    """
    now, around = dict(sites), next((site.around for site in sites.values() if site.around), None)
    around = around and around.later(model)
    before: list[Site] = []
    for edit in edits:
        site = now.get(edit.site)
        if site is None:
            raise conv_error("apply", "each site of the plan must be a convolution of the network",
                             got={"site": edit.site}, do=f"The network has {', '.join(now)}.",
                             also=ValueError)  # fmt: skip
        weights = fit(replace(site, around=around), edit, model, before)
        model = place(model, site.names, edit.block, weights.tensors, edit.absorbs, edit.also, weights.also)
        now[edit.site] = site.after(edit.block, dict(weights.tensors), edit.absorbs)
        now |= _beside(model, now, edit)
        if around and _stretches(sites[edit.site], edit):
            now = _run_again(model, now, around)
        around = around and around.later(model, weights.channels)
        before.append(now[edit.site])
    return model, now


def _beside(model: nn.Module, sites: Mapping[str, Site], edit: Edit) -> dict[str, Site]:
    """The sites that an edit changes beside its own: convolutions, and those whose batch norm it changes."""
    changed = {}
    for name, site in sites.items():
        module = model.get_submodule(site.names[0])
        if name in dict(edit.also):
            changed[name] = site.after(block_of(module), applied(module))
        if site.norm and site.norm.name in dict(edit.also):
            norm = affine(site.norm.name, model.get_submodule(site.norm.name))
            changed[name] = replace(changed.get(name, site), norm=norm)
    return changed


def _stretches(site: Site, edit: Edit) -> bool:
    """Whether the maps behind a site become longer or shorter."""
    old, new = site.block, edit.block
    pools = any("pool(" in text for _, text in edit.also)
    return pools or (isinstance(old, ConvSpec) and isinstance(new, ConvSpec) and old.stride != new.stride)


def _run_again(model: nn.Module, sites: Mapping[str, Site], around: Surroundings) -> dict[str, Site]:
    """The sites with their runs as they are now."""
    calls = {site.name: site.calls for site in find_sites(model, around.inputs).sites}
    return {name: replace(site, calls=calls.get(name, site.calls)) for name, site in sites.items()}


def restat(model: nn.Module, original: nn.Module, edits: Iterable[Edit], rules: Sequence[Rule],
           batches: Iterable[Batch]) -> None:  # fmt: skip
    """Batch-norm statistics after edits, in place; where only stronger rules put norms in, the function stays."""
    groups = {rule.name: rule.group for rule in (*RULES, *rules)}
    batches = list(batches)
    settle(model, [edit.site for edit in edits if groups.get(edit.rule) == "stronger"], batches)
    if any(groups.get(edit.rule) not in ("stronger", "denser") for edit in edits):
        follow(model, original, batches)


def current(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites with the tensors and batch-norm statistics that `model` holds now (after a recovery, say)."""
    now = {}
    found = next((site.around for site in sites.values() if site.around), None)
    around = found and Surroundings(model, found.inputs, found.batches)
    for name, site in sites.items():
        tensors = applied(model.get_submodule(site.names[0]))
        norm = site.norm and affine(site.norm.name, model.get_submodule(site.norm.name))
        now[name] = replace(site, tensors=tensors, norm=norm, around=around)
    return now


def with_data(sites: Sequence[Site], batches: Sequence[Batch]) -> list[Site]:
    """The sites, in a network of which these inputs are known."""
    found = next((site.around for site in sites if site.around), None)
    around = found and found.on(batches)
    return [replace(site, around=site.around and around) for site in sites]


@seeded(0)
def restructure(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy with the structure that the plan gives, its new layers' weights not yet set."""
    student = clone(model)
    for edit in plan.edits:
        try:
            names = aliases(student, edit.site)
            old = student.get_submodule(edit.site)
        except AttributeError as error:
            raise conv_error("restructure", "each site of the plan must be a module of the network",
                             got={"site": edit.site}, do="Give the network that the plan was made for.",
                             also=ValueError) from error  # fmt: skip
        student = change(swap(student, names, built(edit.block, old)), edit.also)
        if edit.whole:
            hasten(student, names)
        for absorbed in edit.absorbs:
            student = absorb(student, absorbed)
    return to_layout(student, plan.layout)
