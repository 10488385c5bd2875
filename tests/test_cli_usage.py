"""Flags and configuration files: wrong ones are status 2, failures one line and status 1, and nothing is written."""

import numpy as np
import pytest
import torch
from commanded import DATA, MODEL, reconv
from harmful import Bomb

from reconv.rewriting.store import read_config

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
    torch.save({"0.weight": Bomb(here)}, "w.pt")
    (here / "ran").unlink(missing_ok=True)
    assert "no code" in reconv("summary", *MODEL, "--weights", "w.pt", status=1).stderr
    assert not (here / "ran").exists()
