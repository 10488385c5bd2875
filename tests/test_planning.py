"""A plan of a whole network holds what it says, and gives the reason for what it leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from counted import memory
from fakes import FakeTarget, grid
from messages import told
from planned import DATA, IMAGE, network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reconv.costing.summary import summary
from reconv.data import Batch
from reconv.errors import ConvError
from reconv.layers import ChainLayer
from reconv.planning.budget import Budget
from reconv.planning.make import plan
from reconv.rewriting.apply import apply
from reconv.ruleset import Separable, rules_named
from reconv.spec import convs
from reconv.surgery.norms import reestimate
from reconv.surgery.outputs import distance

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
    own = "fake runs the network exported, and sees to that itself"
    assert said == {"fuse_activation": own, "kernel": own}


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
    with pytest.raises(ConvError, match=message) as caught:
        plan(network(), IMAGE, **{"budget": "latency=0.5", "target": target} | wrong)
    assert target.seen == []
    told(caught.value)


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


def test_what_makes_a_network_denser_is_left_out_of_a_budget():
    made = plan(network(), IMAGE, "macs=0.5", None, FAKE, ("separable", "atrous"))
    said = {(r.site, r.rule): r.reason for r in made.refusals}
    assert said["*", "atrous"] == "it makes nothing cheaper: ask for it without a budget"
    assert {edit.rule for edit in made.edits} == {"separable"}


def test_a_proposal_with_which_the_network_fails_is_refused():
    """Between the convolutions it looks at the weight of one, which a proposal of several layers has not."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 16, 3)

        def forward(self, x):
            return self.b(self.a(x) * self.a.weight.shape[-1])

    made = plan(Looking().eval(), IMAGE, "macs=0.6", None, FAKE, "separable")
    said = {(r.site, r.rule): r.reason for r in made.refusals}
    assert re.match(
        "the network fails with ic3oc.* -> .*: AttributeError: .* no attribute 'weight'", said["a", "separable"]
    )
    assert {edit.site for edit in made.edits} == {"b"}


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
