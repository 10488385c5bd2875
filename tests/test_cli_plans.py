"""Plans by the command line: written, edited by a person, explained, carried out, and whole fronts of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from commanded import DATA, MODEL, reconv
from typer.testing import CliRunner

from reconv.cli import app
from reconv.commands.plan import unused, verdict
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.rewriting.references import build_model
from reconv.rewriting.store import load, read_config
from reconv.spec import ConvSpec

JOB = [*MODEL, *DATA, "--budget", "macs=0.6"]


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


def test_a_plan_whose_budget_cannot_be_met_is_written_all_the_same(here):
    shown = reconv("plan", *MODEL, "--budget", "macs=0.001", "-o", "deep/p.json", "--format", "csv", status=3)
    assert "is not met, this is the best found" in shown.stderr
    plan = Plan.load("deep/p.json")
    assert not plan.met
    assert plan.edits
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [row["site"] for row in rows] == [edit.site for edit in plan.edits]


def test_a_plan_is_explained_without_being_made_again(here):
    shown = reconv("plan", *JOB, "--explain", "3", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert {row["rule"] for row in rows} > {"bottleneck", "separable", "asymmetric"}
    assert sum(row["verdict"] == "taken" for row in rows) <= 1
    again = reconv("plan", "plan.json", "--explain", "3", "--format", "csv")
    assert again.stdout == shown.stdout
    reconv("rewrite", *MODEL, *DATA, "--plan", "plan.json", "--epochs", 0, "-o", "run")
    assert reconv("plan", "run", "--explain", "3", "--format", "csv").stdout == shown.stdout
    wrong = reconv("plan", "plan.json", "--explain", "4", status=1)
    assert "must be one for which proposals were considered; got site=4. There are 0, 3" in wrong.stderr


def test_a_plan_that_a_person_edited_is_carried_out(here):
    reconv("plan", *JOB)
    data = json.loads(Path("plan.json").read_text())
    data["edits"] = [{"site": "3", "rule": "separable", "block": "ic8oc8k5x5p2g8nb -> ic8oc12k1x1"}]
    Path("mine.json").write_text(json.dumps(data))
    shown = reconv("rewrite", *MODEL, *DATA, "--plan", "mine.json", "--epochs", 0, "-o", "run")
    assert "the budget macs=0.6 is" in shown.stderr
    assert [(e.site, e.rule) for e in Plan.load("run/plan.json").edits] == [("3", "separable")]
    assert read_config("run")["settings"]["plan"] == "mine.json"
    student = load("run", build_model("net.py:make"))
    assert student(torch.zeros(2, 3, 9, 7)).shape == (2, 5)


def test_wishes_of_a_plan_hold_when_it_is_made_again(here):
    forced = {"site": "3", "rule": "separable", "block": "ic8oc8k5x5p2g8nb -> ic8oc12k1x1"}
    Path("wishes.json").write_text(json.dumps({"force": [forced], "forbid": [{"site": "0", "rule": "*"}]}))
    reconv("plan", *JOB, "--wishes", "wishes.json", "-o", "first.json")
    first = Plan.load("first.json")
    assert [str(e.block) for e in first.edits if e.site == "3"][:1] == [forced["block"]]
    assert not [e for e in first.edits if e.site == "0"]
    reconv("plan", *JOB, "--wishes", "first.json", "-o", "second.json")
    assert Plan.load("second.json").wishes == first.wishes


def test_a_front_is_a_folder_of_plans_and_a_picture(here):
    shown = reconv("rewrite", *JOB, "--front", 3, "--epochs", 0, "--evaluate", "net.py:score", "-o", "run")
    front = sorted(Path("run/front").glob("*.json"))
    assert 1 <= len(front) <= 3
    assert [Plan.load(path).measured.score for path in front] == [0.5] * len(front)
    assert Path("run/front/front.svg").read_text().startswith("<svg")
    several = len(Plan.load("run/plan.json").front) > 1  # by the clock one network may beat all others
    assert ("<h2>The trade-off</h2>" in Path("run/report.html").read_text()) == several
    assert "the budget macs=0.6 is" in shown.stderr
    reconv("plan", *JOB, "--front", 2, "-o", "deep/p.json")
    assert (here / "deep/p-front/1.json").is_file()


@pytest.mark.parametrize("size, message", [(1 << 50, "Error: the job must fit in memory"), (-1, None)])
def test_a_job_that_does_not_fit_in_memory_says_so(here, monkeypatch, size, message):
    """For which torch has but a RuntimeError; any other one is ours, and shows where it was raised."""
    monkeypatch.setattr("reconv.planning.make.plan", lambda *_, **__: torch.empty(size))
    result = CliRunner().invoke(app, ["plan", *JOB])
    assert (message in result.stderr) if message else isinstance(result.exception, RuntimeError)
    assert result.exit_code == 1
