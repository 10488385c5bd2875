"""`reconv recover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reconv.commands import options as o
from reconv.commands.output import emit, first, progress, say

if TYPE_CHECKING:
    from torch import nn


def recover(
    ctx: typer.Context,
    run: o.Run,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    mean: o.Mean = None,
    std: o.Std = None,
    evaluate: o.Evaluate = None,
    holdout: o.Holdout = 0.1,
    epochs: o.Epochs = 3,
    precision: o.PrecisionName = None,
    ema: o.Ema = 0.0,
    log: o.LogKind = "json",
    seed: o.Seed = 0,
    config: o.Config = None,
    resume: o.Resume = False,
    format: o.MaybeFormat = None,
    trust_code: o.TrustCode = False,
) -> None:
    """Train the network of a run folder further, by distillation from the one that the run began with.

    On several GPUs or machines: accelerate launch -m reconv recover …
    """
    from reconv.commands import job as j
    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.rewrite import sheet
    from reconv.costing.summary import summary
    from reconv.data import Feed
    from reconv.planning.plan import Plan
    from reconv.rewriting.folder import alone
    from reconv.rewriting.job import held_error
    from reconv.rewriting.logs import logger
    from reconv.rewriting.looking import look
    from reconv.rewriting.processes import leave, stop_once
    from reconv.rewriting.recovery import Stopped
    from reconv.rewriting.recovery import recover as distill
    from reconv.rewriting.store import CHECKPOINT, PLAN, is_run, load, read_config, save_run
    from reconv.rewriting.teacher import matched
    from reconv.surgery.clone import clone

    if data is None:
        raise typer.BadParameter("give the data to recover on; labels are not needed", param_hint="--data")
    if not is_run(run):
        raise typer.BadParameter(f"must be a run folder, not {str(run)!r}", param_hint="RUN")
    shapes = check_flags(ctx, str(run), input or [], data, evaluate, trust_code)
    means, stds = scaling(mean, std, data)
    j.check_holdout(holdout)
    j.check_training(precision, ema, log)
    held_config = read_config(run)
    teacher = original(held_config, weights, trust_code)
    student = load(run, base=teacher)
    given = give(str(run), shapes, data=data, mean=means, std=stds, evaluate=evaluate, seed=seed,
                 network=student)  # fmt: skip
    plan = Plan.load(run / PLAN)
    again = {"data": data, "mean": mean, "std": std, "evaluate": evaluate, "holdout": holdout, "epochs": epochs,
             "seed": seed, "precision": precision, "ema": ema}  # fmt: skip
    stop_once()
    with j.resumable(run), alone(run if first() else None, "recover"), progress() as show:
        train, held = Feed.of(given.data, given.inputs).split(holdout, seed)
        try:
            student = distill(student, teacher, train, epochs, given.evaluate, held, seed, example_inputs=given.inputs,
                              match=matched(plan, student, teacher, train), progress=show,
                              checkpoint=run / CHECKPOINT, resume=resume, precision=precision, ema=ema,
                              log=logger(run, log) if first() else None).eval()  # fmt: skip
        except Stopped as stop:
            if first():
                save_run(run, model=stop.model.eval(), plan=plan, before=summary(teacher, given.inputs),
                         after=summary(stop.model, given.inputs), error=stop.distance,
                         config=held_config | {"recovered": again, "stopped": True})  # fmt: skip
            raise
        leave()
        if not first():
            return
        error = held_error(teacher, student, held)
        scores = (given.evaluate(clone(teacher)), given.evaluate(student)) if given.evaluate else None
        before, after = (summary(m, given.inputs, plan.target) for m in (teacher, student))
        seen = look(teacher, student, plan, given.inputs, held, [row.name for row in before.rows], seed)
        config_now = {name: value for name, value in held_config.items() if name != "stopped"}
        save_run(run, model=student, plan=plan, before=before, after=after, error=error, seen=seen,
                 config=config_now | {"recovered": again,
                                      "result": {**held_config.get("result", {}), "scores": scores}})  # fmt: skip
    emit(sheet(plan, before, after, error, scores), format)
    say(f"{run}: error of the output {error:.3g}, on data held out.")


def original(config: dict[str, Any], weights: Path | None, trust_code: bool, base: str | None = None) -> nn.Module:
    """The trained network that the run began with, and no other.

    Args:    base: what it is; else what the run folder names.
    """
    import torch

    from reconv.errors import conv_error
    from reconv.models import load_weights
    from reconv.rewriting.references import build_model
    from reconv.rewriting.store import base_of, is_run, weights_hash

    began, settings = config.get("model") or {}, config.get("settings") or {}
    if weights is None and began.get("weights"):
        raise typer.BadParameter(f"give the weights that the run began with ({began['weights']})",
                                 param_hint="--weights")  # fmt: skip
    torch.manual_seed(int(settings.get("seed", 0)))
    teacher = (build_model(base) if base and not is_run(base) else
               base_of(None, base or began.get("ref"), trust_code)).eval()  # fmt: skip
    if weights is not None:
        load_weights(teacher, weights)
    expected = began.get("weights_hash")
    if expected is not None and weights_hash(teacher) != expected:
        raise conv_error("recover", "the teacher must be the network that the run began with",
                         got={"model": repr(base or began.get("ref")), "weights": weights},
                         do="Give the --weights of then.", also=ValueError)  # fmt: skip
    return teacher
