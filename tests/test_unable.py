"""An engine that cannot run something: that proposal is dropped with the reason, and the job goes on."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTarget, grid
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.layers import Absorbed
from reconv.spec import parse
from reconv.targets import LatencyCache, Problem, Timing, check_runs, get_target, time_blocks, try_networks

IMAGE = grid(1, 3, 11, 13)
WHY = "the engine cannot run it ("
REASON = "ValueError: no kernel for this"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 5),
                         nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()  # fmt: skip


def grouped(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())


def lone_5x5(model: nn.Module) -> bool:
    return isinstance(model, nn.Conv2d) and model.kernel_size == (5, 5)


def said(plan: reconv.Plan) -> dict[tuple[str, str], str]:
    return {(refusal.site, refusal.rule): refusal.reason for refusal in plan.refusals}


def test_each_block_is_timed_or_says_why_not(tmp_path):
    target, cache = FakeTarget(refuses=grouped), LatencyCache(tmp_path / "latency.sqlite")
    problems = [Problem(parse(text), (1, 4, 7, 5), torch.float32, torch.device("cpu"))
                for text in ("ic4oc4k3x3", "ic4oc4k3x3g2", "ic4oc8k1x1", "ic4oc4k3x3g4")]  # fmt: skip
    plain, two, wider, four = time_blocks(target, problems, cache)
    assert (two, four) == (REASON, REASON)
    assert (plain, wider) == tuple(time_blocks(FakeTarget(), [problems[0], problems[2]]))
    calls = len(target.seen)
    assert time_blocks(target, problems, cache) == [plain, two, wider, four]
    assert len(target.seen) == calls  # what cannot be run is not tried twice in a job
    cache.close()
    assert LatencyCache(tmp_path / "latency.sqlite").get(problems[1].key(target)) is None  # but in the next one


def test_proposals_that_it_cannot_run_are_dropped_with_the_reason():
    rules = ["exact", "separable", "bottleneck"]
    made = reconv.plan(network(), IMAGE, "latency=0.6", target=FakeTarget(refuses=grouped), rules=rules)
    assert {edit.rule for edit in made.edits} & {"separable", "bottleneck"} == {"bottleneck"}
    reason = said(made)["3", "separable"]
    assert reason.startswith(WHY)
    assert REASON in reason
    assert made.met


def test_a_site_that_it_cannot_run_alone_stays_and_says_why():
    made = reconv.plan(network(), IMAGE, "latency=0.7", target=FakeTarget(refuses=lone_5x5), rules="smaller")
    assert said(made)["3", "*"] == f"it stays as it is: {WHY}ic16oc16k5x5): {REASON}"
    assert "3" not in {edit.site for edit in made.edits} != set()
    summary = reconv.summary(network(), IMAGE, FakeTarget(refuses=lone_5x5))
    assert [row.latency_ms is None for row in summary.rows] == [False, True, False]
    assert summary.to_dict()["total"]["latency_ms"]["state"] == "partial"


def test_what_changes_with_a_proposal_counts_too():
    """Pruned channels, whose reader the engine could not run."""
    model = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()

    def narrow(model: nn.Module) -> bool:
        return isinstance(model, nn.Conv2d) and model.kernel_size == (3, 3) and model.in_channels < 16

    made = reconv.plan(model, IMAGE, "latency=0.7", target=FakeTarget(refuses=narrow), rules="prune_channels")
    assert made.edits == ()
    assert said(made)["0", "prune_channels"] == "the engine cannot run what changes with it: 2"


def test_exact_rules_with_which_it_cannot_run_the_network_are_left_out():
    def folded(model: nn.Module) -> bool:
        return any(isinstance(m, Absorbed) for m in model.modules())

    made = reconv.plan(network(), IMAGE, target=FakeTarget(refuses=folded), rules="exact")
    assert made.edits == ()
    assert said(made)["0", "fold_batch_norm"] == f"the engine cannot run the network with it: {REASON}"


def test_what_adds_is_left_out_where_it_cannot_run_the_network_with_it():
    model, own = network(), sum(1 for _ in network().modules())

    def larger(model: nn.Module) -> bool:
        return sum(1 for _ in model.modules()) > own

    made = reconv.plan(model, IMAGE, target=FakeTarget(refuses=larger), rules="pointwise_after")
    assert made.edits == ()
    assert said(made)["3", "pointwise_after"] == f"the engine cannot run the network with it: {REASON}"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.large(x) + self.small(x)


@pytest.mark.parametrize("lone, reason", [(True, "the engine cannot run it: "),
                                          (False, "the engine cannot run the network with it: ")])  # fmt: skip
def test_whole_modules_stay_where_it_cannot_run_what_they_would_become(lone, reason):
    model = nn.Sequential(Branches(), nn.ReLU()).eval()

    def merged(model: nn.Module) -> bool:
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        return len(convs) == 1 and (model is convs[0]) == lone

    made = reconv.plan(model, IMAGE, target=FakeTarget(refuses=merged), rules="fold_branches", sites="0")
    assert made.edits == ()
    assert said(made)["0", "fold_branches"] == reason + REASON


@pytest.mark.parametrize("job", [reconv.plan, reconv.rewrite])
def test_a_network_that_it_cannot_run_at_all_is_an_error_at_once(job):
    target, steps = FakeTarget(refuses=lambda model: True), []
    with pytest.raises(ConvError, match=r"^target: .* run the network as it is; got target=fake, model=Sequential, "
                                        r"reason='ValueError: no kernel for this'") as caught:  # fmt: skip
        job(network(), IMAGE, "latency=0.5", target=target, progress=lambda *step: steps.append(step))
    assert isinstance(caught.value, RuntimeError)
    assert (target.seen, steps) == ([1], [])


@pytest.mark.parametrize("refuses", [lambda model: True, lambda model: grouped(model)], ids=["the network", "the plan"])
def test_a_plan_of_another_engine_is_refused_before_it_is_recovered(refuses):
    made = reconv.plan(network(), IMAGE, "macs=0.6", target=FakeTarget(), rules="separable", sites="3")
    assert [edit.rule for edit in made.edits] == ["separable"]
    target, steps = FakeTarget(refuses=refuses), []
    with pytest.raises(ConvError, match=r"^target: .* run the network as it is"):
        reconv.rewrite(network(), IMAGE, data=grid(8, 3, 11, 13), target=target, plan=made,
                       progress=lambda *step: steps.append(step))  # fmt: skip
    assert steps == []


def test_networks_are_timed_or_say_why_not():
    models = [network().train(), nn.Sequential(nn.Conv2d(3, 3, 3, groups=3))]
    timing, reason = try_networks(FakeTarget(refuses=grouped), models, (IMAGE,))
    assert isinstance(timing, Timing)
    assert reason == REASON
    assert all(m.training for model in models for m in model.modules())
    check_runs(FakeTarget(refuses=grouped), models[0], (IMAGE,))


def test_what_runs_alone_but_not_together_is_raised():
    class Small(FakeTarget):
        def measure(self, jobs, seconds, burst=1):
            if len(jobs) > 1:
                raise MemoryError("too many")
            return super().measure(jobs, seconds, burst)

    with pytest.raises(MemoryError, match="too many"):
        try_networks(Small(), [network(), network()], (IMAGE,))


def test_an_engine_of_ours_says_what_it_cannot_run():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 1e9 else torch.from_numpy(x.detach().numpy().copy())

    timing, reason = try_networks(get_target("onnxruntime:1"), [nn.Conv2d(3, 2, 3), Odd(3, 2, 3)], (IMAGE,), 0.0)
    assert isinstance(timing, Timing)
    assert reason.startswith("target: the engine must be able to run the network; got model=Odd")
