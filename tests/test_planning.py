"""Budgets are read, plans are kept, the best choice is found; and a plan holds what it says."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from counted import memory
from fakes import FakeTarget, grid
from hypothesis import given
from hypothesis import strategies as st
from planned import DATA, IMAGE, network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reconv.costing.summary import summary
from reconv.data import Batch
from reconv.errors import ConvError
from reconv.layers import ChainLayer
from reconv.planning import table
from reconv.planning.budget import Budget, Limit
from reconv.planning.candidates import Candidate
from reconv.planning.make import plan
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.planning.probe import Prefix, Probe, standing_in
from reconv.planning.search import beyond, cheapest, choose
from reconv.planning.table import _spread, _worth_fitting
from reconv.planning.together import beyond_sums
from reconv.rewriting.apply import apply
from reconv.ruleset import Separable, rules_named
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import convs, parse
from reconv.surgery import find_sites
from reconv.surgery.clone import clone
from reconv.surgery.norms import reestimate
from reconv.surgery.outputs import distance
from reconv.surgery.sites import chosen

# budgets -----------------------------------------------------------------------------------------


def fraction(value: float) -> Limit:
    return Limit(value, absolute=False)


def amount(value: float) -> Limit:
    return Limit(value, absolute=True)


@pytest.mark.parametrize(
    "text, limits",
    [
        ("latency=0.4", {"latency": fraction(0.4)}),
        ("latency=1", {"latency": fraction(1.0)}),
        ("latency=.5", {"latency": fraction(0.5)}),
        ("latency=5e-1", {"latency": fraction(0.5)}),
        ("latency=12ms", {"latency": amount(12.0)}),
        ("latency=300us", {"latency": amount(0.3)}),
        ("latency=1.5 s", {"latency": amount(1500.0)}),
        ("macs=1.2G", {"macs": amount(1.2e9)}),
        ("params=50M", {"params": amount(5e7)}),
        ("params=0.5K", {"params": amount(500.0)}),
        ("memory=64MiB", {"memory": amount(2.0**26)}),
        ("memory=64MB", {"memory": amount(64e6)}),
        ("error=0.05", {"error": amount(0.05)}),
        (" latency = 0.4 , params = 2M ", {"latency": fraction(0.4), "params": amount(2e6)}),
        ({"latency": 0.4, "memory": "3KiB"}, {"latency": fraction(0.4), "memory": amount(3072.0)}),
        ({"error": 1e-05}, {"error": amount(1e-5)}),
        (None, {}),
        ({}, {}),
        (Budget({"error": amount(1.0)}), {"error": amount(1.0)}),
    ],
)
def test_budgets_are_read(text, limits):
    budget = Budget.of(text)
    assert budget.limits.keys() == limits.keys()
    for name, limit in budget.limits.items():
        assert (limit.value, limit.absolute) == (pytest.approx(limits[name].value), limits[name].absolute)
    assert bool(budget) == bool(limits)
    assert budget.only_error == (list(limits) == ["error"])


@pytest.mark.parametrize(
    "text",
    ["", "latency", "latency=", "=0.5", "latency=0", "latency=1.01", "latency=-0.5", "latency=2", "latency=nan",
     "latency=inf", "latency=12MB", "latency=12 parsecs", "macs=1ms", "macs=2e9", "error=2", "error=5%", "error=1ms",
     "latency=1e999", "latency=1e999ms", "latency=0ms", "latency=0.0us", "latency=1e-999s", "macs=0", "macs=-1G",
     "params=1e400M", "memory=0B", "latency=0.5,latency=12ms", "error=0", "error=0.0", "error=-0.1", "error=1e999",
     {"latency": float("inf")}, {"latency": float("nan")}, {"error": 0},
     "flops=0.5", "Latency=0.5", "latency=0.5,", "latency=0.5,latency=0.4", "latency=0.5;params=0.5", "latency=0.5ms2",
     "latency=0x1", 0.5, 5, ["latency=0.5"], {"latency": None}, {"latency": True}],
)  # fmt: skip
def test_wrong_budgets_show_the_grammar(text):
    with pytest.raises(ConvError, match=r"^budget: .*; got budget=.*NAME=VALUE") as caught:
        Budget.of(text)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("limit, bound", [(fraction(0.25), 2.0), (amount(3.0), 3.0)])
def test_a_limit_is_of_now_or_absolute(limit, bound):
    assert limit.amount(8.0) == bound


# plans as text -----------------------------------------------------------------------------------

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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04", None])
def test_files_that_hold_no_json_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConvError, match=r"must hold a plan as JSON; got path=.*plan\.json"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "name, patterns, wanted",
    [("a.conv1", "*", True), ("a.conv1", "b.*", False), ("a.conv1", "b.*, a.*", True), ("", "*", True),
     ("a.conv1", ["b", "a.conv?"], True), ("A.conv1", "a.*", False), ("a.conv1", "a", False)],
)  # fmt: skip
def test_sites_by_pattern(name, patterns, wanted):
    assert chosen(name, patterns) == wanted


# the choice --------------------------------------------------------------------------------------

COSTS = ("latency", "macs", "params", "weight_bytes", "peak_bytes")
LIMITS = ("latency", "macs", "params", "memory", "error")
EDIT = Edit("site", "rule", parse("ic1oc1k1x1"))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Candidate]]:
    """Up to three sites of up to four candidates: costs are small integers, errors sixteenths."""
    number = st.integers(0, 9)
    table = {}
    for site in "abc"[: draw(st.integers(1, 3))]:
        rows = [Candidate(site, None, {name: float(draw(number)) for name in COSTS})]
        for _ in range(draw(st.integers(0, 3))):
            costs = {name: float(draw(number)) for name in COSTS}
            rows.append(Candidate(site, EDIT, costs, draw(st.integers(1, 16)) / 16))
        table[site] = rows
    return table


def sums(choice: Any, elsewhere: float) -> dict[str, float]:
    total = {name: sum(c.costs[name] for c in choice) for name in COSTS}
    total["memory"] = total["weight_bytes"] + max(elsewhere, *(c.costs["peak_bytes"] for c in choice))
    return total | {"error": sum(c.error**2 for c in choice) ** 0.5}


@given(table=tables(), bounds=st.dictionaries(st.sampled_from(LIMITS), st.integers(0, 20)),
       goal=st.sampled_from(("error", "latency")), every=st.booleans(), elsewhere=st.integers(0, 9))  # fmt: skip
def test_the_choice_is_the_best_of_all(table, bounds, goal, every, elsewhere):
    limits = {name: bound / 16 if name == "error" else bound + 0.5 for name, bound in bounds.items()}
    feasible = [c for c in itertools.product(*table.values())
                if all(sums(c, elsewhere)[n] <= limits[n] + 1e-9 for n in limits)]  # fmt: skip
    found = choose(table, limits, goal, every, elsewhere=elsewhere)
    if not feasible:
        assert found is None
        return
    assert list(found) == list(table)
    assert all(found[site] in table[site] for site in table)
    mine = list(found.values())
    assert all(sums(mine, elsewhere)[name] <= limits[name] + 1e-6 for name in limits)

    def rank(choice: Any) -> tuple[int, float]:
        spent = sums(choice, elsewhere)
        kept = sum(c.edit is None for c in choice) if every else 0
        return kept, spent["error"] ** 2 if goal == "error" else spent["latency"]

    best = min(map(rank, feasible))
    assert rank(mine)[0] == best[0]
    assert rank(mine)[1] == pytest.approx(best[1], abs=2e-5 * 16)


def test_ties_of_the_goal_go_to_the_faster():
    rows = [Candidate("a", None, {"latency": 5.0}, 0.0), Candidate("a", EDIT, {"latency": 3.0}, 0.0)]
    assert choose({"a": rows}, {})["a"].latency_ms == 3.0


def test_nothing_to_choose_from():
    assert choose({}, {"latency": 1.0}) == {}


def _pruned(site: str, reader: str, out: int, read: int) -> Edit:
    also = ((reader, f"ic{out}oc{read}k3p1"),)
    return Edit(site, "prune_channels", parse(f"ic8oc{out}k3p1"), 0.1, 1.0, also=also)


PRUNED = {"a": _pruned("a", "b", 4, 8), "b": _pruned("b", "c", 4, 8), "c": _pruned("c", "d", 4, 8)}


def _macs(name: str, text: str) -> dict[str, float]:
    return dict.fromkeys(COSTS, float(parse(text).in_channels * parse(text).out_channels))


def test_edits_that_share_a_module_say_what_the_sum_does_not():
    apart = beyond_sums(PRUNED.values(), lambda name: "ic8oc8k3p1", _macs)
    # half of the inputs and half of the outputs of 64 leave 16, where each alone takes 32 off
    assert apart == {(PRUNED["a"], PRUNED["b"]): dict.fromkeys(COSTS, 16.0),
                     (PRUNED["b"], PRUNED["c"]): dict.fromkeys(COSTS, 16.0)}  # fmt: skip


@pytest.mark.parametrize("limit, taken", [(192, ""), (128, "a"), (96, "ac"), (80, "ab"), (64, "abc"), (63, None)])
def test_a_choice_counts_what_edits_share(limit, taken):
    # 64 a site; an edit takes 32 off its own and 32 off the next one, which give back 16 where both do
    now = dict.fromkeys(COSTS, 64.0)
    halved = {"a": (0.0, 0.1), "b": (0.0, 0.3), "c": (32.0, 0.2)}
    table = {n: [Candidate(n, None, now), Candidate(n, PRUNED[n], dict.fromkeys(COSTS, cost), error)]
             for n, (cost, error) in halved.items()}  # fmt: skip
    pairs = (("a", "b"), ("b", "c"))
    apart = {(PRUNED[x], PRUNED[y]): dict.fromkeys(COSTS, 16.0) for x, y in pairs}
    found = choose(table, {"latency": limit}, apart=apart)
    assert taken == (None if found is None else "".join(n for n, c in found.items() if c.edit))
    if found is not None:
        spent = sum(c.latency_ms for c in found.values()) + beyond(found, apart).get("latency", 0.0)
        assert spent <= limit
    least = cheapest(table, ["latency"], apart)
    assert [c.edit is not None for c in least.values()] == [True, True, True]


def test_the_cheapest_leaves_out_what_others_made_worthless():
    now = dict.fromkeys(COSTS, 64.0)
    table = {n: [Candidate(n, None, now), Candidate(n, PRUNED[n], dict.fromkeys(COSTS, 40.0))] for n in "ab"}
    apart = {(PRUNED["a"], PRUNED["b"]): dict.fromkeys(COSTS, 30.0)}
    assert [c.edit is not None for c in cheapest(table, ["latency"], apart).values()] == [True, False]


def test_the_cheapest_is_relative_to_each_site():
    rows = [
        Candidate("a", None, {"latency": 10.0, "params": 1.0}),
        Candidate("a", EDIT, {"latency": 5.0, "params": 2.0}),
        Candidate("a", EDIT, {"latency": 9.0, "params": 0.5}, 0.5),
    ]
    assert cheapest({"a": rows}, ["latency"])["a"] is rows[1]
    assert cheapest({"a": rows}, ["latency", "params"])["a"] is rows[2]


def test_the_cheapest_in_memory_weighs_weights_and_peaks_alike():
    held = ((4.0, 8.0), (1.0, 12.0), (3.0, 8.0), (9.0, 3.0))
    rows = [Candidate("a", EDIT, {"weight_bytes": w, "peak_bytes": p}) for w, p in held]
    assert cheapest({"a": rows}, ["memory"])["a"] is rows[2]


# probes ------------------------------------------------------------------------------------------


class Winding(nn.Module):
    """A layer used twice, one run by its `forward`, a branch, a functional convolution, writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Conv2d(5, 2, 3)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Any) -> Any:
        y = F.conv2d(self.twice(self.first(x).relu_()).mul_(2), self.kernel)
        y = self.twice(y).relu_()
        return self.last(self.left.forward(y).mul_(0.5) + self.right(y))


BATCHES = [Batch((grid(rows, 3, 7, 6),)) for rows in (5, 3)]


@pytest.mark.parametrize("memory", [0, 3000, 2**20])
@pytest.mark.parametrize("edited", ["first", "twice", "left", "right", "last"])
def test_a_prefix_changes_nothing(edited, memory, monkeypatch):
    monkeypatch.setattr("reconv.planning.probe.MEMORY", memory)
    torch.manual_seed(0)
    model = Winding().eval()
    probe, wrapped = Probe(model, BATCHES), clone(model)
    prefix, new = Prefix(wrapped, BATCHES), clone(model.get_submodule(edited))
    with torch.no_grad():
        new.weight.mul_(0.9)
    with standing_in(model, [edited], new):
        expected = probe.error(model)
    for _ in range(2):
        with standing_in(wrapped, [edited], prefix.until(clone(new))):
            assert probe.moved(probe.answers(wrapped, None, prefix), probe.outputs) == expected > 0


def test_a_prefix_spares_what_runs_before_the_edit():
    model = Winding().eval()
    probe, ran = Probe(model, BATCHES), []
    for name in ("first", "twice", "left", "right", "last"):
        conv = model.get_submodule(name)
        conv.forward = type(conv).forward.__get__(conv)
        conv._conv_forward = lambda *args, name=name, old=conv._conv_forward: (ran.append(name), old(*args))[1]
    prefix = Prefix(model, BATCHES)
    ran.clear()
    with standing_in(model, ["left"], prefix.until(nn.Conv2d(4, 5, 1))):
        probe.answers(model, None, prefix)
    assert ran == ["right", "last"] * len(BATCHES)


def test_statistics_of_a_batch_do_not_count_as_an_edits_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)).eval()  # of no batch's statistics
    batches = [Batch((torch.randn(20, 3, 7, 6),))]
    site, probe, wrapped = find_sites(model, batches[0].inputs).sites[0], Probe(model, batches), clone(model)
    prefix = Prefix(wrapped, batches)

    def answers(scale: float) -> Any:
        weights = Weights({k: v * scale for k, v in site.tensors.items()}, 0.0)
        return table._answers(site, Proposal("", site.block), weights, probe, wrapped, prefix)

    as_it_is = answers(1.0)
    assert probe.moved(as_it_is, probe.outputs) > 0.1
    assert probe.moved(answers(1.0), as_it_is) == 0
    assert probe.moved(answers(0.5), as_it_is) < 1e-4  # which the batch norm takes back


def test_a_form_has_a_few_of_its_sizes_fitted():
    def row(rule: str, middle: int, ms: float) -> Any:
        block = parse(f"ic64oc{middle}k1x1nb -> ic{middle}oc64k1x1")
        return Proposal(rule, block), {"latency": ms, "macs": 128.0 * middle, "params": 128.0 * middle}

    sizes = [row("r", middle, ms) for middle, ms in ((8, 1.0), (16, 3.0), (24, 2.0), (32, 2.5), (40, 2.75), (48, 4.0))]
    # 16 took longer than the larger 24; of the rest both ends and one between
    assert _worth_fitting(sizes, ["latency"]) == [sizes[0], sizes[3], sizes[5]]
    assert _worth_fitting([*sizes[:2], row("s", 24, 2.0)], ["latency"]) == [*sizes[:2], row("s", 24, 2.0)]
    assert _worth_fitting(sizes[:3], ["latency", "macs"]) == [sizes[0], sizes[2], sizes[1]]
    assert _worth_fitting(sizes[:3], []) == sizes[:3]


BLOCKS = [parse(f"ic4oc{n}k1x1") for n in range(1, 13)]


@pytest.mark.parametrize(
    "front, known, kept",
    [
        (0, [], []), (1, [], [0]), (8, [3], range(8)), (12, [], [0, 2, 3, 5, 6, 8, 9, 11]),
        (12, [1, 4, 7, 10], [0, 1, 2, 3, 4, 7, 10, 11]), (12, range(1, 11), [0, 1, 2, 3, 4, 5, 6, 11]),
    ],
)  # fmt: skip
def test_the_front_keeps_its_ends_and_what_is_known(front, known, kept, monkeypatch):
    monkeypatch.setattr(table, "MOST_PER_SITE", 8)
    rows = [(Proposal("r", block), {"latency": 1.0}, Weights({}, 0.0)) for block in BLOCKS[:front]]
    found = _spread(rows, {BLOCKS[i] for i in known})
    assert [BLOCKS.index(p.block) for p, _, _ in found] == list(kept)
    assert len(found) <= 8


# whole plans -------------------------------------------------------------------------------------


FAKE = FakeTarget()
EXACT = {"fold_batch_norm", "fold_branches", "merge_linear", "trim", "fuse_activation", "kernel"}


def latency(model: nn.Module, target: FakeTarget = FAKE) -> float:
    return target.measure([(model.eval(), (IMAGE,))], 0.0)[0].median_ms


FIGURES = {
    "latency": latency,
    "macs": lambda m: summary(m, IMAGE).network.macs,
    "params": lambda m: sum(p.numel() for p in m.parameters()),
    "memory": lambda m: memory(m, IMAGE),
}


@pytest.mark.parametrize(
    "budget, data",
    [
        ("latency=0.8", None), ("latency=0.5", DATA), ("latency=0.3ms", None), ("macs=0.5", DATA), ("macs=0.4M", None),
        ("params=0.5", DATA), ("params=9K", None), ("memory=0.6", DATA), ("latency=0.7,params=0.6", None),
        ("latency=0.6,macs=0.5,memory=0.9", DATA), ("latency=0.9,error=0.5", DATA), ("error=0.2", None),
    ],
)  # fmt: skip
def test_a_met_budget_holds_on_the_network_itself(budget, data):
    model, limits = network(), Budget.of(budget).limits
    reestimate(model, [Batch((DATA,))])  # as of a network that was trained on such data
    made = plan(model, IMAGE, budget, data, FAKE)
    student = apply(model, made, IMAGE)
    assert made.met
    assert made.reason is None
    assert made.budget == budget
    for name, limit in limits.items():
        if name != "error":
            assert FIGURES[name](student) <= limit.amount(FIGURES[name](model)) * (1 + 1e-9)
    assert made.latency_ratio == pytest.approx(latency(student) / latency(model))
    assert made.latency_ratio < 1
    assert {edit.site for edit in made.edits} <= {"0", "3", "6"}


@pytest.mark.parametrize(
    "budget, name", [("latency=0.001", "latency"), ("latency=1us", "latency"), ("params=0.01", "params"),
                     ("latency=0.2,error=1e-6", "latency"), ("memory=1B", "memory")],
)  # fmt: skip
def test_an_impossible_budget_is_said_and_the_nearest_given(budget, name):
    made = plan(network(), IMAGE, budget, None, FAKE)
    assert not made.met
    assert f"{name}: asked for" in made.reason
    assert "reached" in made.reason
    assert made.latency_ratio < 1
    assert made.edits


def test_every_edit_measured_faster_on_an_engine_where_groups_are_slow():
    """Where groups cost fifty times as much, no separable and no grouped convolution is chosen, and it is said why."""
    slow = FakeTarget(grouped=50.0)
    made = plan(network(), IMAGE, "latency=0.5", None, slow)
    changed = [edit for edit in made.edits if edit.rule not in EXACT]
    assert changed
    assert not {edit.rule for edit in changed} & {"separable", "shuffled_group"}
    assert all(spec.groups == 1 for edit in changed for spec in convs(edit.block))
    model = network()
    for edit in changed:
        row = next(row for row in summary(model, IMAGE, slow).rows if row.name == edit.site)
        assert edit.latency_ms < row.latency_ms
    reasons = {(r.site, r.rule): r.reason for r in made.refusals}
    assert "no proposal gains in latency" in reasons["3", "separable"]


def test_nothing_that_is_slower_as_a_whole_is_planned():
    """Where every layer costs the same whatever it computes, more layers are slower: only fewer help."""
    made = plan(network(), IMAGE, "latency=0.3", None, FakeTarget(mac=0.0))
    assert {edit.rule for edit in made.edits} == {"fold_batch_norm", "remove"}
    assert all(edit.absorbs for edit in made.edits)  # a batch norm or a ReLU
    assert made.latency_ratio < 1
    assert not made.met


def test_the_faster_layout_is_planned_and_applied():
    fast = FakeTarget(channels_last=0.25)
    made = plan(network(), IMAGE, None, None, fast, rules="exact")
    assert made.layout == "channels_last"
    student = apply(network(), made, IMAGE)
    assert made.latency_ratio == pytest.approx(latency(student, fast) / latency(network(), fast))
    slow = plan(network(), IMAGE, None, None, FakeTarget(channels_last=4.0), rules="exact")
    assert slow.layout == "contiguous"


def test_a_network_in_channels_last_stays_so_where_nothing_is_faster():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last).eval()
    made = plan(model, IMAGE, None, None, FAKE, rules="exact")
    assert (made.layout, made.edits, made.latency_ratio, made.met) == ("channels_last", (), 1.0, True)


class DearActivations(FakeTarget):
    """An engine on which a ReLU costs, where it is not a part of the layer before it."""

    def _latency_ms(self, model: nn.Module, inputs: tuple[Any, ...]) -> float:
        alone = [name for name, m in model.named_modules() if type(m) is nn.ReLU and not isinstance(
            model.get_submodule(name.rpartition(".")[0]), ChainLayer)]  # fmt: skip
        return super()._latency_ms(model, inputs) + 0.01 * len(alone)


def test_exact_rules_are_kept_as_far_as_they_measure_faster():
    made = plan(network(), IMAGE, None, None, FAKE, rules="exact")
    assert [(e.site, e.rule) for e in made.edits] == [("0", "fold_batch_norm"), ("3", "fold_batch_norm")]
    reasons = {(r.site, r.rule): r.reason for r in made.refusals}
    assert reasons["0", "fuse_activation"] == "the network measured no faster with it"


@dataclass(frozen=True)
class Exporting(FakeTarget):
    exports: bool = True


def test_an_engine_of_exported_networks_is_spared_what_is_pytorchs_own():
    last = {"channels_last": 0.5}
    free, made = (plan(network(), IMAGE, "latency=0.5", None, t) for t in (FakeTarget(**last), Exporting(**last)))
    assert (free.layout, made.layout) == ("channels_last", "contiguous")
    assert not {"fuse_activation", "kernel"} & {e.rule for e in made.edits}
    said = {r.rule: r.reason for r in made.refusals if r.site == "*"}
    assert said["kernel"] == "fake runs the network exported, and sees to that itself"


def test_exact_rules_without_a_budget_fold_and_fuse():
    model = network()
    made = plan(model, IMAGE, None, None, DearActivations(), rules="exact")
    assert [(e.site, e.rule, e.error, e.absorbs) for e in made.edits] == [
        ("0", "fold_batch_norm", 0.0, ("1",)), ("3", "fold_batch_norm", 0.0, ("4",)),
        ("0", "fuse_activation", 0.0, ("2",)), ("3", "fuse_activation", 0.0, ("5",)),
        ("6", "fuse_activation", 0.0, ("7",))]  # fmt: skip
    assert all(edit.latency_ms > 0 for edit in made.edits)
    assert made.met
    torch.testing.assert_close(apply(model, made, IMAGE)(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)
    served = {edit.rule for edit in made.edits}
    assert [(r.site, r.rule) for r in made.refusals if r.rule in served] == [("6", "fold_batch_norm")]


def test_smaller_rules_ask_for_a_budget():
    for rules in ("smaller", "separable", ["asymmetric", "bottleneck"], Separable()):
        with pytest.raises(ConvError, match=r"rules .* 'smaller' need a budget; got rules=.*latency=0\.5") as caught:
            plan(network(), IMAGE, rules=rules, target=FAKE)
        assert isinstance(caught.value, ValueError)
    made = plan(network(), IMAGE, target=FAKE)  # beside exact ones they are refused only
    assert {e.rule for e in made.edits} == {"fold_batch_norm"}
    assert {r.rule for r in made.refusals if "needs a budget" in r.reason} == {r.name for r in rules_named("smaller")}


@pytest.mark.parametrize("rules", ["separable", ["bottleneck"], Separable(), ["separable", "bottleneck"]],
                         ids=["a name", "a list", "a Rule", "two"])  # fmt: skip
def test_rules_by_name_with_an_error_budget_apply_wherever_they_stay_within_it(rules):
    """Also on an engine where they are slower."""
    model = network()
    slow = FakeTarget(grouped=50.0)
    made = plan(model, IMAGE, "error=0.9", None, slow, rules)
    assert made.met
    assert [edit.site for edit in made.edits] == ["0", "3", "6"]
    assert distance(apply(model, made, IMAGE)(IMAGE), model(IMAGE)) <= 0.9
    tight = plan(model, IMAGE, "error=0.0000001", None, slow, rules)
    assert tight.met
    assert distance(apply(model, tight, IMAGE)(IMAGE), model(IMAGE)) <= 1e-6


@pytest.mark.parametrize(
    "pattern, sites", [("3", {"3"}), ("[36]", {"3", "6"}), (["0", "6"], {"0", "6"}), ("*", {"0", "3", "6"})]
)
def test_only_the_sites_that_are_meant_change(pattern, sites):
    made = plan(network(), IMAGE, "macs=0.01", None, FAKE, "smaller", sites=pattern)
    assert {edit.site for edit in made.edits} == sites
    assert {r.site for r in made.refusals} <= sites


def test_each_rule_that_does_not_serve_says_why():
    made = plan(network(), IMAGE, "latency=0.5", None, FAKE)
    said = {(r.site, r.rule) for r in made.refusals}
    done = {(e.site, e.rule) for e in made.edits}
    assert ("6", "fold_batch_norm") in said
    assert all(r.reason for r in made.refusals)
    assert not {(s, r) for s, r in said if r in EXACT} & done


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"budget": "latency=2"}, "budget: "),
        ({"rules": "separabel"}, "Did you mean separable"),
        ({"target": "tpu"}, "target must be one of"),
        ({"sites": "conv*"}, "sites must match at least one convolution; got sites=conv.*The network has 0, 3, 6"),
        ({"data": iter([IMAGE])}, "more than one pass"),
        ({"data": torch.zeros(4, 5, 11, 13)}, "rank and channels of example_inputs"),
        ({"data": torch.full((4, 3, 11, 13), float("nan"))}, "finite"),
        ({"data": []}, "at least one sample"),
    ],
)
def test_wrong_requests_are_said_before_anything_is_measured(wrong, message):
    target = FakeTarget()
    with pytest.raises(ConvError, match=message):
        plan(network(), IMAGE, **{"budget": "latency=0.5", "target": target} | wrong)
    assert target.seen == []


def test_a_network_with_nan_weights_is_refused_by_name():
    model = network()
    model[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConvError, match=r"outputs must be finite; got .*3\.weight"):
        plan(model, IMAGE, "latency=0.5", None, FAKE)


class Mixed(nn.Module):
    """A shared convolution, one with tied weights, a functional one; the output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)
        self.second.weight = self.first.weight
        self.kernel = nn.Parameter(grid(4, 16, 1, 1))

    def forward(self, x):
        x = self.shared(self.shared(self.first(x) + self.second(x)).relu()).relu()
        return {"y": F.conv2d(x, self.kernel), "n": 3}


def test_sharing_tying_and_functional_convolutions_in_one_network():
    model = Mixed().eval()
    made = plan(model, IMAGE, "latency=0.5", grid(20, 3, 11, 13), FAKE)
    reasons = {(r.site, r.rule): r.reason for r in made.refusals}
    assert {e.site for e in made.edits} == {"shared"}
    assert "tied to those of second" in reasons["first", "separable"]
    assert "no module to swap" in reasons["conv2d", "*"]
    student = apply(model, made, IMAGE)
    assert student.second.weight is student.first.weight
    assert latency(student) == pytest.approx(made.latency_ratio * latency(model))
    runs = [row.latency_ms for row in summary(student, IMAGE, FAKE).rows if row.name.startswith("shared")]
    assert made.edits[0].latency_ms == pytest.approx(sum(runs), rel=0.1)


def test_a_network_with_nothing_to_swap():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    made = plan(model, IMAGE, "latency=0.5", None, FAKE)
    assert (made.edits, made.met) == ((), False)
    assert [(r.site, r.rule) for r in made.refusals] == [("0", "*")]
    assert "TorchScript" in made.refusals[0].reason


def test_the_root_may_be_the_convolution():
    made = plan(nn.Conv2d(16, 16, 5).eval(), grid(1, 16, 9, 9), "macs=0.5", None, FAKE)
    assert made.met
    assert [edit.site for edit in made.edits] == [""]


def test_a_network_that_writes_into_its_input_is_compared_fairly():
    class Writes(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x, data = IMAGE.clone(), [grid(20, 3, 11, 13)]
    given = data[0].clone()
    made = plan(Writes(*network()), x, "error=0.5", data, FAKE, "separable")
    assert torch.equal(x, IMAGE)
    assert torch.equal(data[0], given)
    assert made == plan(Writes(*network()), IMAGE, "error=0.5", data, FAKE, "separable")


def test_a_network_that_needs_its_layout_is_planned_in_it():
    class Flat(nn.Sequential):
        def forward(self, x):
            return super().forward(x).view(len(x), -1)  # refuses channels_last

    model = Flat(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    made = plan(model, IMAGE, "latency=0.9", None, FakeTarget(channels_last=0.01))
    assert made.layout == "contiguous"
    apply(model, made, IMAGE)(IMAGE)


@pytest.mark.parametrize("data", [grid(70, 3, 11, 13), TensorDataset(grid(70, 3, 11, 13), torch.arange(70))])
def test_the_same_seed_gives_the_same_plan_and_random_numbers_are_left_alone(data):
    """With more samples than calibration takes, so that some are drawn."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten()).eval()
    random = torch.get_rng_state()
    plans = [plan(model, IMAGE, "latency=0.6", data, FakeTarget(), seed=7) for _ in range(2)]
    assert plans[0] == plans[1]
    assert torch.equal(torch.get_rng_state(), random)


def test_progress_is_told():
    seen: list[tuple[str, int, int]] = []
    plan(network(), IMAGE, "latency=0.5", None, FAKE, progress=lambda *step: seen.append(step))
    assert {what.partition(",")[0] for what, _, _ in seen} == {"measuring proposals", "correcting by the whole network"}
    assert all(done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2]


class Headed(nn.Sequential):
    """Two convolutions, and a large layer that is none."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 5), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(64, 300))  # fmt: skip


@pytest.mark.parametrize("budget, floor", [
    ("params=0.5", "0.74 of it"), ("params=9K", "1.95e+04"), ("memory=0.5", "0.665 of it"),
    ("macs=1e-3", "0.0671 of it"), ("params=0.8", None), ("macs=0.07", None),
])  # fmt: skip
def test_a_budget_that_no_choice_can_keep_says_what_lies_outside(budget, floor):
    made = plan(Headed().eval(), IMAGE, budget, None, FAKE, ["bottleneck", "separable"])
    name = budget.partition("=")[0]
    if floor is None:
        assert "outside" not in (made.reason or "")
        return
    assert not made.met
    assert made.edits
    assert made.reason.startswith(f"{name}: asked for ")
    assert made.reason.endswith(f", and at least {floor} lies outside the sites that can change")


def test_what_changes_with_a_site_does_not_lie_outside():
    made = plan(Headed().eval(), IMAGE, "params=0.01", None, FAKE, "prune_channels")
    assert not made.met
    assert "outside" not in made.reason
