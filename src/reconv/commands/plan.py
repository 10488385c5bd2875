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
    evaluate: o.Evaluate = None,
    wishes: o.WishesFile = None,
    front: o.Front = 0,
    explain: o.Explain = None,
    config: o.Config = None,
    out: o.PlanOut = Path("plan.json"),
    format: o.MaybeFormat = None,
    trust_code: o.TrustCode = False,
) -> None:
    """Choose what each convolution becomes, by measuring; write the plan.

    With --explain, MODEL may be a plan or a run folder: nothing is measured then.
    """
    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.job import check_job, read_wishes
    from reconv.planning.make import plan as make
    from reconv.rewriting.store import save_front
    from reconv.writing import told, write_text

    if explain is not None and (known := known_plan(model)):
        emit(explained(known, explain), format or o.Format.TABLE)
        return
    shapes = check_flags(ctx, model, input or [], data, evaluate, trust_code)
    means, stds = scaling(mean, std, data)
    wished = read_wishes(wishes)
    job = check_job(budget, rules, target, sites, free=bool(wished or front))
    given = give(model, shapes, weights=weights, data=data, mean=means, std=stds, evaluate=evaluate, seed=seed,
                 trust_code=trust_code)  # fmt: skip
    with progress() as show:
        found = make(given.model, given.inputs, data=given.data, seed=seed, wishes=wished, front=front,
                     evaluate=given.evaluate, progress=show, **job)  # fmt: skip
    found = named(found, model)
    out = out / "plan.json" if out.is_dir() else out
    with told(out, "plan"):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, found.text(), "plan")
    emit(sheet(found) if explain is None else explained(found, explain), format)
    if found.alternatives:
        folder = out.with_name(f"{out.stem}-front")
        save_front(folder, found)
        say(f"{folder}: {len(found.alternatives)} plans, and front.svg")
    for line in unused(found):
        say(line)
    say(f"{out}: {verdict(found)}")
    if not found.met:
        raise typer.Exit(3)


def named(plan: Plan, ref: str) -> Plan:
    """The plan, saying what the command line called its network."""
    from dataclasses import replace

    others = tuple(named(other, ref) for other in plan.alternatives)
    return replace(plan, model={**plan.model, "ref": ref}, alternatives=others)


def known_plan(model: str) -> Plan | None:
    """The plan that MODEL is, or that its run folder holds; None for a network."""
    from reconv.planning.plan import Plan
    from reconv.rewriting.folder import placed
    from reconv.rewriting.store import PLAN, is_run

    if is_run(model):
        return Plan.load(placed(Path(model), PLAN))
    return Plan.load(model) if Path(model).suffix == ".json" else None


def explained(plan: Plan, site: str) -> Sheet:
    """Every proposal for a site; the fastest first, those that were not measured last."""
    rows = sorted(plan.explain(site), key=lambda row: (row.latency_ms is None, row.latency_ms))
    cells = [[r.rule, str(r.block), number(r.latency_ms), number(r.fit_error), number(r.error), r.verdict]
             for r in rows]  # fmt: skip
    return Sheet(("rule", "block", "latency_ms", "fit_error", "error", "verdict"), cells,
                 {"format": 1, "site": site, "considered": [row.to_dict() for row in rows]})  # fmt: skip


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
