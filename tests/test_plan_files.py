"""Plans are kept as JSON, also those that people write; a malformed one says which part is wrong."""

from __future__ import annotations

import json

import pytest
from messages import told
from planned import IMAGE, network

from reconv import apply
from reconv.errors import ConvError
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.spec import parse

PLAN = Plan(
    edits=(
        Edit("a.0", "separable", parse("ic4oc4k3x3p1g4nb -> ic4oc8k1x1"), 0.125, 0.5),
        Edit("a.0", "fold_batch_norm", parse("ic4oc4k3x3p1g4nb -> ic4oc8k1x1"), 0.0, None, ("a.1",)),
        Edit("a.0", "fuse_activation", parse("ic4oc4k3x3p1g4nb -> ic4oc8k1x1 -> relu"), 0.0, None, ("a.2",)),
    ),
    refusals=(Refusal("b", "*", "functional"), Refusal("a.0", "bottleneck", "too small")),
    model={"ref": "timm:resnet18", "hash": "abc"}, budget="latency=0.5", target="torch", layout="channels_last",
    met=False, reason="latency: asked for 0.5, reached 0.7", latency_ratio=0.7,
)  # fmt: skip


@pytest.mark.parametrize("made", [Plan(), PLAN], ids=["empty", "full"])
def test_plans_come_back_from_json(tmp_path, made):
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data == made.to_dict()
    assert (data["format"], set(data)) == (1, {"format", "model", "budget", "target", "layout", "met", "reason",
                                               "latency_ratio", "fit", "wishes", "measured", "edits", "refusals",
                                               "front", "considered"})  # fmt: skip


def test_a_plan_written_by_hand_may_be_short():
    made = Plan.from_dict({"format": 1, "edits": [{"site": "a", "rule": "r", "block": "ic3oc4k1x1"}]})
    assert made == Plan((Edit("a", "r", parse("ic3oc4k1x1")),))


GOOD_EDIT = {"site": "a", "rule": "r", "block": "ic3oc4k1x1"}


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "a plan is a JSON object; got type=list"),
        ({}, "format must be 1; got format=None"),
        ({"format": 2}, "format must be 1; got format=2"),
        ({"format": 1, "layout": "rows"}, "layout must be one of contiguous, channels_last; got layout=rows"),
        ({"format": 1, "layout": 3}, "layout must be str"),
        ({"format": 1, "edits": 3}, "edits must be list; got edits=3"),
        ({"format": 1, "edits": None}, "edits must be list"),
        ({"format": 1, "edits": {"a": 1}}, "edits must be list"),
        ({"format": 1, "refusals": "none"}, "refusals must be list"),
        ({"format": 1, "met": "no"}, "met must be bool; got met='no'"),
        ({"format": 1, "model": [1]}, "model must be dict"),
        ({"format": 1, "budget": 0.5}, "budget must be str or null"),
        ({"format": 1, "target": None}, "target must be str"),
        ({"format": 1, "latency_ratio": "0.5"}, "latency_ratio must be int or float or null"),
        ({"format": 1, "edits": [GOOD_EDIT, 7]}, r"edits\[1\] must have its fields"),
        ({"format": 1, "edits": [{"site": "a", "rule": "r"}]}, r"edits\[0\] .*KeyError\('block'\)"),
        ({"format": 1, "edits": [GOOD_EDIT | {"block": "ic3oc4k1x1 ->"}]}, r"edits\[0\] must be readable"),
        ({"format": 1, "edits": [GOOD_EDIT | {"block": 3}]}, r"edits\[0\]"),
        ({"format": 1, "edits": [GOOD_EDIT | {"error": "much"}]}, r"edits\[0\] must have its fields"),
        ({"format": 1, "edits": [GOOD_EDIT | {"absorbs": "bn"}]}, r"edits\[0\] .*absorbs must be a list"),
        ({"format": 1, "refusals": [{"site": "a"}]}, r"refusals\[0\] .*KeyError\('rule'\)"),
    ],
)
def test_malformed_plans_say_which_part_is_wrong(tmp_path, data, message):
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ConvError, match=message) as caught:
        Plan.load(tmp_path / "plan.json")
    assert isinstance(caught.value, ValueError)
    told(str(caught.value).replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04", None])
def test_files_that_hold_no_json_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConvError, match=r"must hold a plan as JSON; got path=.*plan\.json"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("site, rule, whole", [
    ("3", "nonesuch", False), ("9", "separable", True), ("none", "separable", True), ("none", "separable", False),
])  # fmt: skip
def test_plans_that_do_not_fit_the_network_are_said(site, rule, whole):
    with pytest.raises(ConvError, match=r"^apply: ") as caught:
        apply(network(), Plan((Edit(site, rule, parse("ic16oc16k5x5p2"), whole=whole),)), IMAGE)
    told(caught.value)


def test_what_lies_in_a_rewritten_module_means_something_else():
    edits = [Edit(name, "r", parse("ic3oc4k1x1"), whole=name == "a") for name in ("a", "a.b", "ab", "")]
    assert Plan(tuple(edits)).matches == ["a", "ab"]
