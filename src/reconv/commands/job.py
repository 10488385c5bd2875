"""What `plan`, `rewrite` and `recover` share: the job's flags, run folders, and what stands after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from reconv.commands.options import usage
from reconv.commands.output import say
from reconv.errors import conv_error
from reconv.planning.budget import Budget
from reconv.planning.plan import Plan, read_plan_json
from reconv.planning.wishes import Wishes
from reconv.rewriting import recovery
from reconv.rewriting.checkpoint import FILE
from reconv.rewriting.logs import logger
from reconv.rewriting.store import CHECKPOINT, WEIGHTS, is_run
from reconv.ruleset import rules_named
from reconv.targets import get_target

RUNS = Path("runs")
RESUMED_AS_BEGUN = ("input", "data", "mean", "std", "budget", "target", "rules", "sites", "holdout", "epochs", "seed",
                    "stages", "precision", "ema", "plan", "wishes")  # fmt: skip


def check_job(budget: str | None, rules: str, target: str, sites: str, free: bool = False) -> dict[str, Any]:
    """The arguments of a job, once each is known to be well formed.

    Args:    free: whether smaller rules need no budget, because something else asks for them.
    """
    with usage("--budget"):
        Budget.of(budget)
    names = [name.strip() for name in rules.split(",") if name.strip()]
    with usage("--rules"):
        found = rules_named(names)
    if not names:
        raise typer.BadParameter("name at least one rule or group, such as exact", param_hint="--rules")
    if not sites.strip(", "):
        raise typer.BadParameter("name at least one layer, or * for all", param_hint="--sites")
    if budget is None and found and not free and all(rule.group == "smaller" for rule in found):
        raise typer.BadParameter(f"{rules} needs one, such as latency=0.5", param_hint="--budget")
    with usage("--target"):
        get_target(target)
    return {"budget": budget, "rules": names, "target": target, "sites": sites}


def read_plan(path: Path | None) -> Plan | None:
    with usage("--plan"):
        return None if path is None else Plan.load(path)


def read_wishes(path: Path | None) -> Plan | Wishes | None:
    """What a plan settles, or a file that holds nothing but wishes."""
    if path is None:
        return None
    with usage("--wishes"):
        data = read_plan_json(path)
        return Plan.from_dict(data) if "format" in data else Wishes.of(data)


def check_training(precision: str | None, ema: float, log: str) -> None:
    """How to recover, and where to log it."""
    with usage("--precision, --ema"):
        recovery.check_training(precision, ema)
    with usage("--log"):
        logger(None, log)


def check_holdout(holdout: float) -> None:
    if not 0 < holdout < 1:
        raise typer.BadParameter(f"must be between 0 and 1, not {holdout}", param_hint="--holdout")


def run_folder(out: Path | None, model: str, resume: bool) -> Path:
    """The folder to write: as given, or runs/NAME after the network's name, numbered where that is taken."""
    if out is not None:
        if holds_run(out) and not resume:
            raise typer.BadParameter(f"{out} holds a run already: give another folder, or --resume to go on with it",
                                     param_hint="--out")  # fmt: skip
        if resume and not holds_run(out):
            say(f"nothing in {out} to go on with: the run begins anew.")
        return out
    name = Path(model).name if is_run(model) else model.rpartition(":")[2].replace(".", "_")
    taken = [folder for folder in _numbered(RUNS / name) if holds_run(folder)]
    if resume and not taken:
        raise typer.BadParameter(f"there is no {RUNS / name} to go on with: give -o", param_hint="--resume")
    return taken[-1] if resume else next(folder for folder in _numbered(RUNS / name) if not holds_run(folder))


def _numbered(first: Path) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, … up to the first that is free."""
    number, folder = 1, first
    while True:
        yield folder
        if not holds_run(folder):
            return
        number += 1
        folder = first.with_name(f"{first.name}-{number}")


def holds_run(folder: Path) -> bool:
    return (folder / WEIGHTS).exists() or (folder / CHECKPOINT).exists()


def check_same(old: dict[str, Any], settings: dict[str, Any]) -> None:
    """A run goes on as it was begun."""
    known = old.get("settings")
    known = known if isinstance(known, dict) else {}
    differ = [f"{k}: {known[k]} then, {settings.get(k)} now" for k in RESUMED_AS_BEGUN
              if k in known and known[k] != settings.get(k)]  # fmt: skip
    if differ:
        with usage("--resume"):
            raise conv_error("resume", "a run must go on with the flags that it began with",
                             got={"different": "; ".join(differ)}, do="Give those, or another -o.",
                             also=ValueError)  # fmt: skip


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Says what stands after Ctrl-C, or when the job fails half-way."""
    try:
        yield
    except KeyboardInterrupt as stop:
        best = "the best so far is kept; " if isinstance(stop, recovery.Stopped) else ""
        say(f"stopped; {best}{_what_stands(folder)}")
        raise typer.Exit(130) from None
    except Exception:
        if _checkpointed(folder):
            say(_what_stands(folder))
        raise


def _what_stands(folder: Path) -> str:
    if not (folder / CHECKPOINT).exists():
        return "there was no checkpoint yet."
    return f"the {'last checkpoint' if _checkpointed(folder) else 'plan'} stands in {folder}; go on with --resume."


def _checkpointed(folder: Path) -> bool:
    return any((folder / CHECKPOINT).rglob(FILE))
