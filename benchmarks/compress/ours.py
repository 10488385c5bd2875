"""reconv: a latency budget on an engine. Plan and recovery are one job, with the data and epochs that all have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

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


def planned(folder: Path) -> dict[str, Any]:
    """What the plan promised, and how often it took each rule that is not exact."""
    plan = reconv.Plan.load(folder / "plan.json")
    exact = {rule.name for rule in reconv.rules if rule.group == "exact"}
    rules = Counter(edit.rule for edit in plan.edits if edit.rule not in exact)
    return {"planned_ratio": plan.latency_ratio, "met": plan.met, "rules": dict(rules), "layout": plan.layout}
