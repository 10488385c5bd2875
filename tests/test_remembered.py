"""What an earlier plan of the same job measured is not measured again; another job's is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import FakeTarget
from planned import DATA, IMAGE, network

from reconv.planning.candidates import Table
from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.planning.probe import Probe

HALF = "latency=0.5"


@pytest.fixture(autouse=True)
def remembering(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("reconv.planning.remembered.ENABLED", True)
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def probed(monkeypatch) -> list[object]:
    """What was put into a network to see how its output moves."""
    calls: list[object] = []
    answers = Probe.answers
    monkeypatch.setattr(Probe, "answers", lambda self, model, *more: calls.append(model) or answers(self, model, *more))
    return calls


def made(target: FakeTarget | None = None, seed: int = 0, budget: str | None = HALF, **more: object) -> Plan:
    given = {"example_inputs": IMAGE, "data": DATA, "target": target or FakeTarget(),
             "rules": ("fold_batch_norm", "bottleneck", "asymmetric")}  # fmt: skip
    return plan(network(seed), budget=budget, **given | more)


def test_the_same_job_is_not_measured_again(probed):
    first, target = made(), FakeTarget()
    probed.clear()
    again = made(target)
    assert again == first
    assert again.considered == first.considered
    assert not probed
    assert sum(target.seen) <= 1 + len(first.edits)  # that the engine runs the network at all


def test_another_budget_begins_with_the_rows_of_the_last(probed):
    made()
    probed.clear()
    other = made(budget="latency=0.35")
    assert not probed
    fresh = made(FakeTarget(mac=1e-6 * (1 + 1e-12)), budget="latency=0.35")  # another engine
    assert probed
    assert [(e.site, e.rule, e.block) for e in other.edits] == [(e.site, e.rule, e.block) for e in fresh.edits]


OTHERS = {
    "weights": {"seed": 1},
    "data": {"data": DATA + 1},
    "no data": {"data": None},
    "inputs": {"example_inputs": IMAGE.repeat(2, 1, 1, 1)},
    "rules": {"rules": ["exact", "separable"]},
    "engine": {"target": FakeTarget(grouped=2.0)},
    "sites": {"sites": "3"},
    "wishes": {"wishes": {"pin": ["0"]}},
    "what is to be gained": {"budget": "macs=0.5"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_job_is_measured_anew(other, probed):
    made()
    probed.clear()
    made(**other)
    assert probed


def test_a_network_whose_code_has_changed_is_another_job(probed, monkeypatch):
    made()
    probed.clear()
    forward = torch.nn.Sequential.forward
    monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, x: forward(self, 2 * x))
    made()
    assert probed


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_a_file_that_holds_nothing_is_no_loss(remembering, content, probed):
    first = made()
    (file,) = (remembering / "plans").iterdir()
    file.write_bytes(content)
    probed.clear()
    assert made() == first
    assert probed
    assert len(json.loads(file.read_text())) > 3


def test_a_folder_that_cannot_be_written_is_no_loss(remembering, probed):
    (remembering / "plans").write_text("in the way")
    first = made()
    probed.clear()
    assert made() == first
    assert probed


def test_scores_are_of_the_networks_that_were_remembered():
    def evaluate(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(model(DATA).sum())

    first, again = (made(front=3, evaluate=evaluate) for _ in range(2))
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
