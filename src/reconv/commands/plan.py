"""`reconv plan`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reconv.commands import options as o
from reconv.commands.output import Sheet, emit, number, progress, say

if TYPE_CHECKING:
    from reconv.planning.plan import Plan


def plan(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    mean: o.Mean = None,
    std: o.Std = None,
    budget: o.BudgetText = None,
    target: o.TargetName = "torch",
    rules: o.Rules = "exact,smaller",
    sites: o.Sites = "*",
    seed: o.Seed = 0,
    config: o.Config = None,
    out: o.PlanOut = Path("plan.json"),
    format: o.MaybeFormat = None,
    trust_code: o.TrustCode = False,
) -> None:
    """Choose what each convolution becomes, by measuring; write the plan."""
    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.job import check_job
    from reconv.planning.make import plan as make
    from reconv.rewriting.store import write_json

    shapes = check_flags(ctx, model, input or [], data, None, trust_code)
    means, stds = scaling(mean, std, data)
    job = check_job(budget, rules, target, sites)
    given = give(model, shapes, weights=weights, data=data, mean=means, std=stds, seed=seed,
                 trust_code=trust_code)  # fmt: skip
    with progress() as show:
        found = make(given.model, given.inputs, data=given.data, seed=seed, progress=show, **job)
    found = named(found, model)
    out = out / "plan.json" if out.is_dir() else out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found.to_dict())
    emit(sheet(found), format)
    for line in unused(found):
        say(line)
    say(f"{out}: {verdict(found)}")
    if not found.met:
        raise typer.Exit(3)


def named(plan: Plan, ref: str) -> Plan:
    """The plan, saying what the command line called its network."""
    from dataclasses import replace

    return replace(plan, model={**plan.model, "ref": ref})


def verdict(plan: Plan) -> str:
    """One line: how much changes, and whether the budget holds."""
    layers = len({edit.site for edit in plan.edits})  # several rules may serve one
    changes = f"{layers} {'layer changes' if layers == 1 else 'layers change'}"
    layout = "" if plan.layout == "contiguous" else f", {plan.layout} memory layout"
    ratio = layout + ("" if plan.latency_ratio is None else f", latency ×{plan.latency_ratio:.3g}")
    ratio += f", fitted to {plan.fit}" if plan.edits else ""
    if not plan.budget:
        return f"{changes}{ratio}."
    if plan.met:
        return f"{changes}{ratio}; the budget {plan.budget} is met."
    return f"{changes}{ratio}; the budget {plan.budget} is not met, this is the best found. {plan.reason or ''}"


def unused(plan: Plan, most: int = 2) -> list[str]:
    """What the rules that change nothing said most often, a line for those that said the same."""
    used = {edit.rule for edit in plan.edits}
    reasons: dict[str, Counter[str]] = {}
    for refusal in plan.refusals:
        if refusal.rule not in used | {"*"}:
            reasons.setdefault(refusal.rule, Counter())[refusal.reason.rstrip(".")] += 1
    rules: dict[str, list[str]] = {}
    for rule, counted in reasons.items():
        told = [reason if n == 1 else f"{reason} ({n} times)" for reason, n in counted.most_common(most)]
        others = [f"{len(counted) - most} more in the plan"] if len(counted) > most else []
        rules.setdefault("; ".join(told + others), []).append(rule)
    return [f"{', '.join(names)} {'changes' if len(names) == 1 else 'change'} nothing: {told}."
            for told, names in rules.items()]  # fmt: skip


def sheet(plan: Plan) -> Sheet:
    """What each layer becomes."""
    rows = [[e.site, e.rule, str(e.block), number(e.error), number(e.latency_ms)] for e in plan.edits]
    return Sheet(("site", "rule", "block", "error", "latency_ms"), rows, plan.to_dict())
