"""The gate of benchmarks: a kernel that became slower is found, a busy machine is not taken for one."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gate

from reconv.ops import results

LINE, LAYOUT = gate.CASES[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(gate, "SECONDS", 0.05)
    yield
    torch.set_num_threads(before)


def slowed(choose):
    """The kernel that is chosen, called three times for once."""

    def made(problem):
        kernel = choose(problem)

        def prepare(problem):
            run = kernel.prepare(problem)
            return lambda *tensors: [run(*tensors) for _ in range(3)]

        return replace(kernel, prepare=prepare)

    return made


def test_a_kernel_three_times_slower_is_found(monkeypatch):
    with torch.inference_mode():
        floor = gate.SHARE * sorted(gate.ratio(LINE, LAYOUT, 0.3) for _ in range(3))[1]
    assert gate.best(LINE, LAYOUT, floor) >= floor
    monkeypatch.setattr(gate, "choose", slowed(gate.choose))
    assert gate.best(LINE, LAYOUT, floor) < floor


def held(monkeypatch, *rows: gate.Row) -> list[tuple[str, float]]:
    """Puts these rows in the place of the floors; what is measured, and as what."""
    measured: list[tuple[str, float]] = []

    def ratio(line: str, layout: str, seconds: float) -> float:
        measured.append((line, seconds))
        return min(1.0, 0.1 * len(measured))

    monkeypatch.setattr(gate, "read", lambda: (results.results_isa(), gate.machine(), list(rows)))
    monkeypatch.setattr(gate, "ratio", ratio)
    return measured


def row(floor: float) -> gate.Row:
    return gate.Row(LINE, LAYOUT, gate.chosen(LINE, LAYOUT), 1.0, floor)


def test_it_tries_again_and_longer_before_it_fails(monkeypatch):
    measured = held(monkeypatch, row(0.35))
    assert gate.check() == []
    assert [seconds for _, seconds in measured] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    measured.clear()
    held(monkeypatch, row(0.95))
    (told,) = gate.check()
    assert f"0.60 times as fast as PyTorch in the best of {gate.TRIES} tries; the floor is 0.95" in told


def test_another_choice_of_kernel_is_told(monkeypatch):
    measured = held(monkeypatch, replace(row(0.1), kernel="another"))
    (told,) = gate.check()
    assert "computes it, and not another" in told
    assert measured == []


def test_another_instruction_set_is_said_and_not_timed(monkeypatch, capsys):
    measured = held(monkeypatch, row(9.0), gate.Row(gate.CALL, "contiguous", "torch", 1.0, 9.0))
    monkeypatch.setattr(gate, "read", lambda: ("another", gate.machine(), [row(9.0)]))
    gate.check()
    assert "there is nothing to compare times with" in capsys.readouterr().out
    assert measured == []


def test_on_another_processor_half_of_a_floor_counts(monkeypatch, capsys):
    measured = held(monkeypatch, row(0.5))
    monkeypatch.setattr(gate, "machine", lambda: f"another{len(measured)}")
    monkeypatch.setattr(gate, "read", lambda: (results.results_isa(), "a machine", [row(0.5)]))
    assert gate.check() == []
    assert "0.5 of each counts" in capsys.readouterr().out
    assert len(measured) == 3


def test_there_is_a_floor_for_every_case():
    isa, _, rows = gate.read()
    assert results.has_table(isa)
    assert [(one.problem, one.layout) for one in rows] == [*gate.CASES, (gate.CALL, "contiguous")]
    assert all(one.floor == pytest.approx(gate.SHARE * one.measured, abs=0.01) for one in rows)
