"""A run folder is read as it was written and its page written anew; of a broken one the file is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from commanded import reconv
from reported import DATA, INPUT, Checked, net, run_folder

from reconv.costing.render import as_dict, from_dict
from reconv.costing.summary import summary
from reconv.errors import ConvError
from reconv.rewriting.store import read_run, weights_hash


def test_a_summary_is_read_as_it_was_written():
    known = summary(net(), INPUT)
    timed = replace(known.rows[0], latency_ms=0.5, latency_spread_ms=0.25, receptive_field=None)
    for each in (known, replace(known, rows=(timed, known.rows[1]), target="torch:1")):
        again = from_dict(json.loads(json.dumps(as_dict(each))))
        assert again == each
        assert again.network.states == each.network.states


def test_a_run_is_read_as_it_was_written(tmp_path):
    made = run_folder(tmp_path)
    held = read_run(tmp_path)
    assert held.plan == made
    assert held.error == 0.5
    assert held.before == summary(net(), INPUT)


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("plan.json", "{"),
        ("plan.json", '{"format": 1, "edits": [{}]}'),
        ("summary.json", ""),
        ("summary.json", "{}"),
        ("summary.json", '{"format": 1, "before": {"rows": [{}]}, "after": null, "error": null}'),
        ("summary.json", '{"format": 1, "before": null, "after": null, "error": "much"}'),
        ("summary.json", None),
        ("plan.json", None),
        ("model.safetensors", "{"),
    ],
)
def test_of_a_broken_run_the_file_is_named(here, file, content):
    run_folder(here / "run")
    (here / "run" / "report.html").write_text("old")
    path = here / "run" / file
    path.unlink() if content is None else path.write_text(content)
    said = reconv("report", "run", "--trust-code", status=1).stderr
    assert file in said
    assert (here / "run" / "report.html").read_text() == "old"


def test_the_command_writes_the_page_anew(here):
    run_folder(here / "run", weights_hash=weights_hash(net()))
    said = reconv("report", "run").stderr
    path = here / "run" / "report.html"
    assert "--trust-code" in said
    assert "Not shown: what the layers give and see" in Checked(path.read_text()).text
    reconv("report", "run", "--trust-code", "--data", "net.py:data", "--evaluate", "net.py:score")
    found = Checked(path.read_text())
    assert "score alone" in found.text
    assert "4 samples: samples held out of the data." in found.text
    assert len(found.images) == 8
    reconv("report", "run", "--base", "net.py:make", "--input", "2x3x9x7")
    assert "1 sample: the example inputs." in Checked(path.read_text()).text


@pytest.mark.parametrize(
    "flags, status, words",
    [
        (["nowhere"], 2, "must be a run folder"),
        (["run", "--base", "nonsense"], 2, "--base"),
        (["run", "--holdout", "2"], 2, "--holdout"),
        (["run", "--base", "net.py:flat"], 1, "must be the network that the run began with"),
        (["run", "--data", "net.py:data"], 1, "--trust-code"),
        (["run", "--mean", "0.5"], 2, "--mean"),
    ],
)
def test_mistakes_of_the_command(here, flags, status, words):
    run_folder(here / "run", weights_hash="another")
    assert words in reconv("report", *flags, status=status).stderr


def test_code_that_the_run_names_is_not_run(here):
    run_folder(here / "run")
    (here / "net.py").write_text((here / "net.py").read_text() + "\ndef spoil():\n    pathlib.Path('ran').touch()\n")
    config = json.loads((here / "run" / "config.json").read_text())
    config["settings"] |= {"data": "net.py:spoil"}
    (here / "run" / "config.json").write_text(json.dumps(config))
    (here / "net.py:spoil").touch()
    reconv("report", "run", "--base", "net.py:make")
    assert not (here / "ran").exists()
    reconv("report", "run", "--base", "net.py:make", "--trust-code", status=1)
    assert (here / "ran").exists()


def test_data_of_the_run_are_taken_again(here):
    run_folder(here / "run")
    np.savez(here / "data.npz", x=DATA.numpy())
    config = json.loads((here / "run" / "config.json").read_text())
    config["settings"] |= {"data": "data.npz", "holdout": 0.5, "seed": 3}
    (here / "run" / "config.json").write_text(json.dumps(config))
    reconv("report", "run", "--base", "net.py:make")
    assert "6 samples: samples held out of the data" in Checked((here / "run" / "report.html").read_text()).text
    reconv("report", "run", "--base", "net.py:make", "--holdout", "0.25")
    assert "3 samples: samples held out of the data" in Checked((here / "run" / "report.html").read_text()).text


def test_nothing_of_the_page_is_wrong_usage_of_a_broken_summary():
    with pytest.raises((KeyError, TypeError, ValueError, ConvError)):
        from_dict({"rows": [], "total": {}, "network": {}, "target": None})
