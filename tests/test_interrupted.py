"""A run that was killed or stopped at any moment: what stands, and that it ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recovering
import torch
from fakes import FakeTarget, grid
from recovering import apart, moved, network, same, student, teacher
from torch import nn

from reconv.planning.plan import Edit, Plan
from reconv.rewriting import job, training
from reconv.rewriting.job import rewrite
from reconv.rewriting.recovery import Stopped, recover
from reconv.rewriting.store import load, read_config
from reconv.ruleset import rule_named
from reconv.surgery import find_sites

pytestmark = pytest.mark.usefixtures("one_thread")


KILLS = {  # five steps an epoch, three epochs
    "before any checkpoint but the first": (3, {"seconds": 30.0}),
    "within an epoch": (8, {"seconds": 0.0, "ema": 0.8}),
    "between the last step of an epoch and its judge, augmented data": (8, {"seconds": 0.0, "shaken": True}),
    "in the last epoch, bfloat16": (13, {"seconds": 0.0, "precision": "bfloat16", "ema": 0.8}),
}


@pytest.mark.parametrize("stop_at, asked", KILLS.values(), ids=KILLS)
def test_killed_and_resumed_is_as_if_never_killed(tmp_path, stop_at, asked):
    killed = subprocess.run([sys.executable, recovering.__file__, tmp_path, json.dumps({**asked, "stop_at": stop_at})],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(tmp_path / "recovery.pt")
    steps = 4 if "shaken" in asked else 5
    expected = (stop_at // steps, stop_at % steps) if asked["seconds"] == 0 else (0, 0)
    assert (kept["done"], kept["step"]) in (expected, (expected[0] - 1, steps))
    asked = {name: value for name, value in asked.items() if name != "seconds"}
    resumed = recovering.run(tmp_path, {**asked, "resume": True})
    whole = recovering.run(None, asked)
    assert resumed.steps[0] == (stop_at + 1 if expected != (0, 0) else 1)
    assert same(resumed.state, whole.state)
    assert resumed.log[-1]["distance"] == whole.log[-1]["distance"]


def test_the_users_own_generator_of_a_loader_goes_on_too(tmp_path):
    """A new process has it as it was at the beginning."""

    def loader():
        return torch.utils.data.DataLoader(recovering.samples(), 8, shuffle=True,
                                           generator=torch.Generator().manual_seed(3))  # fmt: skip

    def stops(entry: dict) -> None:
        if entry["epoch"] == 2:
            raise RuntimeError

    whole = recover(student(), teacher(), loader(), **recovering.SETTINGS)
    with pytest.raises(RuntimeError):
        recover(student(), teacher(), loader(), **recovering.SETTINGS, checkpoint=tmp_path, log=stops)
    resumed = recover(student(), teacher(), loader(), **recovering.SETTINGS, checkpoint=tmp_path, resume=True)
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("stop_at, epoch", [(1, 0), (7, 1), (14, 2)])
def test_ctrl_c_brings_the_best_so_far(stop_at, epoch):
    log: list[dict] = []

    def progress(what: str, done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    begun = student().train()
    with pytest.raises(KeyboardInterrupt) as caught:
        recover(begun, teacher(), recovering.samples(), **recovering.SETTINGS, progress=progress, log=log.append)
    stop = caught.value
    assert isinstance(stop, Stopped)
    assert log[-1]["epoch"] == epoch
    best = min(entry["distance"] for entry in log)
    assert stop.distance <= best  # batch norms re-estimated before the first epoch are no entry of the log
    assert epoch == 0 or stop.distance == best
    assert all(module.training for module in stop.model.modules())
    assert apart(stop.model.eval(), teacher()) <= apart(student(), teacher())
    assert same(begun.state_dict(), student().state_dict())


def test_ctrl_c_before_there_is_anything_is_just_that():
    def evaluate(net: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        recover(student(), teacher(), recovering.samples(), **recovering.SETTINGS, evaluate=evaluate)
    assert not isinstance(caught.value, Stopped)


def test_a_checkpoint_takes_little_of_the_time(tmp_path, monkeypatch):
    """One that took two seconds is followed by the next after forty."""
    clock = iter([0.0, 0.0, 2.0, *[2.0 + 3 * second for second in range(1, 60)]])
    monkeypatch.setattr(training, "SECONDS", 5.0)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    written: list[int] = []
    monkeypatch.setattr(training, "write_checkpoint", lambda folder, state: written.append(state["step"]))
    recover(student(), teacher(), recovering.samples(300), **recovering.SETTINGS | {"epochs": 1}, checkpoint=tmp_path)
    assert written[:2] == [0, 14]


# the whole job, in stages ------------------------------------------------------------------------

IMAGE = grid(1, 3, 9, 8)
MADE = torch.Generator().manual_seed(7)
DATA = 2 * torch.randn(130, 3, 1, 1, generator=MADE) + torch.randn(130, 3, 9, 8, generator=MADE)  # four steps an epoch


JOB = {
    "evaluate": moved,
    "data": DATA,
    "target": FakeTarget(),
    "budget": "macs=0.9",
    "epochs": 4,
    "stages": 2,
    "seed": 3,
}


def handmade(*args: object, **options: object) -> Plan:
    """In the place of planning: both larger convolutions, the later one being the cheaper, and a folded norm."""
    rule, folds = rule_named("bottleneck"), rule_named("fold_batch_norm")
    sites = {site.name: site for site in find_sites(network(), (IMAGE,)).sites}
    edits = [Edit(name, rule.name, next(iter(rule.propose(sites[name]))).block, error)
             for name, error in (("3", 0.3), ("5", 0.1))]  # fmt: skip
    fold = next(iter(folds.propose(sites["0"])))
    return Plan((*edits, Edit("0", folds.name, fold.block, 0.0, absorbs=fold.absorbs)), target="fake")


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(job, "make", handmade)


def stopping(step: int, kind: type[BaseException]):
    """A progress that raises at some step of all stages."""
    seen = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == step:
            raise kind

    return progress


class KilledError(Exception):
    """In the place of a kill, after which nothing is put in order."""


@pytest.mark.parametrize("step, sites", [(3, ["5"]), (15, ["3", "5", "0"])])
def test_ctrl_c_in_any_stage_leaves_a_run_folder(tmp_path, planned, step, sites):
    whole = rewrite(network(), IMAGE, **JOB)
    with pytest.raises(Stopped) as caught:
        rewrite(network(), IMAGE, **JOB, out=tmp_path, progress=stopping(step, KeyboardInterrupt))
    assert read_config(tmp_path)["stopped"]
    assert [edit.site for edit in Plan.load(tmp_path / "plan.json").edits] == sites
    held = json.loads((tmp_path / "summary.json").read_text())
    assert held["error"] == caught.value.distance
    assert held["after"]["network"]["latency_ms"]["value"] is None
    assert torch.equal(load(tmp_path, base=network)(DATA), caught.value.model(DATA))
    resumed = rewrite(network(), IMAGE, **JOB, out=tmp_path, resume=True)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert "stopped" not in read_config(tmp_path)
    assert load(tmp_path, base=network)(DATA).equal(resumed.model(DATA))


@pytest.mark.parametrize("step", [2, 6, 12, 17])
def test_killed_in_any_stage_and_resumed(tmp_path, planned, step, monkeypatch):
    whole = rewrite(network(), IMAGE, **JOB)
    monkeypatch.setattr(training, "SECONDS", 0.0)
    monkeypatch.setattr(training, "SHARE", 1e9)
    with pytest.raises(KilledError):
        rewrite(network(), IMAGE, **JOB, out=tmp_path, progress=stopping(step, KilledError))
    monkeypatch.setattr(job, "make", lambda *args, **options: pytest.fail("planned again"))
    resumed = rewrite(network(), IMAGE, **JOB, out=tmp_path, resume=True)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_what_another_run_left_is_not_gone_on_with(tmp_path, planned):
    rewrite(network(), IMAGE, **JOB, out=tmp_path)
    with pytest.raises(KilledError):
        rewrite(network(), IMAGE, **JOB | {"seed": 4}, out=tmp_path, progress=stopping(1, KilledError))
    kept = sorted(path.relative_to(tmp_path) for path in (tmp_path / "checkpoint").rglob("*.pt"))
    assert kept == [Path("checkpoint/stage1/recovery.pt")]
    assert torch.load(tmp_path / kept[0])["settings"]["seed"] == 4
