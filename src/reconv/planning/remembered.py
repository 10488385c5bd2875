"""What an earlier plan of the same job measured: rows of the table, and whole networks.

A job is a network with its weights, calibration data, rules, wishes, an engine and reconv's own code; the budget is not
part of it, so that another one begins where the last ended.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reconv.files import read_json
from reconv.ruleset import Rule
from reconv.surgery.fingerprint import update
from reconv.targets.cache import cache_folder
from reconv.writing import write_text

if TYPE_CHECKING:
    from reconv.planning.workbench import Workbench

HOME = Path(__file__).parents[1]
ENABLED = True
MOST = 64  # jobs that are kept, the latest ones


class Remembered:
    """Figures by key, read when a job begins, written when it has ended. A file that cannot be used is no loss."""

    def __init__(self, job: str | None) -> None:
        self.path = None if job is None else cache_folder() / "plans" / f"{job}.json"
        self.known: dict[str, Any] = {}
        self.grown = False
        try:
            if self.path is not None and self.path.exists():
                held = read_json(self.path)
                self.known = held if isinstance(held, dict) else {}
        except (OSError, ValueError, RecursionError):
            pass

    def get(self, *key: object) -> Any:
        return self.known.get(_text(key))

    def put(self, value: Any, *key: object) -> None:
        self.known[_text(key)], self.grown = value, True

    def save(self) -> None:
        if self.path is None or not self.grown:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.known))
            for old in sorted(self.path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-MOST]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError):
            pass


def job_key(bench: Workbench, others: object) -> str | None:
    """What tells jobs apart; None where nothing is to be remembered.

    What the network answers is part of it: its code may have changed, where its modules have not.
    """
    if not ENABLED:
        return None
    seen = hashlib.sha256(_code().encode())
    rules = [_rule(rule) for rule in bench.rules]
    for part in (bench.engine.fingerprint(), bench.restat, rules, list(bench.sites), str(bench.given), others):
        seen.update(repr(part).encode())
    given = [bench.inputs, *(batch.inputs for batch in bench.probe.batches), bench.probe.outputs]
    for value in (*bench.given.state_dict().values(), *tree_leaves(given)):
        if isinstance(value, Tensor):
            update(seen, value)
        else:
            seen.update(repr(value).encode())
    return seen.hexdigest()[:24]


def _rule(rule: Rule) -> object:
    """A rule of another package is told apart by its settings, and by when its file changed."""
    rule = getattr(rule, "rule", rule)  # of one that keeps to wishes
    file = getattr(sys.modules.get(type(rule).__module__), "__file__", None)
    changed = Path(file).stat().st_mtime_ns if file and Path(file).is_file() else None
    return rule.name, type(rule).__qualname__, sorted(vars(rule).items()) if hasattr(rule, "__dict__") else (), changed


def _code() -> str:
    """Changes whenever a file of reconv, or torch, does."""
    files = [(f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(HOME.rglob("*.py"))]
    return repr([torch.__version__, *files])


def _text(key: Sequence[object]) -> str:
    return " | ".join(map(str, key))
