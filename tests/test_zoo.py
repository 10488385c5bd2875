"""Networks of timm, of different families, through all that reconv does: `benchmarks/zoo.py` on ten of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo", BENCHMARKS / "zoo.py")
    assert spec
    assert spec.loader
    module = sys.modules["zoo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo = _script()
# family: (convolutions, exact edits); the first of them are exported, too
FAMILIES = {
    "resnet": (14, 14), "resnet_v2": (21, 8),
    "efficientnet_lite": (49, 49), "mobilenet_v3": (53, 34), "convnext": (40, 0), "tinynet": (51, 31),
    "senet": (36, 20), "mobilenet_v1": (27, 27),
    "mnasnet": (66, 46), "resnest": (27, 23),
}  # fmt: skip
EXPORTED = 1


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    steps = zoo.STEPS if family in [*FAMILIES][:EXPORTED] else zoo.STEPS[:-1]
    row = zoo.check(family, 1, steps)
    assert row["failed"] == {}
    assert row["macs"]["network"] >= row["macs"]["convolutions"] > 0
    assert row["exact"]["error"] <= zoo.EQUAL
    assert row["mild"]["met"] or row["mild"]["reason"]
    assert all(row[step]["error"] <= 1e-3 for step in steps if step == "export")
    assert (row["macs"]["calls"], row["exact"]["edits"]) == FAMILIES[family]


def test_every_family_is_named_once() -> None:
    names = [name for name, _, _ in zoo.FAMILIES.values()]
    assert len(names) == len({*names}) >= 60


def test_a_fault_is_a_row_and_the_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*given: Any) -> Any:
        raise ValueError("no such\nthing")

    monkeypatch.setattr(zoo, "network", lambda *_: (nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.ones(1, 3, 5, 5)))
    monkeypatch.setattr(zoo, "exact", raising)
    row = zoo.check("resnet", sites=1)
    assert row["failed"] == {"exact": "ValueError: no such thing"}
    assert {"macs", "mild", "export"} <= row.keys()


@pytest.mark.parametrize("step, wrong, said", [
    ("macs", ("summary", lambda model, x: type("S", (), {"rows": [], "total": row_of(1), "network": row_of(1)})()),
     "FlopCounterMode"),
    ("exact", ("apply", lambda model, plan, x: nn.Conv2d(3, 4, 3, dtype=x.dtype)), "apart"),
])  # fmt: skip
def test_what_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch, step: str, wrong: Any, said: str) -> None:
    monkeypatch.setattr(zoo.reconv, *wrong)
    with pytest.raises(ValueError, match=said):
        getattr(zoo, step)(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.ones(1, 3, 5, 5))


def row_of(macs: int) -> Any:
    return type("Totals", (), {"macs": macs})()


def test_the_results_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "zoo.md"
    page.write_text(zoo.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(zoo, "PAGE", page)
    zoo.write_page()
    text = page.read_text(encoding="utf-8")
    assert text == (BENCHMARKS.parent / "docs" / "zoo.md").read_text(encoding="utf-8")
    for row in json.loads(zoo.RESULTS.read_text(encoding="utf-8"))["rows"]:
        assert f"`{row['name']}`" in text
