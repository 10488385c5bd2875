"""Plans of networks of modules: whole modules are found, rewritten, saved, applied, or left with the reason."""

import gc
import weakref

import pytest
import torch
from branched import STAGES, ACNet, RepVGG, conv, settled
from fakes import FakeTarget
from torch import nn

from reconv.errors import ConvError
from reconv.planning.edits import restructure
from reconv.planning.make import plan
from reconv.planning.plan import Edit, Plan
from reconv.planning.wholes import exact_wholes
from reconv.rewriting.apply import apply
from reconv.rewriting.store import load, save_run
from reconv.ruleset import rules_named
from reconv.spec import convs, parse
from reconv.surgery import find_sites
from reconv.surgery.outputs import distance

FOLD, MERGE = rules_named("fold_branches", "merge_linear")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = RepVGG(3, 8, 2)
        self.body = nn.Sequential(RepVGG(8, 8), RepVGG(8, 12, 2), nn.Sequential(conv(12, 12, 3), conv(12, 12, 1)))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return settled(Net()).float()


IMAGE = torch.linspace(-2, 2, 3 * 13 * 15).sin().reshape(1, 3, 13, 15)
FAKE = FakeTarget()


def test_a_network_of_branches_is_planned_saved_loaded_and_applied(tmp_path):
    model = net()
    made = plan(model, IMAGE, target=FAKE, rules="exact")
    wholes = [(e.site, e.rule, str(e.block)) for e in made.edits if e.whole]
    assert wholes == [
        ("stem", "fold_branches", "ic3oc8k3x3s2p1 -> relu"), ("body.0", "fold_branches", "ic8oc8k3x3p1 -> relu"),
        ("body.1", "fold_branches", "ic8oc12k3x3s2p1 -> relu"), ("body.2", "merge_linear", "ic12oc12k3x3p1"),
    ]  # fmt: skip
    assert made.edits[: len(wholes)] == made.wholes
    assert all(edit.latency_ms > 0 for edit in made.edits)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    student = apply(model, Plan.load(tmp_path / "plan.json"), IMAGE)
    assert distance(student(IMAGE), model(IMAGE)) <= 1e-5
    assert sum(isinstance(m, nn.Conv2d) for m in student.modules()) == 4
    assert FAKE.measure([(student.eval(), (IMAGE,))], 0)[0].median_ms == pytest.approx(
        made.latency_ratio * FAKE.measure([(model, (IMAGE,))], 0)[0].median_ms)  # fmt: skip
    again = restructure(model, made)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(IMAGE), student(IMAGE))
    save_run(tmp_path / "run", model=student, plan=made, config={})
    assert torch.equal(load(tmp_path / "run", net)(IMAGE), student(IMAGE))
    assert model.stem.large[0].weight.shape == (8, 3, 3, 3)  # the given network is as it was


@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-9), (torch.bfloat16, 0.05)])
def test_networks_of_other_precision_are_judged_by_theirs(dtype, near):
    model, x = net().to(dtype), IMAGE.to(dtype)
    made = plan(model, x, target=FAKE, rules=("fold_branches",))
    assert [edit.site for edit in made.wholes] == ["stem", "body.0", "body.1"]
    assert distance(apply(model, made, x)(x), model(x)) <= near


def test_convolutions_inside_are_edited_after_the_module():
    model = net()
    made = plan(model, IMAGE, "macs=0.6", None, FAKE, ("exact", "bottleneck"))
    assert made.met
    assert {e.rule for e in made.edits} >= {"fold_branches", "bottleneck"}
    inner = [e.site for e in made.edits if e.rule == "bottleneck"]
    assert inner
    assert not set(inner) & {name for name, _ in model.named_modules()}
    assert set(made.matches) == {e.site for e in made.wholes}
    student = apply(model, made, IMAGE)
    assert distance(student(IMAGE), model(IMAGE)) < 1


class DearBranches(FakeTarget):
    """Where what is not a branch is slow."""

    def _latency_ms(self, model, inputs):
        return super()._latency_ms(model, inputs) + 10 * (sum(isinstance(m, RepVGG) for m in model.modules()) < 3)


def test_edits_that_make_the_network_no_faster_are_not_kept():
    made = plan(net(), IMAGE, target=DearBranches(), rules=["fold_branches"])
    assert made.edits == ()
    reasons = {r.site: r.reason for r in made.refusals if r.rule == "fold_branches"}
    assert reasons["stem"] == "the network measured no faster with it"
    forced = plan(net(), IMAGE, "error=0.1", target=DearBranches(), rules=["fold_branches"])
    assert [e.site for e in forced.edits] == ["stem", "body.0", "body.1"]


@pytest.mark.parametrize(
    "pattern, edited", [("stem", ["stem"]), ("body.0.*", ["body.0"]), (["body.?"], ["body.0", "body.1"])]
)
def test_modules_by_pattern(pattern, edited):
    made = plan(net(), IMAGE, target=FAKE, rules="fold_branches", sites=pattern)
    assert [e.site for e in made.edits] == edited


class Peeking(nn.Module):
    """It looks at what is inside of a module."""

    def __init__(self):
        super().__init__()
        self.block = RepVGG(3, 3)
        self.other = ACNet(3, 4)

    def forward(self, x):
        return self.other(self.block(x.to(self.block.large[0].weight.dtype)))


def test_a_module_that_others_look_into_stays():
    model = settled(Peeking()).float()
    made = plan(model, IMAGE, target=FAKE, rules="exact")
    assert [e.site for e in made.wholes] == ["other"]
    assert any("fails without what is in it" in r.reason for r in made.refusals if r.site == "block")
    assert distance(apply(model, made, IMAGE)(IMAGE), model(IMAGE)) <= 1e-5


@pytest.mark.parametrize("name", ["dense", "skip"])
def test_stronger_rules_serve_the_smallest_modules_by_name(name):
    torch.manual_seed(0)
    block = STAGES["a residual block"]
    model = settled(nn.Sequential(conv(3, 4, 3), nn.Sequential(block(), block()), nn.ReLU())).float()
    made = plan(model, IMAGE, target=FAKE, rules=name)
    assert [(e.site, e.rule, e.whole) for e in made.edits] == [
        ("1.0.inner", name, True), ("1.1.inner", name, True), ("0", name, False)]  # fmt: skip
    reasons = {(r.site, r.rule): r.reason for r in made.refusals}
    assert reasons["1.0.inner", "*"] == f"{name} rewrites 1.0.inner as a whole: its convolutions stay"
    assert reasons["1", name] == "a part of it, 1.0.inner, is rewritten as a whole"
    student = apply(model, made, IMAGE)
    assert distance(student(IMAGE), model(IMAGE)) <= 1e-5
    assert sum(p.numel() for p in student.parameters()) > sum(p.numel() for p in model.parameters())
    assert restructure(model, made).state_dict().keys() == student.state_dict().keys()
    only = plan(model, IMAGE, target=FAKE, rules=["exact", name], sites="1.1")
    assert [e.site for e in only.wholes] == ["1.1"]


@pytest.mark.parametrize("site, message", [
    ("nowhere", "each site of the plan must be a module of the network"),
    ("head", "the module must be one that can be rewritten as a whole"),
])  # fmt: skip
def test_a_plan_for_another_network_is_an_error(site, message):
    made = Plan((Edit(site, "fold_branches", parse("ic3oc8k3x3s2p1 -> relu"), whole=True),))
    with pytest.raises(ConvError, match=message):
        apply(net(), made, IMAGE)


def test_a_block_without_tensors_can_be_placed():
    made = Plan((Edit("body.2", "x", parse("identity")),))
    again = restructure(net(), made)
    assert isinstance(again.body[2], nn.Identity)
    assert again(IMAGE).shape == (1, 5)


# -- timm --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, pattern, edits", [("repvgg_a0", "*", 22), ("mobileone_s0", "stem,stages.[03].*", 7)])
def test_timms_blocks_fold(name, pattern, edits):
    from nets import let_torchvision_import

    library = let_torchvision_import()
    import timm

    torch.manual_seed(0)
    model, x = settled(timm.create_model(name)).float(), torch.randn(1, 3, 32, 32)
    made = exact_wholes(model, (x,), [FOLD], pattern, lambda site, block: None)
    assert len(made.edits) == edits, (library, made.refusals)
    assert distance(made.model(x), model(x)) <= 1e-4
    assert all(len(list(convs(e.block))) == 1 for e in made.edits)


def test_rules_keep_no_network_alive():
    sites = find_sites(nn.Sequential(conv(3, 4, 3), conv(4, 4, 1)).float(), torch.zeros(1, 3, 7, 6)).sites
    assert sites[0].around
    alive = weakref.ref(sites[0].around.model)
    for rule in (FOLD, MERGE):
        rule.refuse(sites[0])
    del sites
    gc.collect()
    assert alive() is None
