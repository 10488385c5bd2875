"""Kinds of problems, and what the pages of benchmarks say of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from nets import source

from reconv.benching import Task
from reconv.benching.chart import svg

ROOT = Path(__file__).parents[1]


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


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    return source(ROOT / "benchmarks" / f"{name}.py", name)


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
