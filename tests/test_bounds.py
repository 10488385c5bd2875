"""Proposals that cannot win on this machine are left out by what it can reach, and only these."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fakes import FakeTarget
from planned import DATA, IMAGE, network

from reconv.benching.roofline import Machine
from reconv.planning import bounds
from reconv.planning.bounds import SAFE, bound_ms, machine_of
from reconv.planning.make import plan
from reconv.spec import parse

PEAK, WIDE = 1e9, 1e15  # multiply-accumulates a second; bytes a second, where they are to cost nothing

# block, input, the multiply-accumulates that no algorithm spares
ARITHMETIC = [
    ("ic8oc12k1x1", (1, 8, 5, 7), 8 * 12 * 35),
    ("ic8oc8k3x3g8", (2, 8, 5, 7), 2 * 8 * 9 * 15),
    ("ic4oc6k1x3p0x1", (1, 4, 5, 7), 4 * 6 * 5 * (3 * 7 - 2)),
    ("ic4oc6k3s2p1", (1, 4, 9), 4 * 6 * (3 * 5 - 2)),
    ("ic4oc6k3s2p2:0", (1, 4, 4), 4 * 6 * 4),  # one of three weights meets the map, then all
    ("ic4oc6k3x3", (1, 4, 5, 7), 4 * 6 * 9 * 15 / 4),
    ("ic4oc6k1x1 -> relu -> ic6oc6k5x5p2g6", (1, 4, 1, 1), 4 * 6 + 6),
    ("ic4oc6k3s4p1 -> ic6oc6k3p1g6", (1, 4, 5), 4 * 6 * 4 + 6 * 4),  # the second on a map of 2
    ("(ic4oc6k1s2 | se(2) -> ic4oc2k1s2)", (1, 4, 5), 4 * 6 * 3 + 4 * 2 * 3),
    ("ic4oc6k7p3 -> ic6oc6k2", (1, 4, 2), 4 * 6 * 4 + 6 * 6 * 2),
    ("ic4oc6k2x2s2t", (1, 4, 5, 7), 0),
]


@pytest.mark.parametrize("text, shape, macs", ARITHMETIC)
def test_the_arithmetic_that_no_algorithm_spares(text, shape, macs):
    machine = Machine(1, {"float32": PEAK}, (WIDE,) * 12)
    assert bound_ms(parse(text), shape, machine, torch.float32) == pytest.approx(SAFE * 1e3 * macs / PEAK, abs=1e-8)


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
def test_the_bytes_that_are_moved_at_least_once(dtype, size):
    machine = Machine(1, dict.fromkeys(("float32", "float64", "bfloat16"), WIDE), (2e9,) * 12)
    moved = size * (3 * 35 + 5 * 35 + 3 * 5 + 5)
    assert bound_ms(parse("ic3oc5k1x1"), (1, 3, 5, 7), machine, dtype) == pytest.approx(SAFE * 1e3 * moved / 2e9)


@dataclass(frozen=True)
class Threaded(FakeTarget):
    threads: int | None = 1


@pytest.mark.parametrize(
    "target, device, dtype, known",
    [(Threaded(), "cpu", torch.float32, True), (FakeTarget(), "cpu", torch.float32, False),
     (Threaded(), "cpu", torch.float16, False), (Threaded(), "cuda", torch.float32, False)],
)  # fmt: skip
def test_the_limits_are_those_of_this_machine(target, device, dtype, known, monkeypatch):
    machine = Machine(1, {}, ())
    monkeypatch.setattr(bounds, "measured", {1: machine}.get)
    assert machine_of(target, torch.device(device), dtype) is (machine if known else None)


@pytest.mark.parametrize("peak, left_out", [(1e12, False), (1e3, True)])
def test_what_cannot_win_is_neither_timed_nor_fitted(peak, left_out, monkeypatch):
    monkeypatch.setattr(bounds, "measured", lambda threads: Machine(threads, {"float32": peak}, (WIDE,) * 12))
    target = Threaded(name=f"fake {peak}")  # of which nothing is remembered
    made = plan(network(), IMAGE, "latency=0.5", DATA, target)
    verdicts = [c for c in made.considered if c.verdict.startswith("cannot be faster: at best ")]
    assert bool(verdicts) == left_out
    assert all(c.latency_ms is None and c.fit_error is None for c in verdicts)
    assert max(target.seen) > 30 if not left_out else max(target.seen) < 15
    said = {r.rule for r in made.refusals if "on this machine the best takes" in r.reason}
    assert said == ({c.rule for c in verdicts} if left_out else set())
    by_macs = plan(network(), IMAGE, "macs=0.5", DATA, target)  # they may be slower, but are smaller
    assert by_macs.met
