"""`reconv rewrite`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from reconv.commands import options as o
from reconv.commands.options import usage
from reconv.commands.output import Sheet, emit, number, progress, say

if TYPE_CHECKING:
    from reconv.costing.summary import Summary
    from reconv.planning.plan import Plan


def rewrite(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    mean: o.Mean = None,
    std: o.Std = None,
    evaluate: o.Evaluate = None,
    holdout: o.Holdout = 0.1,
    budget: o.BudgetText = None,
    target: o.TargetName = "torch",
    rules: o.Rules = "exact,smaller",
    sites: o.Sites = "*",
    epochs: o.Epochs = 3,
    stages: o.Stages = 1,
    precision: o.PrecisionName = None,
    ema: o.Ema = 0.0,
    log: o.LogKind = "json",
    seed: o.Seed = 0,
    plan: o.PlanFile = None,
    wishes: o.WishesFile = None,
    front: o.Front = 0,
    config: o.Config = None,
    resume: o.Resume = False,
    out: o.Out = None,
    format: o.MaybeFormat = None,
    trust_code: o.TrustCode = False,
) -> None:
    """Rewrite a trained network so that it keeps a budget: plan, apply, recover, measure."""
    from reconv.commands import job as j
    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.plan import named, unused, verdict
    from reconv.rewriting.folder import alone
    from reconv.rewriting.job import rewrite as run
    from reconv.rewriting.recovery import Stopped
    from reconv.rewriting.stages import check_stages
    from reconv.rewriting.store import is_run, read_config, save_run, weights_hash, write_config
    from reconv.surgery.fingerprint import structure_hash

    shapes = check_flags(ctx, model, input or [], data, evaluate, trust_code)
    means, stds = scaling(mean, std, data)
    job = j.check_job(budget, rules, target, sites, free=bool(plan or wishes or front))
    ready, wished = j.read_plan(plan), j.read_wishes(wishes)
    j.check_holdout(holdout)
    j.check_training(precision, ema, log)
    with usage("--stages"):
        check_stages(stages, epochs, data)
    folder = j.run_folder(out, model, resume)
    given = give(model, shapes, weights=weights, data=data, mean=means, std=stds, evaluate=evaluate,
                 seed=seed, trust_code=trust_code)  # fmt: skip
    began = {"ref": model, "hash": structure_hash(given.model), "weights": weights and str(weights),
             "weights_hash": weights_hash(given.model)}  # fmt: skip
    settings: dict[str, Any] = {
        "input": list(given.shapes), "data": data, "mean": mean, "std": std, "evaluate": evaluate, "holdout": holdout,
        **job, "epochs": epochs, "seed": seed, "plan": plan and str(plan), "wishes": wishes and str(wishes),
        "stages": stages, "precision": precision, "ema": ema,
    }  # fmt: skip
    if resume and is_run(folder):
        j.check_same(read_config(folder), settings)
    with j.resumable(folder), alone(folder, "rewrite"), progress() as show:
        write_config(folder, {"model": began, "settings": settings})
        try:
            result = run(given.model, given.inputs, data=given.data, epochs=epochs, evaluate=given.evaluate,
                         holdout=holdout, seed=seed, plan=ready, wishes=wished, front=front, out=folder, resume=resume,
                         progress=show, stages=stages, precision=precision, ema=ema, log=log, **job)  # fmt: skip
        except Stopped:
            write_config(folder, {"model": began, "settings": settings, "stopped": True})
            raise
        made = named(result.plan, model)
        facts = {"latency_ratio": result.latency_ratio, "scores": result.scores}
        save_run(folder, model=result.model, plan=made, before=result.before, after=result.after, error=result.error,
                 config={"model": began, "settings": settings, "result": facts}, seen=result.seen)  # fmt: skip
    emit(sheet(made, result.before, result.after, result.error, result.scores), format)
    for line in unused(made):
        say(line)
    say(f"{folder}: {verdict(made)}")
    if not made.met:
        raise typer.Exit(3)


def sheet(
    plan: Plan, before: Summary, after: Summary, error: float | None, scores: tuple[float, float] | None = None
) -> Sheet:
    """The whole network, before and after. The ratio of latencies is the interleaved one, which noise touches least."""
    names = ("latency_ms", "params", "macs", "activation_bytes")
    rows = []
    for name in names:
        old, new = getattr(before.network, name), getattr(after.network, name)
        ratio = number(new / old if old and new is not None else None)
        if name == "latency_ms" and plan.latency_ratio is not None:
            ratio = f"{number(plan.latency_ratio)} (interleaved)"
        rows.append([name, number(old), number(new), ratio])
    rows.append(["error", "", number(error), ""])
    if scores is not None:
        rows.append(["score", *map(number, scores), ""])
    data = {"format": 1, "met": plan.met, "reason": plan.reason, "error": error, "latency_ratio": plan.latency_ratio,
            "scores": scores, "before": before.to_dict(), "after": after.to_dict(), "plan": plan.to_dict()}  # fmt: skip
    return Sheet(("figure", "before", "after", "ratio"), rows, data)
