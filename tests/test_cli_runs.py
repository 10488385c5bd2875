"""Run folders by the command line: rewritten, recovered, exported, and gone on with where they were stopped."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from commanded import DATA, MODEL, reconv

from reconv.planning.plan import Plan
from reconv.reporting.again import commands
from reconv.rewriting.references import build_model
from reconv.rewriting.store import load, read_config


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
