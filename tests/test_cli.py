"""The command line: outputs, run folders and exit statuses, end to end on a small network."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commanded import DATA, MODEL, reconv
from rich.console import Console
from typer.testing import CliRunner

from reconv.cli import app
from reconv.commands.plan import unused, verdict
from reconv.costing.summary import summary
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.reporting.again import commands
from reconv.rewriting.references import build_model
from reconv.rewriting.store import load, read_config
from reconv.spec import ConvSpec


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


# plan --------------------------------------------------------------------------------------------


def test_plan_writes_what_it_prints(here):
    shown = reconv("plan", *MODEL, *DATA, "--budget", "macs=0.6", "--format", "json")
    plan = Plan.load("plan.json")
    assert json.loads(shown.stdout) == plan.to_dict()
    assert plan.model["ref"] == "net.py:make"
    assert plan.met
    assert "the budget macs=0.6 is met" in shown.stderr


@pytest.mark.parametrize("layout, said", [("contiguous", False), ("channels_last", True)])
def test_the_verdict_says_what_else_made_it_faster(layout, said):
    text = verdict(Plan(layout=layout, latency_ratio=0.8))
    assert "0 layers change" in text
    assert ("channels_last memory layout" in text) == said


def test_the_verdict_counts_layers():
    block = ConvSpec.parse("ic3oc4k3x3")
    edits = [Edit("a", "fold_batch_norm", block), Edit("a", "fuse_activation", block), Edit("b", "trim", block)]
    assert verdict(Plan(tuple(edits))).startswith("2 layers change")
    assert verdict(Plan(tuple(edits[:2]))).startswith("1 layer changes")


def test_rules_that_change_nothing_say_why():
    said = [
        ("a", "trim", "no border."),
        ("b", "trim", "no border."),
        ("a", "skip", "other"),
        ("a", "dense", "other"),
        ("a", "deform", "used all the same"),
        ("a", "*", "functional"),
        *[(i, "stacked", i) for i in "abc"],
    ]
    plan = Plan((Edit("b", "deform", ConvSpec.parse("ic3oc4k3x3")),), tuple(Refusal(*each) for each in said))
    assert unused(plan) == ["trim changes nothing: no border (2 times).", "skip, dense change nothing: other.",
                            "stacked changes nothing: a; b; 1 more in the plan."]  # fmt: skip


def test_the_result_shows_the_score_and_the_interleaved_ratio(here):
    shown = reconv("rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 0, "--evaluate", "net.py:score",
                   "--format", "csv").stdout  # fmt: skip
    rows = {row["figure"]: row for row in csv.DictReader(io.StringIO(shown))}
    assert (rows["score"]["before"], rows["score"]["after"]) == ("0.5", "0.5")
    assert rows["latency_ms"]["ratio"] == f"{Plan.load('runs/make/plan.json').latency_ratio:.4g} (interleaved)"
    page = Path("runs/make/report.html").read_text()
    assert "<td>score</td>" in page
    assert "interleaved" in page
    reconv("recover", "runs/make", *DATA, "--trust-code", "--epochs", 0)  # of other weights the score is not known
    assert "<td>score</td>" not in Path("runs/make/report.html").read_text()
    again = reconv("recover", "runs/make", *DATA, "--trust-code", "--epochs", 0, "--evaluate", "net.py:score",
                   "--format", "csv").stdout  # fmt: skip
    assert "score,0.5,0.5," in again


def test_a_plan_whose_budget_cannot_be_met_is_written_all_the_same(here):
    shown = reconv("plan", *MODEL, "--budget", "macs=0.001", "-o", "deep/p.json", "--format", "csv", status=3)
    assert "is not met, this is the best found" in shown.stderr
    plan = Plan.load("deep/p.json")
    assert not plan.met
    assert plan.edits
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [row["site"] for row in rows] == [edit.site for edit in plan.edits]


# rewrite, recover, export ------------------------------------------------------------------------


def test_from_rewrite_to_export(here):
    shown = reconv("rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 1, "--format", "json")
    run = here / "runs" / "make"
    assert {p.name for p in run.iterdir()} == {"plan.json", "config.json", "model.safetensors", "summary.json",
                                               "report.html", "log.jsonl", "checkpoint"}  # fmt: skip
    data = json.loads(shown.stdout)
    assert data["met"]
    assert data["after"]["network"]["macs"]["value"] <= 0.6 * data["before"]["network"]["macs"]["value"]
    config = read_config(run)
    assert config["model"]["ref"] == "net.py:make"
    assert config["settings"]["input"] == ["1x3x9x7"]
    assert config["settings"]["budget"] == "macs=0.6"
    assert "reconv rewrite net.py:make --input 1x3x9x7 --data net.py:data" in (run / "report.html").read_text()
    assert "Receptive fields" in (run / "report.html").read_text()
    (again,) = commands(config)
    offered = reconv("rewrite", "--help").stdout
    assert all(word in offered for word in again.split() if word.startswith("--"))

    rewritten = load(run, trust_code=True)
    assert rewritten(torch.zeros(2, 3, 9, 7)).shape == (2, 5)

    # a run folder is a MODEL, but the code that it names is run only on request
    assert "--trust-code" in reconv("summary", run, status=1).stderr
    total = json.loads(reconv("summary", run, "--trust-code", "--format", "json").stdout)["total"]
    assert total["macs"]["value"] == data["after"]["total"]["macs"]["value"]

    reconv("recover", run, *DATA, "--trust-code", "--epochs", 2)
    recovered = read_config(run)
    assert recovered["recovered"]["epochs"] == 2
    assert recovered["model"] == config["model"]
    assert json.loads((run / "summary.json").read_text())["error"] <= data["error"] + 1e-6
    assert len((run / "log.jsonl").read_text().splitlines()) >= 4

    written = reconv("export", run, "--trust-code", "-o", "net.onnx").stderr
    assert "any batch size; checked without reconv" in written
    assert (here / "net.onnx").is_file()


def test_the_default_folder_is_the_next_free_one_and_a_given_one_is_not_overwritten(here):
    rewrite = ["rewrite", *MODEL, "--rules", "exact"]
    reconv(*rewrite)
    reconv(*rewrite)
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["make", "make-2"]
    before = (here / "runs/make/config.json").read_text()
    assert "holds a run already" in reconv(*rewrite, "-o", "runs/make", status=2).stderr
    assert (here / "runs/make/config.json").read_text() == before


def test_an_impossible_budget_leaves_the_best_found(here):
    shown = reconv("rewrite", *MODEL, "--budget", "macs=0.001", "-o", "run", status=3)
    assert "is not met, this is the best found" in shown.stderr
    assert "begins anew" not in shown.stderr
    assert not Plan.load("run/plan.json").met
    assert load("run", trust_code=True)(torch.zeros(1, 3, 9, 7)).shape == (1, 5)


def test_a_run_of_a_run_loads_again(here):
    """Its structure is that of the first run, whose code is run only on request."""
    first = reconv("rewrite", *MODEL, "--budget", "params=0.6", "--epochs", 0, "--resume", "-o", "one")
    assert "nothing in one to go on with" in first.stderr
    reconv("rewrite", "one", "--trust-code", "--rules", "exact", "-o", "two")
    x = torch.ones(2, 3, 9, 7)
    torch.testing.assert_close(load("two", trust_code=True)(x), load("one", trust_code=True)(x), rtol=1e-4, atol=1e-5)
    assert "--trust-code" in reconv("summary", "two", status=1).stderr
    reconv("recover", "two", *DATA, "--trust-code", "--epochs", 1)
    config = json.loads(Path("two/config.json").read_text())
    config["model"]["ref"] = "two"
    Path("two/config.json").write_text(json.dumps(config))
    assert "must not begin with itself" in reconv("summary", "two", "--trust-code", status=1).stderr


def test_stopped_in_mid_run_the_best_is_kept_and_resume_goes_on(here):
    rewrite = ["rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 3, "--evaluate", "net.py:score"]
    (here / "calls").write_text("")
    stopped = reconv(*rewrite, "-o", "run", status=130)
    assert "the best so far is kept; the last checkpoint stands in run; go on with --resume" in stopped.stderr
    assert load("run", trust_code=True)(torch.zeros(2, 3, 9, 7)).shape == (2, 5)
    summary = json.loads((here / "run/summary.json").read_text())
    assert 0 < summary["error"] < 1
    assert summary["after"]["network"]["latency_ms"]["value"] is None
    (here / "run/model.safetensors").unlink()  # as after a kill
    assert "finish it with --resume" in reconv("summary", "run", "--trust-code", status=1).stderr
    planned = Plan.load("run/plan.json")
    assert "holds a run already" in reconv(*rewrite, "-o", "run", status=2).stderr
    other = reconv(*rewrite, "-o", "run", "--resume", "--seed", 1, status=2)
    assert "seed: 0 then, 1 now" in other.stderr
    reconv(*rewrite, "-o", "run", "--resume")
    assert Plan.load("run/plan.json").edits == planned.edits
    assert "stopped" not in read_config("run")
    epochs = [json.loads(line).get("epoch") for line in (here / "run/log.jsonl").read_text().splitlines()]
    assert {1, 2, 3} <= set(epochs)


def test_recovery_stopped_keeps_the_best_and_resume_goes_on(here):
    reconv("rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 0, "-o", "run")
    shutil.copytree("run", "whole")
    again = [*DATA, "--trust-code", "--evaluate", "net.py:score", "--epochs", 3]
    reconv("recover", "whole", *again)
    (here / "calls").write_text("")
    stopped = reconv("recover", "run", *again, status=130)
    assert "the best so far is kept; the last checkpoint stands in run; go on with --resume" in stopped.stderr
    assert read_config("run")["stopped"]
    assert load("run", trust_code=True)(torch.zeros(2, 3, 9, 7)).shape == (2, 5)
    reconv("recover", "run", *again, "--resume")
    assert "stopped" not in read_config("run")
    ours, theirs = (load(run, trust_code=True).state_dict() for run in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    epochs = [json.loads(line)["epoch"] for line in (here / "run/log.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2, 3]


def test_a_full_disk_is_one_line_and_the_checkpoint_stands(here, monkeypatch):
    def full(model, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reconv.rewriting.store.save_weights", full)
    shown = reconv("rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 1, "-o", "run", status=1)
    assert "the last checkpoint stands in run; go on with --resume" in shown.stderr
    assert shown.stderr.splitlines()[-1] == (
        "Error: save: the file must be writable; got file=run, error='No space left on device'. "
        "Free some space; what stood there stands."
    )


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_export_of_a_model_with_weights(here, suffix):
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    torch.save(model.state_dict(), "w.pt")
    (here / "one.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    reconv("export", "one.py:make", "--weights", "w.pt", "--input", "1x3x9x7", "-o", f"net.{suffix}")
    x = torch.ones(2, 3, 9, 7)
    if suffix == "pt2":
        got = torch.export.load("net.pt2").module()(x)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession("net.onnx")
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


def test_recover_takes_only_the_teacher_that_the_run_began_with(here):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(build_model("net.py:make").state_dict(), f"w{seed}.pt")
    reconv("rewrite", *MODEL, "--weights", "w1.pt", "--rules", "exact", "-o", "run")
    recover = ["recover", "run", *DATA, "--trust-code", "--epochs", 1]
    assert "w1.pt" in reconv(*recover, status=2).stderr
    assert "must be the network that the run began with" in reconv(*recover, "--weights", "w2.pt", status=1).stderr
    reconv(*recover, "--weights", "w1.pt")


# configuration files -----------------------------------------------------------------------------


def test_a_configuration_gives_flags_and_the_command_line_wins(here):
    np.savez("d.npz", x=np.zeros((8, 3, 9, 7), np.float32))
    (here / "c.yaml").write_text("input: [1x3x9x7]\nbudget: {macs: 0.6}\nrules: [exact, separable]\ndata: d.npz\n"
                                 "seed: 4\nepochs: 0\nmean: [0.5, 0.5, 0.5]\n")  # fmt: skip
    reconv("rewrite", "net.py:make", "--config", "c.yaml", "--seed", 5, "-o", "run")
    settings = read_config("run")["settings"]
    expected = {"budget": "macs=0.6", "rules": ["exact", "separable"], "data": "d.npz", "seed": 5, "epochs": 0,
                "mean": "0.5,0.5,0.5", "input": ["1x3x9x7"]}  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


CONFIGS = {
    "unknown": ("bugdet: macs=0.5", "unknown=bugdet"),
    "of another command": ("format: csv\nevaluate: a:b", "unknown=evaluate"),
    "trust": ("trust-code: true", "unknown=trust-code"),
    "config": ("config: other.yaml", "unknown=config"),
    "no mapping": ("- a\n- b", "names and values"),
    "no YAML": ("a: [", "readable YAML"),
    "object": ("seed: !!python/object/apply:os.getcwd []", "readable YAML"),
    "nested": ("seed: [[1]]", "a value must be text"),
    "wrong type": ("seed: much", "seed"),
    "code": ("data: net.py:data", "run it with --trust-code"),
}


@pytest.mark.parametrize("text, message", CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_configuration_is_wrong_usage(here, text, message):
    (here / "c.yaml").write_text(text)
    shown = reconv("summary", *MODEL, "--config", "c.yaml", status=2)
    assert message in shown.stderr
    assert shown.stdout == ""


def test_code_in_a_configuration_runs_if_trusted(here):
    (here / "c.yaml").write_text("data: net.py:data")
    reconv("summary", "net.py:make", "--config", "c.yaml", "--trust-code")
    reconv("summary", "net.py:make", "--config", "c.yaml", *DATA)


# wrong usage and failures ------------------------------------------------------------------------

WRONG_USAGE = {
    "no command": ([], ""),
    "unknown command": (["shrink"], "shrink"),
    "unknown flag": (["summary", *MODEL, "--fast"], "--fast"),
    "no model": (["summary", "--input", "1x3x9x7"], "MODEL"),
    "no input": (["summary", "net.py:make"], "give the shape of the network's input"),
    "model": (["summary", "net.py", "--input", "1x3x9x7"], "MODEL must be"),
    "input": (["summary", "net.py:make", "--input", "1,3,9,7"], "Write 1x3x224x224"),
    "input dtype": (["summary", "net.py:make", "--input", "1x3:float7"], "1x3:float7"),
    "empty input": (["summary", "net.py:make", "--input", "0x3x9x7"], "0x3x9x7"),
    "format": (["summary", *MODEL, "--format", "xml"], "xml"),
    "target": (["summary", *MODEL, "--target", "abacus"], "target must be one of torch"),
    "budget": (["plan", *MODEL, "--budget", "latency=fast"], "NAME=VALUE"),
    "budget above 1": (["rewrite", *MODEL, "--budget", "latency=2"], "fraction in (0, 1]"),
    "budget missing": (["plan", *MODEL, "--rules", "smaller"], "--budget"),
    "rule": (["plan", *MODEL, "--rules", "separabel"], "Did you mean separable?"),
    "epochs": (["rewrite", *MODEL, "--epochs", -1], "epochs"),
    "seed": (["rewrite", *MODEL, "--seed", "x"], "seed"),
    "holdout": (["rewrite", *MODEL, "--holdout", 1], "between 0 and 1"),
    "mean": (["rewrite", *MODEL, *DATA, "--mean", "grey"], "numbers with commas"),
    "infinite mean": (["rewrite", *MODEL, *DATA, "--mean", "inf"], "numbers with commas"),
    "mean of no data": (["plan", *MODEL, "--mean", "0.5"], "it is for --data"),
    "std of 0": (["plan", *MODEL, *DATA, "--std", "1,0,1"], "must be positive"),
    "wishes of another form": (["plan", *MODEL, "--wishes", "net.py"], "must hold a plan as JSON"),
    "a plan that is none": (["rewrite", *MODEL, "--plan", "nowhere.json"], "must hold a plan as JSON"),
    "a front too long": (["plan", *MODEL, "--front", 65], "front"),
    "no rules": (["plan", *MODEL, "--rules", " ,"], "at least one rule"),
    "no sites": (["rewrite", *MODEL, "--sites", ""], "at least one layer"),
    "data": (["rewrite", *MODEL, "--data", "somewhere"], "must be a folder of images"),
    "evaluate": (["rewrite", *MODEL, "--evaluate", "accuracy"], "must be package.module:callable"),
    "evaluate by timm": (["rewrite", *MODEL, "--evaluate", "timm:resnet18"], "must be package.module:callable"),
    "more stages than epochs": (["rewrite", *MODEL, *DATA, "--stages", 4], "stages must be between 1 and epochs"),
    "stages without data": (["rewrite", *MODEL, "--stages", 2], "with data to recover on"),
    "no stage": (["rewrite", *MODEL, "--stages", 0], "--stages"),
    "precision": (["rewrite", *MODEL, "--precision", "half"], "one of float32, bfloat16, float16"),
    "ema": (["rewrite", *MODEL, "--ema", 1], "at least 0 and less than 1"),
    "log": (["rewrite", *MODEL, "--log", "wandb"], "one of json, tensorboard"),
    "nothing to resume": (["rewrite", *MODEL, "--resume"], "there is no runs/make to go on with"),
    "recover without data": (["recover", "run"], "give the data"),
    "recover of nothing": (["recover", "run", *DATA], "must be a run folder"),
    "export to nowhere": (["export", *MODEL], "--out"),
    "export suffix": (["export", *MODEL, "-o", "net.tflite"], "must end in .onnx or .pt2"),
}


@pytest.mark.parametrize("args, message", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_is_2_and_nothing_is_written(here, args, message):
    shown = reconv(*args, status=2)
    assert message in " ".join(shown.stderr.split())
    assert [p.name for p in here.iterdir() if p.name != "__pycache__"] == ["net.py"]


FAILURES = {
    "no such file": (["summary", "nowhere.py:make", "--input", "1x3x9x7"], "file must exist"),
    "no such module": (["summary", "nowhere_at_all:make", "--input", "1x3x9x7"], "ModuleNotFoundError"),
    "no convolution": (["summary", "net.py:flat", "--input", "1x3x9x7"], "at least one convolution"),
    "inputs that it rejects": (["summary", "net.py:make", "--input", "1x4x9x7"], "to have 3 channels"),
    "an input beyond all memory": (["summary", "net.py:make", "--input", "99999999x3x32000x32000"], "fit in memory"),
    "no weights": (["summary", *MODEL, "--weights", "w.pt"], "must exist"),
    "NaN in the data": (["rewrite", *MODEL, "--data", "net.py:holed", "--budget", "macs=0.6"], "finite"),
    "data of another shape": (["rewrite", *MODEL, "--data", "d.npz", "--budget", "macs=0.6"], "channels"),
    "whole numbers for data": (
        ["rewrite", *MODEL, "--data", "i.npz", "--budget", "macs=0.6"],
        "got dtype=torch.int64, example_inputs=torch.float32",
    ),
    "doubles for data": (
        ["plan", *MODEL, "--data", "net.py:doubles", "--budget", "macs=0.6"],
        "got dtype=torch.float64, example_inputs=torch.float32",
    ),
    "one image": (["rewrite", *MODEL, "--data", "net.py:one", "--budget", "macs=0.6"], "two samples to hold one out"),
    "one-shot data": (["rewrite", *MODEL, "--data", "net.py:once", "--budget", "macs=0.6"], "more than one pass"),
    "a judge that fails": (
        ["rewrite", *MODEL, *DATA, "--budget", "macs=0.6", "--epochs", 0, "--evaluate", "net.py:fails"],
        "ZeroDivisionError: no batches' (net.py:",
    ),
    "sites": (["plan", *MODEL, "--sites", "nothing.*", "--budget", "macs=0.6"], "sites must match"),
}


@pytest.mark.parametrize("args, message", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line(here, args, message):
    np.savez("d.npz", x=np.zeros((8, 4, 9, 7), np.float32))
    np.savez("i.npz", x=np.zeros((8, 3, 9, 7), np.int64))
    shown = reconv(*args, status=1)
    assert message in shown.stderr
    assert shown.stderr.startswith("Error: ")
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stdout == ""


def test_weights_with_code_are_refused(here):
    class Bomb:
        def __reduce__(self):
            return (open, (str(here / "ran"), "w"))

    torch.save({"0.weight": Bomb()}, "w.pt")
    (here / "ran").unlink(missing_ok=True)
    assert "no code" in reconv("summary", *MODEL, "--weights", "w.pt", status=1).stderr
    assert not (here / "ran").exists()


def test_demo_calls_the_demo(monkeypatch):
    from reconv.demo import run

    called = []
    monkeypatch.setattr(run, "main", lambda: called.append(True))
    reconv("demo")
    assert called == [True]


# -- kernels --------------------------------------------------------------------------------------
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
