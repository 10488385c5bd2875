"""The rewriting rules, one file each, and how they are named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from reconv.errors import conv_error
from reconv.ruleset.asymmetric import Asymmetric
from reconv.ruleset.atrous import Atrous
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.combined import Combined
from reconv.ruleset.deform import Deformable
from reconv.ruleset.dense import Dense
from reconv.ruleset.dilate_branch import DilateBranch
from reconv.ruleset.expand_branches import ExpandBranches
from reconv.ruleset.fold_batch_norm import FoldBatchNorm
from reconv.ruleset.fold_branches import FoldBranches
from reconv.ruleset.fuse_activation import FuseActivation
from reconv.ruleset.kernel import OwnKernel
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.merge_linear import MergeLinear
from reconv.ruleset.multi_dilated import MultiDilated
from reconv.ruleset.multi_size import MultiSize
from reconv.ruleset.plugins import PLUGINS, plugin
from reconv.ruleset.pointwise_after import PointwiseAfter
from reconv.ruleset.prune_channels import PruneChannels
from reconv.ruleset.remove import Remove
from reconv.ruleset.rule import Proposal, Rule, Weights
from reconv.ruleset.separable import Separable
from reconv.ruleset.shuffled_group import ShuffledGroup
from reconv.ruleset.skip import Skip
from reconv.ruleset.squeeze_excite import SqueezeExcite
from reconv.ruleset.stacked import Stacked
from reconv.ruleset.subpixel import Subpixel
from reconv.ruleset.trim import Trim
from reconv.ruleset.widen_kernel import WidenKernel

__all__ = ["GROUPS", "RULES", "Proposal", "Rule", "Weights", "rule_named", "rules_named"]

# exact rules are applied in this order: where the batch norm is folded, the activation is next
RULES: tuple[Rule, ...] = (
    FoldBatchNorm(), FoldBranches(), MergeLinear(), Trim(), FuseActivation(), OwnKernel(), Subpixel(),
    Separable(), Asymmetric(), Bottleneck(), ShuffledGroup(), Stacked(), MultiDilated(), LowRankPointwise(),
    Remove(), PruneChannels(), Combined(),
    SqueezeExcite(), PointwiseAfter(), MultiSize(), ExpandBranches(), Deformable(), Skip(), Dense(), WidenKernel(),
    DilateBranch(),
    Atrous(),
)  # fmt: skip
GROUPS = ("exact", "smaller", "stronger", "denser")


def rules_named(*wanted: str | Rule | Iterable[str | Rule]) -> tuple[Rule, ...]:
    """The rules that names, groups and Rule objects stand for, each once, in the order asked for.

    A group holds reconv's own rules. A name may also be that of an installed package's rule (see docs/rules/README.md).

    Raises:  ConvError (a ValueError): when a name is none, or a group has no rule; when a package's rule is unusable.
    Example:
             >>> [rule.name for rule in rules_named("bottleneck", "smaller")][:3]
             ['bottleneck', 'separable', 'asymmetric']
    """
    found: dict[str, Rule] = {}
    for one in _flat(wanted):
        for rule in _named(one) if isinstance(one, str) else (one,):
            if found.setdefault(rule.name, rule) is not rule:
                raise conv_error("rules", "two rules must not share a name", got={"name": rule.name}, also=ValueError)
    return tuple(found.values())


def rule_named(name: str) -> Rule | None:
    """The one rule of this name: reconv's own, or that of an installed package; None where there is none.

    Raises:  ConvError: when an installed package takes a name of reconv's own, or its rule is unusable.
    """
    own = next((rule for rule in RULES if rule.name == name), None)
    if own:
        PLUGINS.check_unclaimed(name)
    return own or (None if name in GROUPS else plugin(name, GROUPS))


def _flat(wanted: Iterable[Any]) -> Iterator[Any]:
    for one in wanted:
        if isinstance(one, str) or hasattr(one, "propose"):
            yield one
        elif isinstance(one, Iterable):
            yield from _flat(one)
        else:
            raise conv_error("rules", "each must be a name, a group or a Rule", got={"rule": repr(one)}, also=TypeError)


def _named(name: str) -> list[Rule]:
    if rules := [rule for rule in RULES if name == rule.group]:
        return rules
    if rule := rule_named(name):
        return [rule]
    if name in GROUPS:
        raise conv_error("rules", "the group must have rules", got={"group": name}, do=_choices(), also=ValueError)
    known = [*GROUPS, *(rule.name for rule in RULES), *PLUGINS.offers()]
    near = difflib.get_close_matches(name, known, n=2)
    did_you_mean = f"Did you mean {' or '.join(near)}? " if near else ""
    raise conv_error("rules", "each must be the name of a rule or of a group", got={"rule": repr(name)},
                     do=did_you_mean + _choices(), also=ValueError)  # fmt: skip


def _choices() -> str:
    groups = sorted({rule.group for rule in RULES})
    more = f" Installed packages add {', '.join(names)}." if (names := PLUGINS.offers()) else ""
    return f"There are {', '.join(rule.name for rule in RULES)}; groups {', '.join(groups)}.{more}"
