"""Whether a plan was made for a network: which of its sites differ, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from reconv.errors import ConvError, conv_error
from reconv.planning.plan import Edit, Plan
from reconv.ruleset import RULES, Rule
from reconv.spec import ConvSpec
from reconv.surgery import Site
from reconv.surgery.sites import within

MISSING = "missing"


def check_made_for(plan: Plan, model: nn.Module, sites: Mapping[str, Site], rules: Sequence[Rule] = RULES) -> None:
    """Raises ConvError (a ValueError) that names each site of the plan that the network has not, or has otherwise.

    Args:    model: the network, after the plan's edits of whole modules; sites: its convolutions.
    """
    differ: dict[str, str] = {}
    known, beside = plan.sites, {name for edit in plan.edits for name, _ in edit.also}
    finer = {rule.name for rule in (*RULES, *rules) if rule.group == "denser"}
    for edit in plan.edits:
        if edit.whole or edit.site in differ:
            continue
        site = sites.get(edit.site)
        if site is None:
            differ[edit.site] = _found(model, edit.site)
        elif edit.site in known:
            differ |= {} if known[edit.site] == str(site.spec) else {edit.site: _otherwise(known[edit.site], site.spec)}
        elif not (edit.also or edit.site in beside or edit.rule in finer or _stands_in(edit, site)):
            differ[edit.site] = _otherwise(f"what {edit.block} stands in for", site.spec)
        differ |= {name: MISSING for name in (*edit.absorbs, *dict(edit.also)) if _module(model, name) is None}
    if differ:
        raise conv_error("apply", "each site of the plan must be a convolution of the network, as it was for the plan",
                         got=differ, also=ValueError,
                         do=f"Give the network that it was made for; this one has {', '.join(sites)}.")  # fmt: skip


def differing(plan: Plan, model: nn.Module) -> dict[str, str]:
    """The same of a network that is not run: the sites of which the weight has another shape, or which are missing."""
    found = {}
    wholes = {edit.site for edit in plan.wholes}
    for name, text in plan.sites.items():
        if within(name, wholes):
            continue
        module, expected = _module(model, name), ConvSpec.parse(text)
        try:
            spec = ConvSpec.of(module)
        except ConvError:
            found[name] = _found(model, name)
            continue
        if expected.weight_shape != spec.weight_shape:
            found[name] = _otherwise(text, spec)
    return found


def _stands_in(edit: Edit, site: Site) -> bool:
    """Whether the block gives maps of the shapes that the convolution gives."""
    try:
        return all(call.shape_by(edit.block) == call.output_shape for call in site.calls)
    except ConvError:
        return False


def _otherwise(expected: str, found: ConvSpec) -> str:
    return f"'expected {expected}, found {found}'"


def _found(model: nn.Module, name: str) -> str:
    module = _module(model, name)
    return MISSING if module is None else f"'no convolution but {type(module).__name__}'"


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
