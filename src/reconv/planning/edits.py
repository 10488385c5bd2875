"""Applies edits to a copy of a network: each block built, filled with weights and put in its site's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from reconv.data import Batch, seeded
from reconv.errors import conv_error
from reconv.layers import Absorbed, build
from reconv.layers.sequence import quicken
from reconv.planning.plan import Edit, Plan
from reconv.ruleset import RULES, Rule
from reconv.ruleset.rule import Proposal
from reconv.spec import Block
from reconv.surgery import Site, applied, clone, swap
from reconv.surgery.find import affine
from reconv.surgery.norms import after_normalising, reestimate, settle
from reconv.targets import to_layout


@seeded(0)  # the user's random numbers stay as they are
def place(
    model: nn.Module, names: Sequence[str], block: Block, tensors: Mapping[str, Tensor], absorbs: Iterable[str] = ()
) -> nn.Module:
    """Swaps `block`, holding `tensors`, in for the module of these names; absorbed modules become identities.

    In place; returns the root, which is new where the root itself was the site.
    """
    like = next(t for t in tensors.values() if t.is_floating_point())
    layer = build(block, device=like.device, dtype=like.dtype, channels=None)
    layer.load_state_dict(dict(tensors))
    trainable = any(p.requires_grad for p in model.get_submodule(names[0]).parameters())
    model = swap(model, names, layer.requires_grad_(trainable))
    for absorbed in absorbs:
        model = absorb(model, absorbed)
    return model


def absorb(model: nn.Module, name: str) -> nn.Module:
    """Puts an identity where the module of this name was, or what is left of its work; the sequence that held it
    computes runs of convolutions.
    """
    names = aliases(model, name)
    model = swap(model, names, after_normalising(model.get_submodule(name)) or Absorbed())
    for each in names:
        quicken(model, each)
    return model


def aliases(model: nn.Module, name: str) -> list[str]:
    """All qualified names of the module that has this one."""
    module = model.get_submodule(name)
    return [n for n, m in model.named_modules(remove_duplicate=False) if m is module]


class Fit:
    """Starting weights of edits, by the rules that made them."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self.rules = {rule.name: rule for rule in (*RULES, *rules)}

    def __call__(self, site: Site, edit: Edit) -> dict[str, Tensor]:
        rule = self.rules.get(edit.rule)
        if rule is None:
            raise conv_error("apply", "the plan's rules must be known", got={"site": edit.site, "rule": edit.rule},
                             do="Pass the rule itself.", also=ValueError)  # fmt: skip
        return rule.init(site, Proposal(edit.rule, edit.block, edit.absorbs)).tensors


Fitting = Callable[[Site, Edit], Mapping[str, Tensor]]


def apply_edits(
    model: nn.Module, sites: Mapping[str, Site], edits: Iterable[Edit], fit: Fitting
) -> tuple[nn.Module, dict[str, Site]]:
    """Applies edits in their order, in place; returns the root and the sites as they are then.

    Raises:  ConvError: when the plan names a site that the network does not have, or a rule refuses.
    """
    now = dict(sites)
    for edit in edits:
        site = now.get(edit.site)
        if site is None:
            raise conv_error("apply", "each site of the plan must be a convolution of the network",
                             got={"site": edit.site}, do=f"The network has {', '.join(now)}.",
                             also=ValueError)  # fmt: skip
        tensors = dict(fit(site, edit))
        model = place(model, site.names, edit.block, tensors, edit.absorbs)
        now[edit.site] = site.after(edit.block, tensors, edit.absorbs)
    return model, now


def restat(model: nn.Module, edits: Iterable[Edit], rules: Sequence[Rule], batches: Iterable[Batch]) -> None:
    """Batch-norm statistics after edits, in place; where only stronger rules put norms in, the function stays."""
    groups = {rule.name: rule.group for rule in (*RULES, *rules)}
    batches = list(batches)
    settle(model, [edit.site for edit in edits if groups.get(edit.rule) == "stronger"], batches)
    if any(groups.get(edit.rule) != "stronger" for edit in edits):
        reestimate(model, batches)


def current(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites with the tensors and batch-norm statistics that `model` holds now (after a recovery, say)."""
    now = {}
    for name, site in sites.items():
        tensors = applied(model.get_submodule(site.names[0]))
        norm = site.norm and affine(site.norm.name, model.get_submodule(site.norm.name))
        now[name] = replace(site, tensors=tensors, norm=norm)
    return now


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
        like = next(old.parameters())
        student = swap(student, names, build(edit.block, device=like.device, dtype=like.dtype))
        for absorbed in edit.absorbs:
            student = absorb(student, absorbed)
    return to_layout(student, plan.layout)
