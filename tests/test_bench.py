"""Benchmarks: problems as text, engines that are checked before they are timed, kinds and their figures."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from reconv.benching import ENGINES, Engine, Report, Result, Task, engines_of, measure, read_tasks, roofline
from reconv.benching import run as running
from reconv.benching.chart import svg
from reconv.benching.engines import TORCH, UnservedError, eager
from reconv.benching.operands import Operands
from reconv.cli import app
from reconv.errors import ConvError
from reconv.targets import Timing

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks" / "problems").glob("*.txt"))


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    """Limits that need no measuring: 1 GMAC/s and 1 GB/s."""
    limits = {dtype: 1e9 for dtype in ("float32", "float64", "bfloat16")}
    known = roofline.Machine(1, limits, (1e9,) * len(roofline.SIZES))
    monkeypatch.setattr(roofline, "measured", lambda threads: known)
    monkeypatch.setattr("reconv.benching.report.measured", lambda threads: known)


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# -- problems -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line, text, macs, size",
    [
        ("ic8oc8k3x3p1g8 1x8x10x10", None, 7200, 6720),
        ("ic8oc8k3x3p1g8   1x8x10x10 forward float32", "ic8oc8k3x3p1g8 1x8x10x10", 7200, 6720),
        ("ic8oc8k3x3p1g8nb 1x8x10x10 input float64", None, 7200, 13376),
        ("ic4oc6k3nb 2x4x9 weight bfloat16", None, 1008, 456),
        ("ic4oc6k3 2x4x9 training", None, 3024, 1872),
        ("ic4oc4k2x2s2t 1x4x5x5", None, 1600, 2272),
        ("ic8oc8k3x3p1g8nb -> ic8oc4k1x1 1x8x6x6", None, 3744, 2160),
        ("deform(ic4oc8k3x3p1, og2, mask) 1x4x6x6", None, 10368, 10688),
    ],
)
def test_a_line_is_read_and_written(line, text, macs, size):
    task = Task.parse(line)
    assert (str(task), task.macs, task.bytes) == (text or line, macs, size)
    assert Task.parse(str(task)) == task


@pytest.mark.parametrize(
    "line, reason",
    [
        ("", "a block and the shape"),
        ("ic8oc8k3x3", "a block and the shape"),
        ("1x8x10x10 weight", "a block and the shape"),
        ("ic8oc8k3x3 1x8x10xten", "sizes with x"),
        ("ic8oc8k3x3 1x8x0x10", "sizes with x"),
        ("ic8oc8k3x3 1x8x9x9 float16", "sizes with x"),
        ("ic8oc8k3x3 1x8x9x9 float64 weight", "sizes with x"),
        ("ic8oc8k3x3 1x8x9x9 backward", "sizes with x"),
        ("ic8oc8q3 1x8x9x9", "a convolution is written like"),
        ("ic8oc8k3x3 1x4x9x9", "channels must be in_channels"),
        ("ic8oc8k3x3 1x8x9", "2 spatial axes"),
        ("ic8oc8k3x3 1x8x2x2", "at least as large as the dilated kernel"),
        ("ic8oc8k3x3p1mreflect 1x8x9x9", "padding must be zeros"),
        ("ic8oc8k3p0:1 1x8x9", "padding must be zeros"),
        ("relu 1x8x9x9", "must be a convolution, a separable chain"),
        ("ic8oc8k3x3 -> relu 1x8x9x9", "a depthwise convolution without bias"),
        ("ic8oc8k3x3p1g8 -> ic8oc4k1x1 1x8x9x9", "a depthwise convolution without bias"),
        ("ic8oc8k3x3p1g8nb -> ic8oc4k1x1s2 1x8x9x9", "a depthwise convolution without bias"),
        ("ic8oc8k3x3p1g8nb -> ic8oc4k1x1 -> ic4oc4k1x1 1x8x9x9", "a depthwise convolution without bias"),
        ("ic8oc8k3x3p1g8nb -> ic8oc4k1x1 1x8x9x9 weight", "Write training"),
        ("deform(ic8oc8k3x3) 1x8x9x9 input", "Write training"),
        ("ic8oc8k1x1 9999x8x999x999", "at most"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line, reason, tmp_path):
    with pytest.raises(ConvError, match=reason):
        Task.parse(line)
    if line:
        file = tmp_path / "some.txt"
        file.write_text(f"# a comment\n\n{line} # another\n")
        with pytest.raises(ConvError, match=f"some.txt, line 3, must be a problem.*{reason}") as caught:
            read_tasks([str(file)])
        assert isinstance(caught.value, ValueError)


def test_files_and_lines_mix(tmp_path):
    file = tmp_path / "two.txt"
    file.write_text("# head\nic8oc8k3 1x8x9\n\nic8oc8k3 1x8x9 weight # tail\n")
    tasks = read_tasks([str(file), "ic4oc4k1 1x4x4"])
    assert [(str(t), t.group) for t in tasks] == [
        ("ic8oc8k3 1x8x9", "two"), ("ic8oc8k3 1x8x9 weight", "two"), ("ic4oc4k1 1x4x4", "")]  # fmt: skip
    with pytest.raises(OSError, match="absent"):
        read_tasks(["absent.txt"])
    (tmp_path / "no_text.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConvError, match="must be text"):
        read_tasks([str(tmp_path / "no_text.txt")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_file_parses(file):
    tasks = read_tasks([str(file)])
    assert tasks
    assert {task.group for task in tasks} == {file.stem}
    assert len({str(task) for task in tasks}) == len(tasks)


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


# -- the command ----------------------------------------------------------------------------------
def bench(*args: object, status: int = 0):
    result = CliRunner().invoke(app, ["bench", *map(str, args)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def test_the_command_end_to_end(tmp_path):
    file, out = tmp_path / "tiny.txt", tmp_path / "results.json"
    file.write_text("ic8oc8k3x3p1g8 1x8x6x6\nic8oc8k3x3p1g8 1x8x6x6 weight\n")
    shown = bench(file, "ic4oc4k1 1x4x4", "--seconds", "0", "--threads", "1,2,1", "--format", "json", "-o", out)
    held = json.loads(shown.stdout)
    assert held == json.loads(out.read_text())
    assert held["format"] == 1
    assert {"cpu", "torch", "kernels", "limits"} <= held["machine"].keys()
    assert [(r["group"], r["threads"]) for r in held["results"]] == [("tiny", 1), ("tiny", 2)] * 2 + [("", 1), ("", 2)]
    for result in held["results"]:
        assert {"ms", "spread", "rounds"} == result["engines"]["reconv channels_last"].keys()
        assert result["ratio"] > 0
        assert result["roofline_ms"] > 0
    assert [line.split(",")[0] for line in held["summary"]] == [
        "tiny",
        "tiny",
        "given lines",
        "given lines",
        "all",
        "all",
    ]
    assert "2 of 2" in held["summary"][0] or "of 2 below 0.95" in held["summary"][0]
    picture = ElementTree.fromstring(out.with_suffix(".svg").read_text())
    assert len(picture.findall(".//{*}circle")) == 6
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "form, first", [("csv", "problem,threads,MMACs,torch contiguous ms"), ("markdown", "| problem |")]
)
def test_the_command_writes_tables(form, first):
    assert bench("ic4oc4k1 1x4x4", "--seconds", "0", "--format", form).stdout.startswith(first)


@pytest.mark.parametrize(
    "args, reason",
    [
        (["ic4oc4k1"], "a block and the shape"),
        (["ic4oc4k1 1x4x4", "--engines", "abacus"], "engines must be of"),
        (["ic4oc4k1 1x4x4", "--threads", "0"], "numbers from 1"),
        (["ic4oc4k1 1x4x4", "--threads", "one"], "numbers from 1"),
        ([], "Missing argument"),
    ],
)
def test_wrong_usage(args, reason):
    assert reason in " ".join(bench(*args, status=2).stderr.replace("│", " ").split())


def test_a_wrong_engine_makes_the_command_fail(monkeypatch):
    def off(task, given, threads):
        run = eager(TORCH, task, given)
        return lambda: run() + 1

    monkeypatch.setattr("reconv.benching.engines_of", lambda text: (Engine("reconv off", "reconv", "contiguous", off),))
    shown = bench("ic4oc4k1 1x4x4", "--format", "csv", status=1)
    assert "WRONG" in shown.stdout
    assert "reconv off is wrong on ic4oc4k1 1x4x4 (1 threads)" in shown.stderr


# -- kinds and figures ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line, kind",
    [
        ("deform(ic8oc8k3x3p1) 1x8x9x9 training", "deformable"),
        ("ic8oc8k3x3p1g8nb -> ic8oc8k1x1 1x8x56x56", "separable, from 56²"),
        ("ic8oc8k3x3p1g8nb -> ic8oc8k1x1 1x8x55x56", "separable, others"),
        ("ic8oc8k3p1g8nb -> ic8oc8k1 1x8x99", "separable, others"),
        ("ic8oc16k3x3p1g8 1x8x9x9 float64", "depthwise float64"),
        ("ic8oc8k3x3p1 1x8x9x9 float64", "others"),
        ("ic8oc8k3x3p1g8 1x8x9x9 weight bfloat16", "depthwise bfloat16"),
        ("ic8oc16k3x3p1g8 1x8x9x9", "depth multiplier 2"),
        ("ic8oc24k3x3p1g8 1x8x9x9", "depth multiplier, others"),
        ("ic1oc8k11x11 1x1x30x30 input", "one channel, 11×11"),
        ("ic1oc1k11x11 1x1x30x30", "one channel, 11×11"),
        ("ic1oc8k9x9 1x1x30x30", "others"),
        ("ic8oc8k4x4s2p1g8t 1x8x9x9", "depthwise transposed"),
        ("ic8oc8k3x3x3p1g8 1x8x9x9x9", "depthwise 3D"),
        ("ic8oc8k4p3g8 1x8x99", "depthwise 1D, 4 taps"),
        ("ic8oc8k31p15g8 1x8x99", "depthwise 1D, 31 taps"),
        ("ic8oc8k7p3g8 1x8x99", "depthwise 1D, others"),
        ("ic8oc8k7x7p9d3g8 1x8x28x28", "depthwise from 7×7, dilated"),
        ("ic8oc8k7x7p3g8 1x8x28x28", "depthwise from 7×7"),
        ("ic8oc8k5x51p2x25g8 1x8x56x56", "depthwise 2D, others"),
        ("ic8oc8k3x3s2p1g8 1x8x112x112", "depthwise 3×3, 14² to 112²"),
        ("ic8oc8k3x3p1g8 1x8x14x14 weight", "depthwise 3×3, 14² to 112²"),
        ("ic8oc8k3x3p1g8 1x8x7x7", "depthwise 2D, others"),
        ("ic8oc8k3x3p2d2g8 1x8x56x56", "depthwise 2D, others"),
        ("ic8oc8k3x3p1g2 1x8x28x28", "groups of 4, from 28²"),
        ("ic8oc8k3x3p1g2 1x8x14x14", "others"),
        ("ic8oc8k1x1g2 1x8x28x28", "others"),
        ("ic8oc8k3x3x3p2d2 1x8x9x9x9", "dense 3D, batch 1"),
        ("ic8oc8k3x3x3p1 2x8x9x9x9", "others"),
        ("ic8oc8k3x3p1 1x8x9x9", "others"),
    ],
)
def test_kinds(line, kind):
    assert script("figures").kind_of(Task.parse(line)).name == kind


def results_of(*ratios: tuple[str, float | None], threads: int = 1) -> list[dict]:
    """Made-up results: PyTorch takes as many milliseconds as the ratio says, reconv one."""
    return [
        {"problem": problem, "group": "made", "threads": threads, "macs": 1, "bytes": 1, "roofline_ms": 0.5,
         "engines": {"torch contiguous": {"ms": ratio, "spread": 0.0, "rounds": 5},
                     "reconv contiguous": {"ms": 1.0, "spread": 0.0, "rounds": 5}, "openvino": {"skipped": "no"}},
         "ratio": ratio, "of_roofline": 0.5}
        for problem, ratio in ratios
    ]  # fmt: skip


WON = ("ic8oc8k7x7p3g8 1x8x28x28", 4.0)
LOST = ("ic8oc8k7x7p3g8 1x8x14x14", 0.9)
BARE = ("ic8oc8k3x3p1 1x8x9x9", 10.0)
UNTIMED = ("ic8oc8k3x3p1 1x8x5x5", None)
LIMITS = {"threads": 1, "macs_per_s": {"float32": 7e10, "float64": 3e10}, "bytes_per_s": {"131072": 4e10, "1": 9e9}}
MACHINE = {"cpu": "abacus", "torch": "2", "kernels": "none", "limits": [LIMITS]}


def written(path: Path, results: list[dict]) -> Path:
    path.write_text(json.dumps({"format": 1, "machine": MACHINE, "results": results}))
    return path


def test_figures_of_results(tmp_path, capsys):
    figures = script("figures")
    lines = {(x.kind, x.direction): x for x in figures.figures(results_of(WON, LOST, BARE, UNTIMED))}
    large, rest, everything = lines.values()
    assert list(lines) == [("depthwise from 7×7", "forward"), ("others", "forward"), ("everything", "all")]
    assert (large.mean, large.asked, large.met) == (pytest.approx(3.6**0.5), 1.2, False)  # one problem loses
    assert (rest.mean, rest.asked, rest.met) == (pytest.approx(10), None, True)
    assert (everything.mean, everything.met) == (pytest.approx(36 ** (1 / 3)), False)
    won = figures.figures(results_of(WON))
    assert all(line.met for line in won)
    first = written(tmp_path / "a.json", results_of(WON, LOST))
    second = written(tmp_path / "b.json", results_of((LOST[0], 5.0), BARE))
    assert figures.main([str(first)]) == 1
    assert f"slower than PyTorch: 0.90 {LOST[0]} (1 threads)" in capsys.readouterr().out
    assert figures.main([str(first), str(second)]) == 0  # the later result of a problem counts
    assert "slower than PyTorch" not in capsys.readouterr().out


def test_the_page_is_written_from_results(tmp_path, monkeypatch):
    for name in ("figures", "marks"):
        monkeypatch.setitem(sys.modules, name, script(name))
    page = script("page")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    (tmp_path / "benchmarks.md").write_text((ROOT / "docs" / "benchmarks.md").read_text())
    files = [str(written(tmp_path / "r.json", results_of(WON, LOST, BARE, UNTIMED)))]
    page.write(files)
    text = (tmp_path / "benchmarks.md").read_text()
    for part in ("abacus", "| 1 | 70 | 30 | 40 | 9 |", "geometric mean 3.30, worst 0.90", "| depthwise from 7×7 |",
                 f"| `{WON[0]}` | 1 | 4 | 1 | 4.00 | 50% |", f"- 0.90 {LOST[0]}"):  # fmt: skip
        assert part in text
    page.write(files)  # again: the same page
    assert (tmp_path / "benchmarks.md").read_text() == text
    assert len(ElementTree.fromstring((tmp_path / "benchmarks.svg").read_text()).findall(".//{*}circle")) == 3
    (tmp_path / "benchmarks.md").write_text("no marks")
    with pytest.raises(SystemExit, match="one place for machine"):
        page.write(files)


def test_a_picture_of_nothing_is_still_one():
    assert ElementTree.fromstring(svg([])).tag.endswith("svg")


def test_a_result_without_both_sides_has_no_ratio():
    result = Result(Task.parse("ic4oc4k1 1x4x4"), 1)
    assert (result.ratio, result.of_roofline, result.best_ms("torch")) == (None, None, None)
    assert Report([result]).summaries == []
