"""reconv: a latency budget on an engine. Plan and recovery are one job, with the data and epochs that all have."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import reconv

from .method import Setting, Subject

NAME = "reconv"
BUDGETS, TARGETS = (0.75, 0.5, 0.33, 0.25), ("torch:1", "onnxruntime:1")
EXACT = "exact rules"
SETTINGS: tuple[Setting, ...] = (
    *({"latency": EXACT, "target": target} for target in TARGETS),
    *({"latency": budget, "target": target} for target in TARGETS for budget in BUDGETS),
)


def rewritten(subject: Subject, setting: Setting, epochs: int, folder: Path) -> nn.Module:
    exact = setting["latency"] == EXACT
    result = reconv.rewrite(
        subject.model, subject.example, budget=None if exact else f"latency={setting['latency']}",
        data=subject.calibration, target=setting["target"], rules="exact" if exact else ("exact", "smaller"),
        epochs=epochs, seed=0, out=folder,
    )  # fmt: skip
    return result.model
