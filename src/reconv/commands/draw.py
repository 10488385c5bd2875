"""`reconv draw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reconv.commands.output import say

Spec = Annotated[str, typer.Argument(metavar="SPEC", show_default=False, help="as ic4oc8k3x3p1, or a block of several")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", show_default=False, help=".svg, .png or .gif")]
Size = Annotated[str | None, typer.Option("--input", metavar="7x7", help="size of the input; a small one without it")]
At = Annotated[str | None, typer.Option(metavar="0,3,3", help="the output cell: channel and position")]
Animate = Annotated[bool, typer.Option("--animate", help="one output cell after the other (.gif always)")]
Numbers = Annotated[bool, typer.Option("--numbers", help="a worked example in small whole numbers")]
Offsets = Annotated[str, typer.Option(help="of deformable convolutions: none, scale, rotate or random")]


def draw(spec: Spec, out: Out, input: Size = None, at: At = None, animate: Animate = False, numbers: Numbers = False,
         offsets: Offsets = "random") -> None:  # fmt: skip
    """Draw a convolution: input, kernels and output as volumes, and what one output cell needs."""
    from reconv.reporting.drawn import draw as drawn

    drawn(spec, out, input_size=_whole(input, "x", "--input"), at=_whole(at, ",", "--at"), animate=animate,
          numbers=numbers, offsets=offsets)  # fmt: skip
    say(f"wrote {out}")


def _whole(text: str | None, between: str, flag: str) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(between)]
    except ValueError:
        raise typer.BadParameter(f"must be integers with {between} between them", param_hint=flag) from None
