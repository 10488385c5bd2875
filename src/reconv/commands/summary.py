"""`reconv summary`."""

from __future__ import annotations

import typer

from reconv.commands import options as o
from reconv.commands.output import emit


def summary(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    target: o.MaybeTarget = None,
    seed: o.Seed = 0,
    config: o.Config = None,
    format: o.OutFormat = o.Format.TABLE,
    trust_code: o.TrustCode = False,
) -> None:
    """Show what each convolution of a network costs."""
    from reconv.commands.given import check_flags, give
    from reconv.costing.summary import summary as summarise
    from reconv.targets import get_target

    shapes = check_flags(ctx, model, input or [], data, None, trust_code)
    with o.usage("--target"):
        engine = get_target(target) if target is not None else None
    given = give(model, shapes, weights=weights, data=data, seed=seed, trust_code=trust_code)
    emit(summarise(given.model, given.inputs, engine), format)
