"""A plan's edits in parts, and where the events of a run go."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from test_interrupted import DATA, IMAGE, JOB, handmade, network

from reconv.errors import ConvError
from reconv.planning.plan import Edit, Plan
from reconv.rewriting import job
from reconv.rewriting.job import rewrite
from reconv.rewriting.logs import logger
from reconv.rewriting.stages import check_stages, parts_of
from reconv.rewriting.store import load
from reconv.spec import parse


def edit(site: str, error: float | None = 0.1, also: str = "", absorbs: str = "") -> Edit:
    return Edit(site, "separable", parse("ic4oc4k3"), error, absorbs=tuple(absorbs.split()),
                also=tuple((name, "norm(4)") for name in also.split()))  # fmt: skip


PARTS = {
    "one": (1, [edit("a", 0.3), edit("b", 0.1)], ["a b"]),
    "the cheapest first, each in the plan's order": (
        2, [edit("a", 0.3), edit("b", 0.1), edit("c", 0.4), edit("d", 0.2)], ["b d", "a c"]),
    "the later ones are larger": (2, [edit("a", 0.3), edit("b", 0.1), edit("c", 0.4)], ["b", "a c"]),
    "an unknown error is none": (2, [edit("a", 0.3), edit("b", None)], ["b", "a"]),
    "no more than there are": (5, [edit("a", 0.3), edit("b", 0.1)], ["b", "a"]),
    "nothing": (3, [], []),
    "two of one site": (2, [edit("a", 0.1), edit("b", 0.15), edit("a", 0.1)], ["b", "a a"]),
    "of a common module": (2, [edit("a", 0.1, also="n m"), edit("b", 0.15), edit("c", 0.1, also="m")], ["b", "a c"]),
    "by a third": (3, [edit("a", also="n"), edit("b", also="m"), edit("c", also="n m"), edit("d")], ["d", "a b c"]),
    "of a module that another changes": (2, [edit("a", also="c"), edit("b", 0.15), edit("c")], ["b", "a c"]),
    "of one that is absorbed": (2, [edit("a", absorbs="n"), edit("b", 0.15), edit("c", also="n")], ["b", "a c"]),
    "within another": (2, [edit("a", also="c.1"), edit("b", 0.15), edit("c")], ["b", "a c"]),
    "names that only begin alike": (2, [edit("a.1", 0.2), edit("a.10", 0.1)], ["a.10", "a.1"]),
}  # fmt: skip


@pytest.mark.parametrize("stages, edits, expected", PARTS.values(), ids=PARTS)
def test_parts(stages, edits, expected):
    assert [" ".join(e.site for e in part) for part in parts_of(edits, stages)] == expected


@pytest.mark.parametrize("stages, epochs, data", [(0, 3, DATA), (-1, 3, DATA), (4, 3, DATA), (2, 3, None)])
def test_wrong_stages(stages, epochs, data):
    with pytest.raises(ConvError, match=f"rewrite: stages must be between 1 and epochs.*got stages={stages}, epochs"):
        check_stages(stages, epochs, data)
    with pytest.raises(ConvError, match="stages must be"):
        rewrite(network(), IMAGE, data=data, epochs=epochs, stages=stages)


@pytest.mark.parametrize(
    "wrong, message", [({"precision": "half"}, "precision must be one of"), ({"ema": 2.0}, "ema must be at least"),
                       ({"log": "wandb"}, "log must be one of json, tensorboard; got log='wandb'")]
)  # fmt: skip
def test_wrong_ways_to_recover_are_said_before_planning(wrong, message, monkeypatch):
    monkeypatch.setattr(job, "make", lambda *args, **options: pytest.fail("it was planned"))
    with pytest.raises(ConvError, match=message):
        rewrite(network(), IMAGE, data=DATA, **wrong)


SHARES = [(1, [(None, [0, 1, 2, 3])]), (2, [(1, [0, 1]), (2, [0, 1, 2])]), (3, [(1, [0, 1]), (2, [0, 1, 2])])]


@pytest.mark.parametrize("stages, expected", SHARES)
def test_each_stage_has_its_share_of_the_epochs(tmp_path, monkeypatch, stages, expected):
    monkeypatch.setattr(job, "make", handmade)
    result = rewrite(network(), IMAGE, **JOB | {"epochs": 3, "stages": stages}, out=tmp_path)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seen = [(number, [e["epoch"] for e in events if e.get("stage") == number]) for number, _ in expected]
    assert seen == expected
    assert len(events) == sum(len(epochs) for _, epochs in expected)
    assert [e.site for e in result.plan.edits] == ["3", "5", "0"]
    assert result.scores == (0.0, max(event["value"] for event in events))
    assert torch.equal(load(tmp_path, base=network)(DATA), result.model(DATA))
    assert Plan.load(tmp_path / "checkpoint" / "plan.json").edits == result.plan.edits


def test_a_later_stage_keeps_what_an_earlier_one_learned(tmp_path, monkeypatch):
    """What the second stage begins with is the recovered network with the second part, not the first one's start."""
    monkeypatch.setattr(job, "make", handmade)
    rewrite(network(), IMAGE, **JOB, out=tmp_path)
    first = torch.load(tmp_path / "checkpoint/stage1/recovery.pt")
    second = torch.load(tmp_path / "checkpoint/stage2/recovery.pt")
    assert "3.weight" in first["student"]
    assert "3.weight" not in second["student"]
    assert second["best"][0] > first["best"][0] > 0


# logs -------------------------------------------------------------------------------------------


def drawn(folder) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a folder of TensorBoard's: records of length, check sum, event, check sum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_the_numbers_of_each_epoch(tmp_path):
    log = logger(tmp_path, "tensorboard")
    events = [{"event": "recover", "epoch": 0, "distance": 0.5, "stage": 1},
              {"event": "recover", "epoch": 1, "distance": 0.25, "loss": 2.0, "gained": True},
              {"event": "stopped", "epoch": 2, "reason": "the loss is not finite"}]  # fmt: skip
    for event in events:
        log(event)
    assert drawn(tmp_path / "tensorboard") == {
        "stage1/distance": [(0, 0.5)],
        "distance": [(1, 0.25)],
        "loss": [(1, 2.0)],
    }
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == events


def test_a_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ConvError, match=r"tensorboardX must be installed.*pip install 'reconv\[tensorboard\]'"):
        logger(tmp_path, "tensorboard")
    assert logger(tmp_path) is not None
    assert logger(None, "tensorboard") is None
