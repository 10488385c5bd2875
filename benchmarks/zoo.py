"""Networks of timm, one of each family, through all that reconv does; what fails is a row with its reason.

    python benchmarks/zoo.py [--families NAME ...] [--again] [--sites 4] [--minutes 4] [--steps STEP ...] [--page]

Each network, in a process of its own, untrained but with weights and batch norms that do something (`settled`):

macs:    `reconv.summary` counts what PyTorch's FlopCounterMode counts, of the convolutions and of the whole network
exact:   `rules="exact"`: the outputs are equal to 1e-4 of the largest
mild:    `budget="macs=0.9"` at a few sites of different kinds: it runs, and the budget is met or it is said why not
export:  the result of that as .onnx runs in ONNX Runtime, and agrees

No time is measured: `Counting` is an engine without a clock. Families that benchmarks/results/zoo.json has already, of
the same versions, are passed over where they have these steps. `--page` writes what it has into docs/zoo.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import reconv
from reconv.surgery.outputs import tensors_in
from reconv.targets import Timing

sys.path.insert(0, str(Path(__file__).parent))
from marks import fill
from zoo_names import FAMILIES

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
EQUAL = 1e-4  # of the largest output
CLASSES = 10
IMAGES = 16  # by which batch norms are given their statistics; of fewer, rounding alone may come near to 1e-4
STEPS = ("macs", "exact", "mild", "export")
Row = dict[str, Any]


# -- an engine without a clock --------------------------------------------------------------------
class Counting:
    """So much a multiply-accumulate, and so much an operator; it runs networks as they would be exported."""

    name, exports = "counting", True

    def fingerprint(self) -> str:
        return "counting"

    def measure(self, jobs: Sequence[tuple[nn.Module, tuple[Any, ...]]], seconds: float,
                burst: int = 1) -> list[Timing]:  # fmt: skip
        return [Timing(_Work.of(model, inputs), 0.0, 1) for model, inputs in jobs]


class _Work(TorchDispatchMode):
    """Milliseconds of the operators that run in it: 1e-6 a multiply-accumulate, 1e-3 an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the compiler would be imported, which takes seconds

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...]) -> float:
        with torch.no_grad(), cls() as work:
            model(*inputs)
        return work.ms

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ms += 0.0 if func.is_view else 1e-3
        if count := flop_registry.get(func._overloadpacket):
            self.ms += 0.5e-6 * count(*args, **(kwargs or {}), out_val=out)
        return out


# -- a network ------------------------------------------------------------------------------------
def network(name: str, size: int, options: Mapping[str, object]) -> tuple[nn.Module, Tensor]:
    """One of timm's, in evaluation mode, and an image for it."""
    torch.manual_seed(0)
    timm = its_timm()
    model, images = timm.create_model(name, num_classes=CLASSES, **options), torch.randn(IMAGES, 3, size, size)
    return settled(model, images), images[:1]


def its_timm() -> Any:
    """timm, also where torchvision's wheel does not import as it is: the tests have the shim."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    if importlib.util.find_spec("nets"):
        from nets import let_torchvision_import

        let_torchvision_import()
    return importlib.import_module("timm")


@torch.no_grad()
def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """Parameters of one value (scales that start at 0 or 1, biases) differ, batch norms have statistics of the images.

    Untrained, a last scale of 0 or a layer scale of 1e-6 would hide whatever a rewriting does before it.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.copy_(0.1 * torch.randn_like(parameter) if name.endswith("bias") else _about_1(parameter))
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def _about_1(like: Tensor) -> Tensor:
    return 0.5 + torch.rand_like(like)


# -- what is checked ------------------------------------------------------------------------------
def macs(model: nn.Module, x: Tensor) -> Row:
    """Convolutions and all, as `summary` and as PyTorch's own counter have them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    flops = counter.get_flop_counts()["Global"]
    theirs = [sum(n for op, n in flops.items() if "convolution" in str(op)) // 2, sum(flops.values()) // 2]
    s = reconv.summary(model, x)
    ours = [s.total.macs, s.network.macs]
    _must(ours == theirs, f"summary counts {ours}, FlopCounterMode {theirs}")
    return {"calls": len(s.rows), "convolutions": ours[0], "network": ours[1]}


def exact(model: nn.Module, x: Tensor) -> Row:
    """Every exact rule wherever it spares operators."""
    plan = reconv.plan(model, x, target=Counting(), rules="exact")
    error = largest(model, reconv.apply(model, plan, x), x)
    if error > EQUAL:  # of rounding, or of a rule?
        wide, y = copy.deepcopy(model).double(), x.double()
        finer = largest(wide, reconv.apply(wide, plan, y), y)
        raise ValueError(f"the outputs are {error:.2g} of the largest apart, in float64 {finer:.2g}")
    return {"edits": len(plan.edits), "rules": _rules(plan), "error": float(f"{error:.2g}")}


def mild(model: nn.Module, x: Tensor, count: int) -> tuple[nn.Module, Row]:
    """A budget at a few sites of different kinds; the network, too."""
    sites = varied(model, x, count)
    plan = reconv.plan(model, x, "macs=0.9", target=Counting(), sites=sites)
    student = reconv.apply(model, plan, x).eval()
    _must(plan.met or bool(plan.reason), "the budget is not met, and nothing says why")
    _must(all(bool(t.isfinite().all()) for t in tensors_in(student(x))), "the outputs are not finite")
    share = reconv.summary(student, x).network.macs / reconv.summary(model, x).network.macs
    _must(not plan.met or share <= 0.9, f"the budget is said to be met, with {share:.3g} of the MACs")
    return student, {"sites": len(sites), "edits": len(plan.edits), "rules": _rules(plan), "met": plan.met,
                          "reason": plan.reason, "macs": round(share, 3)}  # fmt: skip


def _rules(plan: reconv.Plan) -> dict[str, int]:
    return dict(Counter(edit.rule for edit in plan.edits))


def exported(model: nn.Module, x: Tensor) -> Row:
    """`reconv.export` runs the file in ONNX Runtime and compares it with the network."""
    with tempfile.TemporaryDirectory() as folder:
        report = reconv.export(model, x, Path(folder) / "net.onnx")
    with torch.no_grad():
        scale = max(float(t.abs().max()) for t in tensors_in(model(x)))
    return {"error": float(f"{report.max_abs_error / scale:.2g}"), "any_batch": report.dynamic_batch,
            "note": report.note}  # fmt: skip


def largest(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference of the outputs, as a part of the largest output."""
    with torch.no_grad():
        ours, theirs = tensors_in(other(x.clone())), tensors_in(one(x.clone()))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def varied(model: nn.Module, x: Tensor, count: int) -> list[str]:
    """So many sites, the dearest of each kind before others."""
    kinds: dict[object, list[tuple[int, str]]] = {}
    names = {name for name, _ in model.named_modules()}
    for row in reconv.summary(model, x).rows:
        if row.name in names:
            kind = (row.kind, row.spec.kernel_size, max(row.spec.stride) > 1)
            kinds.setdefault(kind, []).append((-row.macs, row.name))
    ranked = [(place, *one) for kind in kinds.values() for place, one in enumerate(sorted(set(kind)))]
    return list(dict.fromkeys(name for _, _, name in sorted(ranked)))[:count]


def _must(holds: bool, said: str) -> None:
    if not holds:
        raise ValueError(said)


def check(family: str, sites: int, asked: Sequence[str] = STEPS) -> Row:
    """All checks of one family; a step that fails leaves the others to be tried."""
    name, size, options = FAMILIES[family]
    row: Row = {"family": family, "name": name, "input": [1, 3, size, size], "failed": {}}
    began = time.perf_counter()
    try:
        model, x = network(name, size, options)
    except Exception as error:  # timm's own
        return {**row, "failed": {"network": _one_line(error)}}
    rewritten = model

    def milder() -> Row:
        nonlocal rewritten
        rewritten, told = mild(model, x, sites)
        return told

    steps: dict[str, Callable[[], Row]] = {
        "macs": lambda: macs(model, x), "exact": lambda: exact(model, x), "mild": milder,
        "export": lambda: exported(rewritten, x),
    }  # fmt: skip
    for step, run in [(step, steps[step]) for step in asked]:
        try:
            row[step] = run()
        except Exception as error:
            row["failed"][step] = _one_line(error)
    row["seconds"] = round(time.perf_counter() - began)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


# -- the sweep ------------------------------------------------------------------------------------
def in_its_own_process(family: str, sites: int, minutes: float, steps: Sequence[str]) -> Row:
    """What `check` says, or what ended it. Forked, so that nothing is imported again."""
    with tempfile.TemporaryDirectory() as cache:
        told = Path(cache, "row.json")
        process = multiprocessing.get_context("fork").Process(target=_told, args=(family, sites, steps, told))
        process.start()
        process.join(60 * minutes)
        if told.is_file():
            return json.loads(told.read_text(encoding="utf-8"))
        process.kill()
        process.join()
    reason = f"more than {minutes:g} minutes" if process.exitcode == -signal.SIGKILL else f"exit {process.exitcode}"
    name, size, _ = FAMILIES[family]
    return {"family": family, "name": name, "input": [1, 3, size, size], "failed": {"run": reason}}


def _told(family: str, sites: int, steps: Sequence[str], told: Path) -> None:
    os.environ["RECONV_CACHE"] = str(told.parent)
    text = json.dumps(check(family, sites, steps))
    told.with_suffix(".part").write_text(text, encoding="utf-8")
    told.with_suffix(".part").rename(told)


def versions() -> dict[str, str]:
    timm = version("timm")
    return {"reconv": reconv.__version__, "torch": torch.__version__.partition("+")[0], "timm": timm}


def held() -> dict[str, Row]:
    """The rows of the file, where it is of the same versions."""
    if not RESULTS.is_file():
        return {}
    data = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {row["family"]: row for row in data["rows"]} if data["versions"] == versions() else {}


def keep(rows: Mapping[str, Row]) -> None:
    """A row a line."""
    ordered = [json.dumps(rows[family]) for family in FAMILIES if family in rows]
    text = f'{{"versions": {json.dumps(versions())}, "rows": [\n' + ",\n".join(ordered) + "\n]}\n"
    RESULTS.write_text(text, encoding="utf-8")


# -- the page -------------------------------------------------------------------------------------
def write_page() -> None:
    """Into docs/zoo.md, between its marks."""
    data = json.loads(RESULTS.read_text(encoding="utf-8"))
    fill(PAGE, {"versions": _said(data), "table": _table(data["rows"]), "failed": _failed(data["rows"])})


def _said(data: Mapping[str, Any]) -> str:
    rows, through = data["rows"], [row for row in data["rows"] if all(step in row for step in STEPS)]
    failed = sum(bool(row["failed"]) for row in rows)
    told = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return f"{len(rows)} families, {len(through)} of them through all steps, {failed} with a fault ({told}).\n"


HEADS = ("network", "side", "convolutions", "MMAC", "exact edits", "apart by", "edits of the budget", "MACs left",
         "ONNX apart by", "any batch")  # fmt: skip


def _table(rows: Sequence[Row]) -> str:
    lines = [HEADS, ("---",) * len(HEADS), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    side = str(row["input"][-1])
    counts, same, less, file = (row.get(step) for step in ("macs", "exact", "mild", "export"))
    cells = [f"{counts['calls']}", f"{counts['network'] / 1e6:.0f}"] if counts else ["–", "–"]
    cells += [str(same["edits"]), f"{same['error']:.0e}"] if same else ["–", "–"]
    cells += [str(less["edits"]), f"{less['macs']:.2f}"] if less else ["–", "–"]
    cells += [f"{file['error']:.0e}", "yes" if file["any_batch"] else "no"] if file else ["–", "–"]
    return (f"`{row['name']}`", side, *cells)


def _failed(rows: Sequence[Row]) -> str:
    said = [f"- `{row['name']}`, {step}: {reason}\n" for row in rows for step, reason in row["failed"].items()]
    return "".join(said) or "None.\n"


def _has(row: Row | None, steps: Sequence[str]) -> bool:
    return row is not None and (
        all(step in row or step in row["failed"] for step in steps) or "network" in row["failed"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--steps", nargs="*", default=STEPS, choices=STEPS)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that it may fork
    its_timm()
    if "export" in given.steps:
        exported(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 5, 5))  # the exporter loads its tables once
    rows = held()
    for family in [f for f in given.families if given.again or not _has(rows.get(f), given.steps)]:
        row = in_its_own_process(family, given.sites, given.minutes, given.steps)
        rows = held() | {family: row}  # another sweep may write, too
        keep(rows)
        print(family, row.get("seconds", "–"), "s", row["failed"] or "", flush=True)
    if given.page:
        write_page()


if __name__ == "__main__":
    main()
