"""The command line: help, the demo, summaries in every format, and kernels explained."""

import csv
import io
import json
import subprocess
import sys

import pytest
import torch
from commanded import DATA, MODEL, reconv
from rich.console import Console
from typer.testing import CliRunner

from reconv.cli import app
from reconv.costing.summary import summary
from reconv.rewriting.references import build_model


def test_help_and_version_are_there():
    shown = reconv("--help").stdout
    for name in ("summary", "plan", "rewrite", "recover", "export", "report", "demo"):
        assert name in shown
        reconv(name, "--help")
    assert reconv("--version").stdout.startswith("reconv")


def test_help_does_not_wait_for_torch():
    script = "import sys; from reconv.cli import app; app(['-h'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "summary" in done.stdout
    assert "'torch'" not in done.stdout
    assert "'numpy'" not in done.stdout


def test_demo_calls_the_demo(monkeypatch):
    from reconv.demo import run

    called = []
    monkeypatch.setattr(run, "main", lambda: called.append(True))
    reconv("demo")
    assert called == [True]


# summary -----------------------------------------------------------------------------------------


def test_summary_in_every_format(here):
    data = json.loads(reconv("summary", *MODEL, "--format", "json").stdout)
    assert [row["macs"] for row in data["rows"]] == [8 * 27 * 63, 12 * 200 * 63]
    assert data["total"]["params"] == 8 * 27 + 12 * 200 + 12
    assert data["rows"][0]["latency_ms"]["state"] == "unavailable"
    table = list(csv.DictReader(io.StringIO(reconv("summary", *MODEL, "--format", "csv").stdout)))
    assert [row["spec"] for row in table] == ["ic3oc8k3x3p1nb", "ic8oc12k5x5p2"]
    markdown = reconv("summary", *MODEL, "--format", "markdown").stdout
    assert markdown.startswith("| name | kind |")
    shown = reconv("summary", *MODEL)
    assert "ic8oc12k5x5p2" in shown.stdout
    assert shown.stderr == ""


def test_summary_is_timed_where_a_target_is_named(here):
    data = json.loads(reconv("summary", *MODEL, "--target", "torch", "--format", "json").stdout)
    assert data["target"] == "torch"
    assert all(row["latency_ms"]["value"] > 0 for row in data["rows"])


def test_several_inputs_and_their_dtypes(here):
    (here / "two.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.conv = nn.Embedding(7, 4), nn.Conv1d(4, 3, 3)\n"
        "    def forward(self, symbols, more):\n"
        "        return self.conv(self.table(symbols).mT + more)\n"
    )
    shown = reconv("summary", "two.py:Two", "--input", "1x9:int64", "--input", "1x4x9", "--format", "csv")
    assert "ic4oc3k3" in shown.stdout


@pytest.mark.parametrize("width, missing", [(110, ()), (90, ("input",)), (76, ("kind", "input"))])
def test_a_narrow_terminal_gets_fewer_columns_but_whole_words(here, width, missing):
    out = io.StringIO()
    Console(width=width, file=out).print(summary(build_model("net.py:make"), torch.zeros(1, 3, 9, 7)))
    _, frame, heads, *_ = out.getvalue().splitlines()
    assert len(frame.rstrip()) <= width
    every = ("convolution", "kind", "spec", "input", "output", "params", "MACs", "sees")
    assert heads.replace("┃", " ").split() == [head for head in every if head not in missing]
    assert "ic8oc12k5x5p2" in out.getvalue()
    assert ("no room for: " + ", ".join(missing) in out.getvalue()) == bool(missing)


def test_inputs_are_like_the_data_where_none_is_given(here):
    shown = reconv("summary", "net.py:make", *DATA, "--format", "json")
    assert json.loads(shown.stdout)["rows"][0]["input_shape"] == [1, 3, 9, 7]


# kernels -----------------------------------------------------------------------------------------

KERNEL_LINES = {
    "a convolution": (["ic16oc16k5x5p2g16", "--input", "1x16x20x20"], 0, "depthwise"),
    "a gradient": (
        ["ic16oc16k5x5p2g16", "--input", "1x16x20x20", "--pass", "weight", "--dtype", "float64"],
        0,
        "planar",
    ),
    "what was measured": ([], 0, "kind"),
    "no input": (["ic16oc16k5x5p2g16"], 2, "go together"),
    "no convolution": (["relu", "--input", "1x3x4x4"], 2, "SPEC"),
    "a layout that is none": (["ic3oc3k3", "--input", "1x3x8", "--layout", "NHWC"], 2, "contiguous or channels_last"),
    "a pass that is none": (["ic3oc3k3", "--input", "1x3x8", "--pass", "both"], 2, "forward, input or weight"),
}


@pytest.mark.parametrize("arguments, status, says", KERNEL_LINES.values(), ids=KERNEL_LINES.keys())
def test_kernels_are_explained(arguments, status, says):
    result = CliRunner().invoke(app, ["kernels", *arguments])
    assert result.exit_code == status
    assert says in result.output


@pytest.mark.parametrize("saved, told", [(0.001, True), (1.0, False)])
def test_kernels_tells_where_a_call_costs_more_than_it_saves(saved, told, monkeypatch):
    from reconv.ops import dispatch

    monkeypatch.setattr(dispatch, "saving_ms", lambda _: saved)
    result = CliRunner().invoke(app, ["kernels", *KERNEL_LINES["a convolution"][0]])
    assert ("a call by itself is torch's" in result.output) == told
