"""What an earlier plan of the same job measured is not measured again; another job's is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import FakeTarget
from planned import DATA, IMAGE, network

from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.planning.table import Table

HALF = "latency=0.5"


@pytest.fixture(autouse=True)
def remembering(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("reconv.planning.remembered.ENABLED", True)
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path))
    return tmp_path


def made(
    target: FakeTarget | None = None, seed: int = 0, budget: str | None = HALF, **more: object
) -> tuple[Plan, int]:
    """A plan, and how many networks and blocks were timed for it."""
    target = target or FakeTarget()
    given = {"data": DATA, "target": target} | more
    return plan(network(seed), IMAGE, budget, **given), sum(target.seen)


def test_the_same_job_is_not_measured_again():
    first, many = made()
    again, few = made()
    assert again == first
    assert again.considered == first.considered
    assert many > 50
    assert few <= 1 + len(first.edits)  # that the engine runs the network at all


def test_another_budget_begins_with_the_rows_of_the_last():
    _, many = made()
    other, few = made(budget="latency=0.35")
    assert few < many / 3
    assert other == made(FakeTarget(), budget="latency=0.35")[0]
    fresh = plan(network(), IMAGE, "latency=0.35", DATA, FakeTarget(mac=1e-6 * (1 + 1e-12)))  # another engine
    assert [(e.site, e.rule, e.block) for e in other.edits] == [(e.site, e.rule, e.block) for e in fresh.edits]


OTHERS = {
    "weights": {"seed": 1},
    "data": {"data": DATA + 1},
    "no data": {"data": None},
    "rules": {"rules": ["exact", "bottleneck"]},
    "engine": {"target": FakeTarget(grouped=2.0)},
    "sites": {"sites": "3"},
    "wishes": {"wishes": {"pin": ["0"]}},
    "what is to be gained": {"budget": "macs=0.5"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_job_is_measured_anew(other):
    made()
    target = other.get("target", FakeTarget())
    _, count = made(target, **{k: v for k, v in other.items() if k != "target"})
    assert count > 20


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_file_that_holds_nothing_is_no_loss(remembering, content):
    first, many = made()
    (file,) = (remembering / "plans").iterdir()
    file.write_bytes(content)
    again, count = made()
    assert again == first
    assert count > many / 2
    assert len(json.loads(file.read_text())) > 3


def test_a_folder_that_cannot_be_written_is_no_loss(remembering):
    (remembering / "plans").write_text("in the way")
    assert made()[0] == made()[0]


def test_scores_are_of_the_networks_that_were_remembered():
    def evaluate(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(model(DATA).sum())

    first, again = (made(front=3, evaluate=evaluate)[0] for _ in range(2))
    scores = [[p.measured.score for p in each.alternatives] for each in (first, again)]
    assert scores[1] == pytest.approx(scores[0])
    assert len(scores[0]) > 1


def test_tables_come_back(monkeypatch):
    kept: list[Table] = []
    add = Table.add
    monkeypatch.setattr(Table, "add", lambda self, other: kept.append(other) or add(self, other))
    made()
    for table in kept:
        assert Table.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert len(kept) >= 3
