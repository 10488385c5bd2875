"""What an earlier plan of the same job measured: rows of the table, and whole networks.

A job is a network with its weights, calibration data, rules, wishes, an engine and reconv's own code; the budget is not
part of it, so that another one begins where the last ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch
from reconv.ruleset import Rule
from reconv.targets import Target
from reconv.targets.cache import cache_folder

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
                held = json.loads(self.path.read_text(encoding="utf-8"))
                self.known = held if isinstance(held, dict) else {}
        except (OSError, ValueError):
            pass

    def get(self, *key: object) -> Any:
        return self.known.get(_text(key))

    def put(self, value: Any, *key: object) -> None:
        self.known[_text(key)], self.grown = value, True

    def save(self) -> None:
        if self.path is None or not self.grown:
            return
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.known), encoding="utf-8")
            part.replace(self.path)
            for old in sorted(self.path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-MOST]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError):
            with suppress(OSError):
                part.unlink(missing_ok=True)


def job_key(
    model: nn.Module,
    inputs: tuple[Any, ...],
    calibration: Iterable[Batch],
    fitted: bool,
    rules: Sequence[Rule],
    engine: Target,
    sites: Iterable[str],
    others: object,
) -> str | None:
    """What tells jobs apart; None where nothing is to be remembered."""
    if not ENABLED:
        return None
    seen = hashlib.sha256(_code().encode())
    for part in (
        engine.fingerprint(),
        fitted,
        [(r.name, r.group, type(r).__name__) for r in rules],
        list(sites),
        others,
    ):
        seen.update(repr(part).encode())
    seen.update(repr([(name, str(module)) for name, module in model.named_modules()]).encode())
    tensors = [*model.state_dict().values(), *inputs, *(x for batch in calibration for x in batch.inputs)]
    for value in tensors:
        seen.update(_bytes(value))
    return seen.hexdigest()[:24]


def _bytes(value: object) -> bytes | memoryview:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    flat = value.detach().cpu().contiguous().reshape(-1)
    return f"{value.dtype} {list(value.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _code() -> str:
    """Changes whenever a file of reconv, or torch, does."""
    files = [(f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(HOME.rglob("*.py"))]
    return repr([torch.__version__, *files])


def _text(key: Sequence[object]) -> str:
    return " | ".join(map(str, key))
