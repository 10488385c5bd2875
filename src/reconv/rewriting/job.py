"""`rewrite`: the whole job, from a trained network and a budget to a faster network that was measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reconv.costing.summary import Summary, summary
from reconv.data import Feed
from reconv.errors import conv_error
from reconv.planning.additions import ADDING
from reconv.planning.budget import Budget, Limit
from reconv.planning.make import Rules
from reconv.planning.make import plan as make
from reconv.planning.plan import Plan
from reconv.planning.table import Progress
from reconv.planning.wishes import Wishes
from reconv.reporting.brief import result_html
from reconv.reporting.seen import Seen
from reconv.rewriting.apply import check_plan
from reconv.rewriting.folder import alone
from reconv.rewriting.logs import logger
from reconv.rewriting.looking import look
from reconv.rewriting.processes import launched
from reconv.rewriting.recovery import Stopped, check_training
from reconv.rewriting.stages import Stages, check_stages
from reconv.rewriting.store import CHECKPOINT, PLAN, WEIGHTS, save_run, weights_hash
from reconv.ruleset import RULES, rules_named
from reconv.surgery import clone, fresh, tensors_of
from reconv.surgery.outputs import at_old_positions, ratio, squared_distance
from reconv.targets import Target, get_target, layout_of, time_networks
from reconv.writing import told, write_text

MEASURED_AGAIN = 3  # times a network just over its latency budget is measured, since timing is noisy


@dataclass(frozen=True)
class Result:
    """What a rewrite gave.

    Args:    model: the rewritten network, in evaluation mode; the original's copy where nothing better was found.
             plan: what was done. met, reason: whether the budget holds, measured on the final network; why not.
             before, after: timed Summaries. latency_ratio: after / before, in one interleaved run.
             error: ‖student − teacher‖ / ‖teacher‖ on held-out data; None without data.
             scores: what `evaluate` gave before and after; None without it.
             config: what it was called with. seen: what the layers of both networks make of samples, for the report.
    """

    model: nn.Module
    plan: Plan
    before: Summary
    after: Summary
    error: float | None
    latency_ratio: float
    scores: tuple[float, float] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seen: Seen | None = field(default=None, repr=False, compare=False)

    @property
    def met(self) -> bool:
        return self.plan.met

    @property
    def reason(self) -> str | None:
        return self.plan.reason

    def save(self, folder: str | Path) -> None:
        """Writes a run folder, which `reconv.load` rebuilds the network from."""
        save_run(folder, model=self.model, plan=self.plan, before=self.before, after=self.after, error=self.error,
                 config=dict(self.config), seen=self.seen)  # fmt: skip

    def _repr_html_(self) -> str:
        """The verdict, the figures, both networks as strips, and what each layer became."""
        return result_html(self.before, self.after, self.plan, self.config, self.error, self.seen)


def rewrite(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    budget: str | Mapping[str, float | str] | Budget | None = None,
    data: object = None,
    target: str | Target = "torch",
    rules: Rules = ("exact", "smaller"),
    sites: str | Sequence[str] = "*",
    epochs: int = 3,
    evaluate: Callable[[nn.Module], float] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    *,
    plan: Plan | None = None,
    wishes: Plan | Wishes | Mapping[str, Any] | None = None,
    front: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    ref: str | None = None,
    progress: Progress | None = None,
    stages: int = 1,
    precision: str | None = None,
    ema: float = 0.0,
    log: str = "json",
) -> Result:
    """Rewrites a trained network so that it keeps a budget: plan, apply, recover, measure.

    Args:    data: a tensor, a Dataset or batches; labels are used where there are any. None: no recovery.
             epochs: of recovery; 0: none. holdout: the share of `data` that only judges.
             evaluate: a score of a network, higher is better; else the distance to the original's output judges.
             plan: to be carried out, instead of choosing one; its budget counts where none is given.
             wishes, front: as for `reconv.plan`; the front's scores are of networks that have not recovered yet.
             out: a run folder for plan.json, checkpoint/ and log.jsonl while the job runs; `resume` goes on there.
             stages: the edits are applied in so many parts, the cheapest in error first, each part recovered for its
             share of the epochs. precision, ema: as for `recover`. log: "json", or "tensorboard", too.
             ref: MODEL as the command line names it, by which `load` finds the network's structure again.
             The rest as for `plan`.
    Returns: a Result. An unmet budget never raises: `met` is False, `reason` says why, `model` is the best found,
             never slower than what was given.
    Raises:  ConvError: for a wrong budget, rule, network or data, and in one of several processes, which only
             `recover` knows how to share. Stopped: for Ctrl-C while it recovers, a KeyboardInterrupt; `out` then holds
             the best so far, not timed, and `resume` goes on.
    Example:
             >>> import torch
             >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))
             >>> result = rewrite(net, torch.rand(1, 8, 12, 12), budget="params=0.5")
             >>> result.met, result.after.network.params <= 0.5 * result.before.network.params
             (True, True)
    """
    if launched() > 1:
        raise conv_error("rewrite", "rewrite must run in one process", got={"processes": launched()},
                         do="Rewrite with epochs=0 in one, then recover in all of them.")  # fmt: skip
    inputs = tensors_of(example_inputs)
    if plan is not None:
        check_plan("rewrite", plan)
    check_stages(stages, epochs, data)
    check_training(precision, ema)
    limits = Budget.of(plan.budget if plan and budget is None else budget)
    engine, found = get_target(target), rules_named(rules)
    train, held = Feed.of(data, inputs).split(holdout, seed) if data is not None else (None, None)
    for part in filter(None, (train, held)):
        part.head(1)  # what is wrong with them is said before any work
    folder = None if out is None else Path(out)
    with alone(folder, "rewrite"):
        tell = logger(folder, log)
        kept = _plan_of(folder) if resume else None
        made = kept or plan or make(
            model, inputs, limits, train, engine, rules, sites, seed, wishes=wishes, front=front,
            evaluate=evaluate, ref=ref, progress=progress,
        )  # fmt: skip
        made = replace(made, target=engine.name)
        if kept is None:
            _note_plan(folder, made)
        ready = kept is not None or plan is not None  # it may have been made on another engine
        exact = {rule.name for rule in (*RULES, *found) if rule.group in ("exact", "denser")}
        changed = any(edit.rule not in exact for edit in made.edits)
        options = {"evaluate": evaluate, "progress": progress, "resume": resume, "precision": precision, "ema": ema}
        try:
            student = Stages(model, made, inputs, found, train, held, seed, stages, folder and folder / CHECKPOINT,
                             tell, engine if ready else None, options).run(epochs if changed else 0)  # fmt: skip
        except Stopped as stop:
            if folder is not None and stop.plan is not None:
                save_run(folder, model=stop.model, plan=stop.plan, error=stop.distance, config={"stopped": True},
                         before=summary(model, inputs), after=summary(stop.model, inputs))  # fmt: skip
            raise
        adding = {rule.name for rule in found if rule.group in ADDING}
        asked = _latency_counts(limits) if limits else not any(edit.rule in adding for edit in made.edits)
        asked = asked and plan is None and not made.wishes.force
        made, student, latency_ratio = _measured(model, student, made, limits, inputs, engine, asked)
        scores = (float(evaluate(clone(model).eval())), float(evaluate(student))) if evaluate else None
        finer = any(rule.group == "denser" and rule.name in {e.rule for e in made.edits} for rule in found)
        error = held_error(model, student, held, finer) if held is not None else None
        if error is not None and made.edits:
            made = _judged(made, limits, "error", error)
        config = {"model": {**made.model, "weights_hash": weights_hash(model)}, "rules": [r.name for r in found],
                  "budget": made.budget, "target": made.target, "epochs": epochs, "seed": seed, "holdout": holdout,
                  "latency_ratio": latency_ratio, "scores": scores}  # fmt: skip
        before, after = summary(model, inputs, engine), summary(student, inputs, engine)
        seen = look(model, student, made, inputs, held, [row.name for row in before.rows], seed)
        result = Result(student, made, before, after, error, latency_ratio, scores, config, seen)
        if folder is not None:
            result.save(folder)
        return result


def _plan_of(folder: Path | None) -> Plan | None:
    """The plan of the interrupted run that is gone on with."""
    path = None if folder is None else folder / CHECKPOINT / PLAN
    return Plan.load(path) if path is not None and path.is_file() else None


def _note_plan(folder: Path | None, made: Plan) -> None:
    """Where the checkpoints will be, those of old being removed; and in the run folder, unless that has a network."""
    if folder is None:
        return
    kept = folder / CHECKPOINT
    with told(kept, "rewrite"):
        (kept / PLAN).unlink(missing_ok=True)  # first, since checkpoints without their plan are none
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
    for place in (kept, folder) if not (folder / WEIGHTS).exists() else (kept,):
        write_text(place / PLAN, made.text(), "rewrite")


def _measured(model: nn.Module, student: nn.Module, made: Plan, budget: Budget, inputs: tuple[Any, ...],
              engine: Target, asked: bool) -> tuple[Plan, nn.Module, float]:  # fmt: skip
    """The plan and network with the final figure of the latency; the original's copy where that was not slower.

    Args:    asked: whether it must not be slower: not where a rule added to it.
    """
    if not made.edits and made.layout == layout_of(model):
        return replace(made, latency_ratio=1.0), student, 1.0
    original = clone(model).eval()
    limit = budget.limits.get("latency")
    for _ in range(MEASURED_AGAIN):
        before, after = time_networks(engine, [original, student], inputs)
        latency_ratio = after.median_ms / before.median_ms
        over = limit is not None and (after.median_ms if limit.absolute else latency_ratio) > limit.value
        if not over and latency_ratio <= 1:
            break
    if latency_ratio > 1 and asked:
        reason = f"rewritten, it measured slower ({latency_ratio:.3g} of the latency), so that it stays as it is"
        made = replace(made, edits=(), layout=layout_of(model), met=_holds_as_given(budget, before.median_ms),
                       reason=reason, latency_ratio=1.0)  # fmt: skip
        return made, original, 1.0
    made = _judged(made, budget, "latency", after.median_ms if limit and limit.absolute else latency_ratio)
    return replace(made, latency_ratio=latency_ratio), student, latency_ratio


def _judged(made: Plan, budget: Budget, name: str, got: float) -> Plan:
    """The plan, with a figure of the final network in the place of what planning expected."""
    if name not in budget:
        return made
    others = [reason for reason in (made.reason or "").split("; ") if reason and not reason.startswith(f"{name}:")]
    reasons = others + budget.misses({name: got})
    return replace(made, met=not reasons, reason="; ".join(reasons) or None)


def _holds_as_given(budget: Budget, latency_ms: float) -> bool:
    """Whether the original keeps the budget, as far as its latency tells."""

    def holds(name: str, limit: Limit) -> bool:
        if name == "error":
            return True
        return name == "latency" and latency_ms <= limit.value if limit.absolute else limit.value >= 1

    return all(holds(name, limit) for name, limit in budget.limits.items())


def _latency_counts(budget: Budget) -> bool:
    """Where only size or error was budgeted, a slower network may be what was asked for."""
    return not budget or "latency" in budget


def held_error(model: nn.Module, student: nn.Module, held: Feed, finer: bool = False) -> float:
    """Distance of the outputs over the held-out data; finer: at the positions that the model's have."""
    teacher, apart, size = clone(model).eval(), 0.0, 0.0
    with torch.no_grad():
        for batch in held.batches():
            ours, theirs = student(*fresh(batch.inputs)), teacher(*fresh(batch.inputs))
            a, s = squared_distance(at_old_positions(ours, theirs) if finer else ours, theirs)
            apart, size = apart + a, size + s
    return ratio(apart, size)
