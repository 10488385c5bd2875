"""Engines are compared with the truth before they are timed, and with what the machine could do."""

from __future__ import annotations

import math

import pytest
import torch

from reconv.benching import ENGINES, Engine, Report, Result, Task, engines_of, measure, roofline
from reconv.benching import run as running
from reconv.benching.engines import TORCH, UnservedError, eager
from reconv.benching.operands import Operands
from reconv.errors import ConvError
from reconv.targets import Timing

pytestmark = pytest.mark.usefixtures("known_machine")

# -- engines --------------------------------------------------------------------------------------
CASES = [
    "ic6oc6k3p2d2g6 2x6x11",
    "ic6oc4k3x2s2p1 2x6x9x7",
    "ic6oc12k3x3x3p1g6nb 1x6x4x5x4",
    "ic4oc6k4x4s2p1g2t 1x4x5x3",
    "ic6oc12k3x3p1g6nb -> ic12oc5k1x1 2x6x7x7",
    "deform(ic4oc6k3p1g2, og2) 2x4x9",
    "deform(ic4oc6k3x3s2p1, og1, mask) 2x4x9x8",
    "deform(ic4oc6k3x2x2p1d2, og2, mask) 1x4x5x6x4",
    "ic6oc6k3x3p1g6 2x6x9x7 input",
    "ic6oc6k3x3p1g6 2x6x9x7 weight bfloat16",
    "ic4oc6k4x4s2p1g2t 1x4x5x3 weight float64",
    "ic6oc4k3x3p1 2x6x5x5 training",
    "ic6oc6k3p1g6nb -> ic6oc5k1 2x6x7 training",
    "deform(ic4oc6k3x3p1, og2, mask) 1x4x6x5 training",
]
SIDES = engines_of("torch,reconv")


@pytest.mark.parametrize("line", CASES)
def test_both_libraries_compute_the_task_in_both_formats(line):
    """measure() compares each with torch in float64, and says so where one is wrong."""
    result = measure(Task.parse(line), SIDES, 1, 0.0)
    assert [f.wrong for f in result.figures.values()] == [""] * 4
    assert list(result.figures) == [e.name for e in SIDES]
    assert result.ratio
    assert result.roofline_ms == pytest.approx(max(result.task.macs, result.task.bytes) / 1e6)
    assert result.of_roofline == pytest.approx(result.roofline_ms / result.best_ms("reconv"))


@pytest.mark.parametrize(
    "line", [c for c in CASES if c.split()[-1] not in ("input", "float64", "bfloat16", "training")]
)
def test_engines_that_run_onnx(line):
    deformable = line.startswith("deform")
    result = measure(Task.parse(line), engines_of("onnxruntime,openvino"), 1, 0.0)
    runtime, vino = result.figures["onnxruntime"], result.figures["openvino"]
    assert (runtime.wrong, vino.wrong) == ("", "")
    assert bool(runtime.timing) is (not deformable or result.task.block.conv.spatial_dims == 2)  # it knows 2D only
    assert bool(vino.timing) is not deformable
    assert result.ratio is None


def test_torch_compile(monkeypatch):
    engines = engines_of("torch.compile")
    assert measure(Task.parse("ic6oc6k3x3p1g6 2x6x9x7"), engines, 1, 0.0).figures["torch.compile"].timing
    monkeypatch.setattr("reconv.benching.engines.compiled", lambda function, frozen: function)  # it takes long
    for line in CASES:
        figure = measure(Task.parse(line), engines, 1, 0.0).figures["torch.compile"]
        assert bool(figure.timing) is ("input" not in line and "weight" not in line), (line, figure)


def test_channels_last_is_what_a_network_of_that_format_has():
    given = Operands.of(Task.parse("ic6oc6k3x3p1 2x6x9x7"))
    last = given.laid("channels_last")
    for mine, tensor in ((last.input, given.input), (last.weights[0], given.weights[0])):
        assert mine.stride() == tensor.to(memory_format=torch.channels_last).stride()
    assert Operands.of(Task.parse("ic6oc6k3p1 2x6x9")).laid("channels_last").input.stride() == (54, 1, 6)


def test_engines_by_name():
    assert engines_of("all") == ENGINES
    assert [e.name for e in engines_of("openvino, torch")] == ["torch contiguous", "torch channels_last", "openvino"]
    with pytest.raises(ConvError, match=r"must be of torch, reconv.*got engines=tensorrt"):
        engines_of("torch,tensorrt")


def test_a_wrong_engine_is_told_and_not_timed():
    def off_by(factor: float) -> Engine:
        def prepare(task, given, threads):
            run = eager(TORCH, task, given)
            return lambda: run() * factor

        return Engine(f"off by {factor}", "off", "contiguous", prepare)

    def refuses(task, given, threads):
        raise UnservedError("not today")

    def narrow(task, given, threads):
        return lambda: given.input[:, :, 1:]

    engines = [off_by(1 + 1e-4), off_by(math.nan), off_by(1 + 1e-7), Engine("refuses", "r", "contiguous", refuses),
               Engine("narrow", "n", "contiguous", narrow)]  # fmt: skip
    result = measure(Task.parse("ic6oc6k3x3p1g6 2x6x9x7"), engines, 1, 0.0)
    slightly, nan, rounded, refused, narrowed = result.figures.values()
    assert "rounding explains" in slightly.wrong
    assert nan.wrong.startswith("nan away")
    assert rounded.timing
    assert refused.to_dict() == {"skipped": "not today"}
    assert narrowed.wrong == "its output is (2, 6, 8, 7), not (2, 6, 9, 7)"
    report = Report([result])
    assert len(report.wrong) == 3
    assert report.rows[0].count("WRONG") == 3


def test_noisy_measurements_are_repeated(monkeypatch):
    tries = iter([[Timing(1.0, 0.5, 5)], [Timing(2.0, 0.4, 5)], [Timing(3.0, 0.9, 5)]])
    monkeypatch.setattr(running, "interleave", lambda *args, **kwargs: next(tries))
    assert running._timings([lambda: torch.zeros(1)], 0.0) == [Timing(2.0, 0.4, 5)]
    assert next(tries, None) is None


# -- limits ---------------------------------------------------------------------------------------
def test_the_roofline_is_the_longer_of_computing_and_moving():
    machine = roofline.Machine(1, {"float32": 2e9}, tuple(1e9 / 2**n for n in range(len(roofline.SIZES))))
    small, large = roofline.SIZES[0], roofline.SIZES[-1]
    assert [machine.bandwidth_of(n) for n in (1, small, 2 * small)] == [1e9, 1e9, 5e8]
    assert machine.bandwidth_of(3 * large) == machine.bandwidth[-1]
    assert 5e8 < machine.bandwidth_of(small * 3 // 2) < 1e9
    dense, thin = Task.parse("ic64oc64k3x3p1 1x64x14x14"), Task.parse("ic64oc64k1x1g64 1x64x14x14")
    assert machine.roofline_ms(dense) == dense.macs / 2e6
    assert machine.roofline_ms(thin) == thin.bytes / 1e6


def test_limits_are_measured(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(roofline, "SECONDS", 1e-4)
    monkeypatch.setattr(roofline, "SIZES", roofline.SIZES[:3])
    for own in (True, False):
        if not own:
            monkeypatch.setattr(roofline, "library", lambda: None)
        found = roofline._measured(2)
        assert set(found.peak) == {"float32", "float64", "bfloat16"}
        assert min(*found.peak.values(), *found.bandwidth) > 0
        assert len(found.bandwidth) == len(roofline.SIZES)


def test_a_result_without_both_sides_has_no_ratio():
    result = Result(Task.parse("ic4oc4k1 1x4x4"), 1)
    assert (result.ratio, result.of_roofline, result.best_ms("torch")) == (None, None, None)
    assert Report([result]).summaries == []
