"""`reconv export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reconv.commands import options as o
from reconv.commands.output import say

File = Annotated[Path, typer.Option("--out", "-o", metavar="NET.onnx|NET.pt2", show_default=False)]

Opset = Annotated[int | None, typer.Option(show_default=False, help="ONNX's operator set [default: 20].")]


def export(
    ctx: typer.Context,
    model: o.Model,
    out: File,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    seed: o.Seed = 0,
    config: o.Config = None,
    trust_code: o.TrustCode = False,
    opset: Opset = None,
) -> None:
    """Write a network as ONNX or .pt2, and check the file in a process without reconv."""
    from reconv.commands.given import check_flags, give
    from reconv.rewriting.export import FORMATS
    from reconv.rewriting.export import export as write

    if out.suffix not in FORMATS:
        raise typer.BadParameter(f"the file name must end in {' or '.join(FORMATS)}, not {out.name!r}",
                                 param_hint="--out")  # fmt: skip
    shapes = check_flags(ctx, model, input or [], data, None, trust_code)
    given = give(model, shapes, weights=weights, data=data, seed=seed, trust_code=trust_code)
    report = write(given.model, given.inputs, out, opset)
    batch = "any batch size" if report.dynamic_batch else report.note
    say(f"{out}: {sum(report.ops.values())} operators, {batch}; checked without reconv, "
        f"outputs within {report.max_abs_error:.2g} (rounding: {report.tolerance:.2g}).")  # fmt: skip
