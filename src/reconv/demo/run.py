"""`reconv demo`: the main job on a real trained network, told step by step."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from torch.utils.data import TensorDataset

from reconv.costing.render import human
from reconv.costing.summary import summary
from reconv.demo.digits import accuracy, digits
from reconv.demo.network import digits_vgg
from reconv.planning.plan import Plan
from reconv.rewriting.job import Result, rewrite
from reconv.rewriting.store import load

BUDGET = "latency=0.175"
TARGET = "torch:2"
EPOCHS = 1
RUN = Path("runs/demo")


def main(folder: Path = RUN) -> Result:
    """Summary, plan, rewrite, recovery, measurement, run folder; prints what it does to stdout."""
    console, started = Console(width=None if Console().is_terminal else 120), time.perf_counter()
    train, held_out = digits()
    lessons = TensorDataset(*(tensor[::4] for tensor in train.tensors))  # a quarter is enough
    model, image = digits_vgg(), train.tensors[0][:1]

    console.rule("1  what each convolution costs")
    console.print(summary(model, image, target=TARGET))

    console.rule(f"2  plan, rewrite, recover: budget {BUDGET} on {TARGET}")
    with Progress(console=Console(stderr=True), disable=not Console(stderr=True).is_terminal) as bars:
        shown = _Bars(bars)
        result = rewrite(model, image, budget=BUDGET, data=lessons, target=TARGET, epochs=EPOCHS, out=folder,
                         ref="reconv.demo.network:digits_vgg", progress=shown)  # fmt: skip
    console.print(_edits(result.plan))

    console.rule("3  measured")
    again = load(folder)
    same = torch.equal(again(image), result.model(image))
    console.print(_before_after(result, (accuracy(model, held_out), accuracy(again, held_out))))
    console.print(f"budget {'met' if result.met else 'NOT met: ' + str(result.reason)}; run folder {folder}/ "
                  f"{'reloads to the same outputs' if same else 'reloads to OTHER outputs'}; "
                  f"{time.perf_counter() - started:.0f} s in all")  # fmt: skip
    return result


class _Bars:
    """A progress bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[stage], completed=done, total=total)


def _edits(plan: Plan) -> Table:
    table = Table(title="what each convolution becomes", title_justify="left")
    for head in ("convolution", "rule", "block", "error", "ms"):
        table.add_column(head, overflow="fold", justify="right" if head in ("error", "ms") else "left")
    for edit in plan.edits:
        if edit.error:  # the exact ones are said in one line
            ms = "" if edit.latency_ms is None else f"{edit.latency_ms:.3f}"
            table.add_row(edit.site, edit.rule, str(edit.block), f"{edit.error:.3f}", ms)
    exact = sum(not edit.error for edit in plan.edits)
    table.caption = f"and {exact} exact edits (batch norms folded); memory format: {plan.layout}"
    return table


def _before_after(result: Result, accuracies: tuple[float, float]) -> Table:
    table = Table(title="before and after", title_justify="left")
    for head in ("", "before", "after", "ratio"):
        table.add_column(head, justify="left" if not head else "right")
    before, after = result.before.network, result.after.network
    if before.latency_ms is not None and after.latency_ms is not None:
        table.add_row("latency, batch 1", f"{before.latency_ms:.2f} ms", f"{after.latency_ms:.2f} ms",
                      f"{result.latency_ratio:.3f} (interleaved)")  # fmt: skip
    for name, title in (("params", "parameters"), ("macs", "MACs")):
        old, new = getattr(before, name), getattr(after, name)
        table.add_row(title, human(old), human(new), f"{new / old:.3f}")
    table.add_row("accuracy, 1,000 held-out digits", *(f"{100 * a:.1f} %" for a in accuracies),
                  f"{100 * (accuracies[1] - accuracies[0]):+.1f} points")  # fmt: skip
    return table
