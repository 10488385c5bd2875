"""`reconv report`."""

from __future__ import annotations

from collections.abc import Mapping
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
    from reconv.rewriting.folder import alone
    from reconv.rewriting.store import REPORT, is_run, read_run
    from reconv.writing import write_text

    if not is_run(run):
        raise typer.BadParameter(f"must be a run folder, not {str(run)!r}", param_hint="RUN")
    if base is not None:
        with o.usage("--base"):
            check_ref(base)
    check_holdout(holdout)
    held = read_run(run)
    flags = {"base": base, "weights": weights, "input": input, "data": data, "mean": mean, "std": std,
             "evaluate": evaluate, "holdout": holdout, "seed": seed, "trust_code": trust_code}  # fmt: skip
    asked = {name for name in flags if (source := ctx.get_parameter_source(name)) and source.name != "DEFAULT"}
    seen = _seen(ctx, run, held, _as_then(held.config, flags, asked), bool(asked))
    for part, why in seen.missing.items():
        say(f"{part}: {why}")
    with alone(run, "report"):
        write_text(run / REPORT, page(held.before, held.after, held.plan, held.config, held.error, seen), "report")
    say(f"{run / REPORT}: written.")


def _as_then(config: Mapping[str, Any], flags: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The flags, with data and seed of the run where none are given; code that it names is run only where trusted."""
    settings = config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    data = settings.get("data")
    if "data" in asked or not isinstance(data, str):
        return flags
    if not (flags["trust_code"] or Path(data).is_dir() or Path(data).suffix == ".npz"):
        return flags
    then = ("data", "mean", "std", "holdout", "seed")
    return flags | {name: settings[name] for name in then if name in settings and name not in asked}


def _seen(ctx: typer.Context, run: Path, held: Run, flags: Mapping[str, Any], asked: bool) -> Seen:
    """What both networks make of samples; why not, where nothing that would be needed was asked for."""
    from dataclasses import replace

    from reconv.commands.given import check_flags, give, scaling
    from reconv.commands.recover import original
    from reconv.costing.summary import summary
    from reconv.data import Feed
    from reconv.reporting.seen import Seen
    from reconv.rewriting.looking import look, scores_alone
    from reconv.rewriting.store import load

    data, seed = flags["data"], flags["seed"]
    try:
        shapes = check_flags(ctx, str(run), flags["input"] or [], data, flags["evaluate"], flags["trust_code"])
        means, stds = scaling(flags["mean"], flags["std"], data)
        teacher = original(dict(held.config), flags["weights"], flags["trust_code"], flags["base"])
        given = give(str(run), shapes, data=data, mean=means, std=stds, evaluate=flags["evaluate"], seed=seed,
                     network=teacher)  # fmt: skip
    except (ConvError, typer.BadParameter) as error:
        if asked:
            raise
        how = "Give reconv report what is missing: --base, --weights, --data or --input, or --trust-code."
        return Seen(missing={"what the layers give and see": f"{getattr(error, 'message', error)} {how}"})
    student, feed = load(run, base=teacher), None if data is None else Feed.of(given.data, given.inputs)
    train, judged = feed.split(flags["holdout"], seed) if feed else (None, None)
    rows = (held.before or summary(teacher, given.inputs)).rows
    seen = look(teacher, student, held.plan, given.inputs, judged, [row.name for row in rows], seed)
    if given.evaluate is None:
        return seen
    with progress() as show:
        scores, missing = scores_alone(teacher, held.plan, given.inputs, train, given.evaluate, seed=seed,
                                       progress=show)  # fmt: skip
    return replace(seen, scores=scores, missing={**seen.missing, **missing})
