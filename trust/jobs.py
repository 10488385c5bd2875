"""What `kills.py` kills: jobs that write, what must stand after a kill, and what must come out in the end."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.planning import remembered
from reconv.planning.remembered import Remembered
from reconv.rewriting import training
from reconv.rewriting.checkpoint import read_checkpoint
from reconv.rewriting.store import read_run, save_run
from reconv.surgery import clone
from reconv.targets import Timing
from reconv.targets.cache import LatencyCache, default_path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes import FakeTarget, grid
from recovering import SETTINGS, moved, network, samples, student, teacher

IMAGE = grid(1, 3, 9, 8)
TARGET = FakeTarget()
OUT = "run"  # what a job writes, in its folder


@dataclass(frozen=True)
class Job:
    """Args:    what: a row of the table. before: makes what is there already. run: is killed. look: what is wrong with
    what stands, or None. again: finishes it; what it gives must be what `before` and `again` alone give.
    """

    what: str
    before: Callable[[Path], object]
    run: Callable[[Path], object]
    look: Callable[[Path], str | None]
    again: Callable[[Path], str]


def digest(model: nn.Module) -> str:
    seen = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes())
    return seen.hexdigest()[:12]


def nothing(folder: Path) -> None:
    """Nothing is there yet."""


def litter(folder: Path) -> list[str]:
    """What no finished job leaves in a run folder; what is left among the caches goes once there is enough of it."""
    return [str(f.relative_to(folder)) for f in (folder / OUT).rglob("*") if f.name.startswith(".")]


def tidy(folder: Path, result: str) -> str:
    return f"{result}, and left {left}" if (left := litter(folder)) else result


# -- recovery -------------------------------------------------------------------------------------
def recovered(folder: Path, resume: bool) -> str:
    training.SECONDS, training.SHARE = 0.0, 1e9  # a checkpoint after each step
    return digest(reconv.recover(student(), teacher(), samples(), **SETTINGS, checkpoint=folder / OUT, resume=resume))


def checkpoint_reads(folder: Path) -> str | None:
    try:
        read_checkpoint(folder / OUT, {})
    except ConvError as error:
        return str(error)
    return None


# -- the whole job --------------------------------------------------------------------------------
def data() -> torch.Tensor:
    return torch.randn(40, 3, 9, 8, generator=torch.Generator().manual_seed(7))


def rewritten(folder: Path, resume: bool, seed: int = 3) -> str:
    training.SECONDS, training.SHARE = 0.0, 1e9
    rules = ("exact", "bottleneck", "separable")
    result = reconv.rewrite(network(), IMAGE, "macs=0.7", data(), TARGET, rules, epochs=4, stages=2, evaluate=moved,
                            seed=seed, out=folder / OUT, resume=resume)  # fmt: skip
    return digest(result.model)


def finished(folder: Path) -> str:
    """Another job's result was there."""
    return rewritten(folder, False, seed=4)


def gone_on(folder: Path) -> str:
    """With resume; without, where it says that what stands there is the older run's."""
    try:
        came = rewritten(folder, True)
    except ConvError as error:
        if "or resume=False" not in str(error):
            raise
        came = rewritten(folder, False)
    return tidy(folder, f"{came} {of_run(folder)}")


def of_run(folder: Path) -> str:
    """The network that the folder holds, and that its other files are of the same job."""
    held = read_run(folder / OUT)
    return f"{digest(reconv.load(folder / OUT, base=network))} {held.config['seed']} {held.error!r}"


def empty_or_whole(folder: Path) -> str | None:
    """There was no run here; until there is, that is said."""
    try:
        reconv.load(folder / OUT, base=network)
    except ConvError as error:
        unfinished = isinstance(error, FileNotFoundError) and "must hold" in str(error)
        return None if unfinished else str(error)
    return None


def old_or_new(known: set[str]) -> Callable[[Path], str | None]:
    def look(folder: Path) -> str | None:
        try:
            found = of_run(folder)
        except ConvError as error:
            return str(error)
        return None if found in known else f"what is loaded is neither the old nor the new run: {found}"

    return look


# -- saving ---------------------------------------------------------------------------------------
def saved(rule: str, seed: int) -> Callable[[Path], str]:
    """A run of another plan, with other weights, each time."""

    def save(folder: Path) -> str:
        plan = reconv.plan(network(), IMAGE, "macs=0.7", None, TARGET, rule)
        save_run(folder / OUT, model=reconv.apply(network(), plan, IMAGE), plan=plan, error=float(seed),
                 config={"seed": seed})  # fmt: skip
        return tidy(folder, of_run(folder))

    return save


# -- plans and what was measured ------------------------------------------------------------------
def planned(budget: str) -> Callable[[Path], str]:
    def plan(folder: Path) -> str:
        remembered.ENABLED = True
        made = reconv.plan(network(), IMAGE, budget, None, TARGET)
        made.save(folder / "plan.json")
        return (folder / "plan.json").read_text()

    return plan


def caches_read(folder: Path) -> str | None:
    """The latencies' file is sound, and each of what plans remember is JSON."""
    for file in (folder / "cache").rglob("*.json"):
        if not file.name.startswith("."):
            json.loads(file.read_text())
    if default_path().exists():
        with sqlite3.connect(default_path()) as connection:
            (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
            if sound != "ok":
                return f"the latencies' file: {sound}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatencyCache().close()
    return None


def plan_stands(known: set[str]) -> Callable[[Path], str | None]:
    def look(folder: Path) -> str | None:
        text = (folder / "plan.json").read_text()
        reconv.Plan.load(folder / "plan.json")
        return caches_read(folder) if text in known else "plan.json is neither the old nor the new one"

    return look


MOST = 300


def noted(folder: Path) -> str:
    """Puts one latency after the other, and says which; some runs' figures between them."""
    cache, notes = LatencyCache(), Remembered("job")
    with (folder / "told").open("ab", buffering=0) as told:
        for number in range(MOST):
            cache.put(f"key {number}", Timing(float(number), 0.5, 5))
            told.write(b".")
            if number % 10 == 9:
                notes.put([number] * 500, "row", number)
                notes.save()
    return kept(folder)


def kept(folder: Path) -> str:
    cache, notes = LatencyCache(), Remembered("job")
    got = sum(cache.get(f"key {number}") == Timing(float(number), 0.5, 5) for number in range(MOST))
    return f"{got} latencies, {len(notes.known)} rows"


def all_kept(folder: Path) -> str | None:
    told = (folder / "told").stat().st_size if (folder / "told").exists() else 0
    got = int(kept(folder).split()[0])
    return caches_read(folder) or (None if got >= told else f"{told} were put, {got} are there")


# -- export ---------------------------------------------------------------------------------------
def exported(folder: Path) -> str:
    reconv.export(network(), IMAGE, folder / "net.pt2")
    return "runs"


def older(folder: Path) -> None:
    (folder / "net.pt2").write_bytes(b"old" * 5000)


def file_stands(folder: Path) -> str | None:
    path = folder / "net.pt2"
    if path.read_bytes() == b"old" * 5000:
        return None
    with torch.no_grad():
        apart = (torch.export.load(path).module()(IMAGE) - clone(network())(IMAGE)).abs().max()
    return None if apart < 1e-4 else f"the file's outputs are {apart} away"


def preload() -> None:
    """What the jobs would import, once and for all."""
    import accelerate
    import torch._dynamo
    import torch.export  # noqa: F401

    assert accelerate
