"""`reconv report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reconv.commands import options as o
from reconv.commands.output import progress, say
from reconv.errors import ConvError

if TYPE_CHECKING:
    from reconv.reporting.seen import Seen
    from reconv.rewriting.store import Run


def report(
    ctx: typer.Context,
    run: o.Run,
    base: o.Base = None,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    mean: o.Mean = None,
    std: o.Std = None,
    evaluate: o.Evaluate = None,
    holdout: o.Holdout = 0.1,
    seed: o.Seed = 0,
    config: o.Config = None,
    trust_code: o.TrustCode = False,
) -> None:
    """Write report.html of a run folder anew; with the network at hand also what its layers give and see.

    Data and inputs are those of the run where none are given. With --evaluate, each rewritten layer alone is scored.
    """
    from reconv.commands.job import check_holdout
    from reconv.models import check_ref
    from reconv.reporting.page import page
    from reconv.rewriting.store import REPORT, is_run, read_run, write_text

    if not is_run(run):
        raise typer.BadParameter(f"must be a run folder, not {str(run)!r}", param_hint="RUN")
    if base is not None:
        with o.usage("--base"):
            check_ref(base)
    check_holdout(holdout)
    held = read_run(run)
    asked = any(flag is not None for flag in (base, weights, input, data, mean, std, evaluate)) or trust_code
    given = {"input": input or [], "data": data, "mean": mean, "std": std}
    flags = {**_as_then(held.config, trust_code), **{name: value for name, value in given.items() if value}}
    try:
        seen = _seen(ctx, run, held, flags, base, weights, evaluate, holdout, seed, trust_code)
    except (ConvError, typer.BadParameter) as error:
        if asked:
            raise
        seen = _without(getattr(error, "message", None) or str(error))
    for part, why in seen.missing.items():
        say(f"{part}: {why}")
    write_text(run / REPORT, page(held.before, held.after, held.plan, held.config, held.error, seen))
    say(f"{run / REPORT}: written.")


def _as_then(config: dict[str, Any] | Any, trust_code: bool) -> dict[str, Any]:
    """The data of the run; code that the folder names is run only where it is trusted."""
    settings = config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    data = settings.get("data")
    if not isinstance(data, str) or not (trust_code or Path(data).exists()):
        return {}
    return {name: settings.get(name) for name in ("data", "mean", "std")}


def _seen(ctx: typer.Context, run: Path, held: Run, flags: dict[str, Any], base: str | None, weights: Path | None,
          evaluate: str | None, holdout: float, seed: int, trust_code: bool) -> Seen:  # fmt: skip
    """What both networks make of samples."""
    from dataclasses import replace

    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.recover import original
    from reconv.costing.summary import summary
    from reconv.data import Feed
    from reconv.rewriting.looking import look, scores_alone
    from reconv.rewriting.store import load

    data = flags.get("data")
    shapes = check_flags(ctx, str(run), flags.get("input", []), data, evaluate, trust_code)
    means, stds = scaling(flags.get("mean"), flags.get("std"), data)
    teacher = original(dict(held.config), weights, trust_code, base)
    student = load(run, base=teacher)
    given = give(str(run), shapes, data=data, mean=means, std=stds, evaluate=evaluate, seed=seed, network=student)
    train, judged = Feed.of(given.data, given.inputs).split(holdout, seed) if given.data is not None else (None, None)
    rows = (held.before or summary(teacher, given.inputs)).rows
    seen = look(teacher, student, held.plan, given.inputs, judged, [row.name for row in rows], seed)
    if given.evaluate is None:
        return seen
    with progress() as show:
        scores, missing = scores_alone(teacher, held.plan, given.inputs, train, given.evaluate, seed=seed,
                                       progress=show)  # fmt: skip
    return replace(seen, scores=scores, missing={**seen.missing, **missing})


def _without(why: str) -> Seen:
    from reconv.reporting.seen import Seen

    how = "Give reconv report what is missing: --base, --weights, --data or --input, or --trust-code."
    return Seen(missing={"what the layers give and see": f"{why} {how}"})
