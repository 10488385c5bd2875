"""`apply`: a plan becomes a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from reconv.data import Feed
from reconv.errors import conv_error
from reconv.planning.edits import Fit, apply_edits, current, restat, with_data
from reconv.planning.gathering import Lessons, samples_for
from reconv.planning.made_for import check_made_for
from reconv.planning.plan import Edit, Plan
from reconv.planning.wholes import apply_wholes
from reconv.ruleset import RULES, Rule, rule_named
from reconv.surgery import Site, clone, find_sites, tensors_of
from reconv.targets import to_layout

CALIBRATION = 64  # samples to which weights are fitted
STATISTICS = 512  # samples by which batch-norm statistics are moved


def apply(
    model: nn.Module,
    plan: Plan,
    example_inputs: Tensor | Sequence[Any],
    data: object = None,
    *,
    rules: Sequence[Rule] = RULES,
    seed: int = 0,
) -> nn.Module:
    """A new network with the plan's edits, each started from the trained weights; `model` is untouched.

    Args:    data: inputs on whose responses smaller layers are fitted, and on which batch-norm statistics follow
             what the layers before them changed; None: layers are fitted to the weights alone, statistics stay.
             Batch norms that a stronger rule put in take them up, too, and compute what they did.
             rules: where the plan uses rules that are neither reconv's own nor an installed package's.
    Raises:  ConvError: when the plan does not fit the network, or a rule refuses a site.
    Example:
             >>> import torch
             >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4)).eval()
             >>> edit = {"site": "0", "rule": "fold_batch_norm", "block": "ic1oc4k3x3", "absorbs": ["1"]}
             >>> apply(net, Plan.from_dict({"format": 1, "edits": [edit]}), torch.zeros(1, 1, 5, 5))[1]
             Absorbed()
    """
    check_plan("apply", plan)
    inputs = tensors_of(example_inputs)
    feed = None if data is None else Feed.of(data, inputs)
    student, sites = opened(model, plan, inputs, feed, rules, seed)
    student, sites = edited(student, sites, altering(plan, rules), feed, rules, seed)
    return finish(student, sites, plan, rules)


def check_plan(name: str, plan: object) -> None:
    if not isinstance(plan, Plan):
        raise conv_error(name, "plan must be a Plan", got={"plan": type(plan).__name__},
                         do="Read a file with Plan.load.", also=TypeError)  # fmt: skip


def opened(model: nn.Module, plan: Plan, inputs: tuple[Any, ...], feed: Feed | None, rules: Sequence[Rule],
           seed: int) -> tuple[nn.Module, dict[str, Site]]:  # fmt: skip
    """A copy with the edits of whole modules, and its sites."""
    student = apply_wholes(clone(model), plan.wholes, inputs, Fit(rules))
    found = find_sites(student, inputs).sites
    check_made_for(plan, student, {site.name: site for site in found}, rules)
    known = with_data(found, feed.head(CALIBRATION, seed)) if feed is not None else found
    return student, {site.name: site for site in known}


def altering(plan: Plan, rules: Sequence[Rule]) -> list[Edit]:
    """The edits that change structure and values: those which come before recovery, wholes apart."""
    return [e for e in plan.edits if not (e.whole or _exact(e, rules))]


def edited(student: nn.Module, sites: Mapping[str, Site], edits: Sequence[Edit], feed: Feed | None,
           rules: Sequence[Rule], seed: int) -> tuple[nn.Module, dict[str, Site]]:  # fmt: skip
    """The network with these edits, fitted to what it gives now; its statistics follow them. In place."""
    lessons = None if feed is None else Lessons(clone(student).eval(), samples_for(feed, sites, seed))
    student, now = apply_edits(student, sites, edits, Fit(rules, lessons))
    if edits and feed is not None and lessons is not None:
        restat(student, lessons.teacher, edits, rules, feed.head(STATISTICS, seed))
    return student, now


def finish(student: nn.Module, sites: Mapping[str, Site], plan: Plan, rules: Sequence[Rule] = RULES) -> nn.Module:
    """The exact edits, on the weights as they are now, and the plan's memory format. In place."""
    edits = [e for e in plan.edits if _exact(e, rules) and not e.whole]
    student, _ = apply_edits(student, current(student, sites), edits, Fit(rules))
    return to_layout(student, plan.layout)


def _exact(edit: Edit, rules: Sequence[Rule]) -> bool:
    rule = next((r for r in (*rules, *RULES) if r.name == edit.rule), None) or rule_named(edit.rule)
    return rule is not None and rule.group == "exact"
