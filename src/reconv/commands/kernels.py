"""`reconv kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reconv.commands import options as o
from reconv.commands.output import Sheet, emit, number, say

if TYPE_CHECKING:
    from reconv.ops.dispatch import Explanation

Spec = Annotated[
    str | None, typer.Argument(metavar="SPEC", show_default=False, help="a convolution, as ic64oc64k7x7p3g64")
]
Shape = Annotated[str | None, typer.Option("--input", metavar="1x64x56x56", help="shape of its input")]
Pass = Annotated[str, typer.Option("--pass", help="forward, input (the gradient to the input) or weight")]
Dtype = Annotated[str, typer.Option(help="float32, float64 or bfloat16")]
Layout = Annotated[str, typer.Option(help="contiguous or channels_last")]
Threads = Annotated[int | None, typer.Option(min=1, help="as many as torch has, without it")]


def kernels(
    spec: Spec = None,
    input: Shape = None,
    pass_: Pass = "forward",
    dtype: Dtype = "float32",
    layout: Layout = "contiguous",
    threads: Threads = None,
    format: o.OutFormat = o.Format.TABLE,
) -> None:
    """Show which kernel computes a convolution, and why not each of the others; without SPEC: what was built."""
    from reconv.ops import results
    from reconv.ops.dispatch import CALL_MS, worth_a_call
    from reconv.ops.native import native_version

    say(f"{native_version()}; the choice follows the results of {results.results_isa()}")
    if spec is None and input is None:
        emit(_kinds(), format)
        return
    if spec is None or input is None:
        raise typer.BadParameter("SPEC and --input go together", param_hint="--input")
    told = _explained(f"{spec} {input}", pass_, dtype, layout, threads)
    emit(_sheet(told), format)
    if pass_ == "forward" and not worth_a_call(told.problem):
        say(f"a call by itself is torch's: {told.chosen} saves less than the {CALL_MS} ms that its checks cost")
    if told.near:
        say(f"the nearest problem that was measured: {told.near.line}")
    say(f"at the roofline of the measured machine it would take {number(told.roofline_ms)} ms")


def _explained(line: str, pass_: str, dtype: str, layout: str, threads: int | None) -> Explanation:
    import torch

    from reconv.benching.problem import problem_of
    from reconv.benching.task import Task
    from reconv.ops.dispatch import explain
    from reconv.spec import ConvSpec

    if layout not in ("contiguous", "channels_last"):
        raise typer.BadParameter("it is contiguous or channels_last", param_hint="--layout")
    if pass_ not in ("forward", "input", "weight"):
        raise typer.BadParameter("it is forward, input or weight", param_hint="--pass")
    with o.usage("SPEC"):
        task = Task.parse(f"{line} {pass_} {dtype}")
    if not isinstance(task.block, ConvSpec):
        raise typer.BadParameter("it must be a single convolution", param_hint="SPEC")
    return explain(problem_of(task, layout, threads or torch.get_num_threads()))


def _sheet(told: Explanation) -> Sheet:
    ms = told.near.ms if told.near else {}
    rows = [[name, "chosen" if reason is None else reason, number(ms[name]) if name in ms else ""]
            for name, reason in told.reasons.items()]  # fmt: skip
    data = {"chosen": told.chosen, "reasons": told.reasons, "roofline_ms": told.roofline_ms,
            "nearest": told.near and {"problem": told.near.line, "ms": told.near.ms}}  # fmt: skip
    return Sheet(("kernel", "why (not)", "ms on the nearest"), rows, data)


def _kinds() -> Sheet:
    """How many problems of each kind were measured, and how often each kernel was the fastest."""
    from reconv.ops import results

    table = results.table(results.results_isa()).get("kinds", {})
    counts: dict[str, dict[str, int]] = {}
    for kind, of in table.items():
        for row in (row for rows in of.values() for row in rows):
            best = min(row["ms"], key=row["ms"].get)
            counts.setdefault(kind, {}).setdefault(best, 0)
            counts[kind][best] += 1
    rows = [[kind, ", ".join(f"{name} {n}" for name, n in sorted(each.items(), key=lambda pair: -pair[1]))]
            for kind, each in sorted(counts.items())]  # fmt: skip
    return Sheet(("kind", "fastest, of so many measured"), rows, counts)
