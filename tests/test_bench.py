"""Benchmarks: problems as text, and the command that measures them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from reconv.benching import Engine, Task, read_tasks
from reconv.benching.engines import TORCH, eager
from reconv.cli import app
from reconv.errors import ConvError

pytestmark = pytest.mark.usefixtures("known_machine")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks" / "problems").glob("*.txt"))


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
