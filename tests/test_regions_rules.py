"""Rules on whole modules: the same function in a simpler form, or with more to learn; planned, saved, applied."""

import gc
import weakref

import pytest
import torch
from fakes import FakeTarget
from test_regions import Module, conv, settled
from torch import nn
from torch.nn import functional as F

from reconv.errors import ConvError
from reconv.layers import build
from reconv.planning.edits import restructure
from reconv.planning.make import plan
from reconv.planning.plan import Edit, Plan
from reconv.planning.wholes import exact_wholes
from reconv.rewriting.apply import apply
from reconv.rewriting.store import load, save_run
from reconv.ruleset import rules_named
from reconv.spec import convs, parse
from reconv.surgery import find_regions, find_sites
from reconv.surgery.outputs import distance

FOLD, MERGE, SKIP, DENSE = rules_named("fold_branches", "merge_linear", "skip", "dense")
X = torch.linspace(-2, 2, 2 * 4 * 9 * 8, dtype=torch.float64).sin().reshape(2, 4, 9, 8)


# -- training-time blocks, as their authors structure them ------------------------------------------------
def normed(*args, **kwargs):
    kernel = nn.Conv2d(*args, bias=False, **kwargs)
    return nn.Sequential(kernel, nn.BatchNorm2d(kernel.out_channels))


class RepVGG(nn.Module):
    """Source: Ding et al. 2021, arXiv:2101.03697"""

    def __init__(self, i, o, stride=1, groups=1):
        super().__init__()
        same = i == o and stride == 1
        self.identity = nn.BatchNorm2d(i) if same else None
        self.large = normed(i, o, kernel_size=3, stride=stride, padding=1, groups=groups)
        self.small = normed(i, o, kernel_size=1, stride=stride, groups=groups)
        self.act, self.attention = nn.ReLU(), nn.Identity()

    def forward(self, x):
        direct = 0 if self.identity is None else self.identity(x)
        return self.act(self.attention(self.large(x) + self.small(x) + direct))


class ACNet(nn.Module):
    """Source: Ding et al. 2019, arXiv:1908.03930"""

    def __init__(self, i, o, stride=1):
        super().__init__()
        self.square = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.column = nn.Conv2d(i, o, (3, 1), stride, (1, 0), bias=False)
        self.row = nn.Conv2d(i, o, (1, 3), stride, (0, 1), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-4) for _ in range(3))

    def forward(self, x):
        parts = [norm(part(x)) for norm, part in zip(self.norms, (self.square, self.column, self.row), strict=True)]
        return parts[0] + parts[1] + parts[2]


class NormThenBorder(nn.Module):
    """A batch norm, and around its map a border of what it makes of zeros."""

    def __init__(self, pixels, channels):
        super().__init__()
        self.bn, self.pad_pixels = nn.BatchNorm2d(channels), pixels

    def forward(self, x):
        p, y = self.pad_pixels, F.pad(self.bn(x), [self.pad_pixels] * 4)
        value = self.bn.bias - self.bn.running_mean * self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        if p:
            value = value.detach().view(1, -1, 1, 1)
            y[:, :, :p], y[:, :, -p:], y[..., :p], y[..., -p:] = value, value, value, value
        return y


class WrongBorder(NormThenBorder):
    def forward(self, x):
        return super().forward(x) + 1


class AroundIdentity(nn.Conv2d):
    """A 1×1 whose weight is learned as what is added to the identity."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1, bias=False)
        self.base = torch.eye(channels).reshape(channels, channels, 1, 1)

    def forward(self, x):
        return F.conv2d(x, self.weight + self.base.to(self.weight), None, 1, 0, 1, self.groups)


class DBB(nn.Module):
    """Source: Ding et al. 2021, arXiv:2103.13425"""

    def __init__(self, i, o, stride=1, border=NormThenBorder):
        super().__init__()
        self.origin = normed(i, o, kernel_size=3, stride=stride, padding=1)
        self.point = normed(i, o, kernel_size=1, stride=stride)
        self.average = nn.Sequential(nn.Conv2d(i, o, 1, bias=False), border(1, o), nn.AvgPool2d(3, stride),
                                     nn.BatchNorm2d(o))  # fmt: skip
        self.two = nn.Sequential(AroundIdentity(i), border(1, i), nn.Conv2d(i, o, 3, stride, bias=False),
                                 nn.BatchNorm2d(o))  # fmt: skip
        self.act = nn.ReLU()

    def forward(self, x):
        out = self.origin(x)
        out += self.point(x)
        out += self.average(x)
        out += self.two(x)
        return self.act(out)


class MobileOne(nn.Module):
    """Source: Vasu et al. 2022, arXiv:2206.04040"""

    def __init__(self, channels, branches=3):
        super().__init__()
        self.many = nn.ModuleList(normed(channels, channels, kernel_size=3, padding=1, groups=channels)
                                  for _ in range(branches))  # fmt: skip
        self.scale, self.skip = normed(channels, channels, kernel_size=1, groups=channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        out = self.scale(x) + self.skip(x)
        for branch in self.many:
            out += branch(x)
        return torch.relu(out)


def residual(i, o, inner):
    return Module(lambda m, x: m.act(m.inner(x) + m.short(x)), inner=inner,
                  short=nn.Identity() if i == o else nn.Conv2d(i, o, 1), act=nn.ReLU())  # fmt: skip


FOLDED = {
    "RepVGG": (lambda: RepVGG(4, 4), "ic4oc4k3x3p1 -> relu"),
    "RepVGG, stride, groups": (lambda: RepVGG(4, 6, 2, 2), "ic4oc6k3x3s2p1g2 -> relu"),
    "ACNet": (lambda: ACNet(4, 6, 2), "ic4oc6k3x3s2p1"),
    "DBB": (lambda: DBB(4, 6), "ic4oc6k3x3p1 -> relu"),
    "DBB, stride": (lambda: DBB(4, 4, 2), "ic4oc4k3x3s2p1 -> relu"),
    "MobileOne": (lambda: MobileOne(4), "ic4oc4k3x3p1g4 -> relu"),
    "identity beside a convolution": (lambda: Module(lambda m, x: x + m.a(x), a=conv(4, 4, 3)), "ic4oc4k3x3p1"),
    "an average beside a convolution": (
        lambda: Module(lambda m, x: m.a(x) + F.avg_pool2d(x, 3, 1, 1), a=conv(4, 4, 5)), "ic4oc4k5x5p2"),
    "concatenated": (lambda: Module(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv(4, 2, 3), b=conv(4, 3, 3)),
                     "ic4oc5k3x3p1"),
    "two of three branches": (
        lambda: Module(lambda m, x: m.a(x) + m.c(m.b(x).relu()) + x, a=conv(4, 4, 3), b=conv(4, 2, 1), c=conv(2, 4, 1)),
        "(ic4oc2k1x1 -> relu -> ic2oc4k1x1 + ic4oc4k3x3p1)"),
    "a block in a residual": (
        lambda: residual(4, 6, nn.Sequential(ACNet(4, 3), nn.ReLU(), conv(3, 6, 3))),
        "(ic4oc3k3x3p1 -> relu -> ic3oc6k3x3p1 + ic4oc6k1x1) -> relu"),
}  # fmt: skip

MERGED = {
    "two convolutions": (lambda: nn.Sequential(conv(4, 6, 3, bias=False), conv(6, 4, 1)), "ic4oc4k3x3p1"),
    "norms and dropout between": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 6, 3), nn.ReLU()),
        "ic4oc6k3x3 -> relu"),
    "inside of a residual": (
        lambda: residual(4, 4, nn.Sequential(conv(4, 4, 3), conv(4, 4, 1), nn.ReLU(), conv(4, 4, 1))),
        "(ic4oc4k3x3p1 -> relu -> ic4oc4k1x1 + identity) -> relu"),
    "average pooling": (lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.AvgPool2d(2)), "ic4oc6k2x2s2"),
    "padding before": (lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(4, 6, 3)), "ic4oc6k3x3p2:1x1:0"),
    "the cheapest of three": (
        lambda: nn.Sequential(conv(4, 2, 1, bias=False), conv(2, 2, 3), conv(2, 8, 1)), None),
    "a bottleneck, its end widened": (
        lambda: nn.Sequential(conv(4, 2, 1), nn.ReLU(), conv(2, 8, 3), conv(8, 3, 1)),
        "ic4oc2k1x1 -> relu -> ic2oc3k3x3p1"),
}  # fmt: skip


def site_of(module, name="", x=X):
    return next(site for site in find_regions(module, x) if site.name == name)


def computed(block, tensors, x=X):
    layer = build(block, dtype=x.dtype, channels=x.shape[1])
    layer.load_state_dict(tensors)
    return layer.eval()(x)


@pytest.mark.parametrize("rule, make, text", [
    pytest.param(rule, make, text, id=f"{rule.name}: {name}")
    for rule, table in ((FOLD, FOLDED), (MERGE, MERGED)) for name, (make, text) in table.items()
])  # fmt: skip
def test_a_module_is_simplified(rule, make, text):
    torch.manual_seed(0)
    module = settled(make())
    site = site_of(module)
    if text is None:
        assert rule.refuse(site) == "one convolution would cost more than its parts: ic4oc2k3x3p1"
        return
    assert rule.refuse(site) is None
    (proposal,) = rule.propose(site)
    assert str(proposal.block) == text
    weights = rule.init(site, proposal)
    expected = module(X)
    assert weights.error <= 1e-12
    assert distance(computed(proposal.block, weights.tensors), expected) <= 1e-12
    assert distance(computed(site.block, site.tensors), expected) <= 1e-12


NOT_SIMPLER = {
    "nothing side by side": (FOLD, lambda: nn.Sequential(conv(4, 4, 3), nn.ReLU()), "it has no branches"),
    "a nonlinear branch": (FOLD, lambda: residual(4, 4, nn.Sequential(conv(4, 4, 3), nn.ReLU())), "it is not linear"),
    "another border than the norm's": (FOLD, lambda: DBB(4, 4, border=WrongBorder), "cannot be traced"),
    "a constant meets zeros": (
        MERGE, lambda: nn.Sequential(conv(4, 4, 1), conv(4, 4, 3)), "a bias before the last kernel meets its padding"),
    "dearer": (MERGE, lambda: nn.Sequential(conv(4, 1, 1, bias=False), conv(1, 4, 3)), "would cost more than its par"),
    "averages that count the border otherwise": (
        MERGE, lambda: nn.Sequential(conv(4, 4, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "counts fewer"),
    "windows over the border": (
        MERGE, lambda: nn.Sequential(conv(4, 4, 1), nn.AvgPool2d(2, ceil_mode=True)), "may stand over the border"),
    "nothing after each other": (MERGE, lambda: RepVGG(4, 4), "no two convolutions follow each other"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_SIMPLER)
def test_why_a_module_is_not_simplified(case):
    rule, make, reason = NOT_SIMPLER[case]
    site = site_of(settled(make()))
    assert reason in rule.refuse(site)
    with pytest.raises(ConvError, match="the rule must be able to serve the site"):
        rule.propose(site)


# -- found -----------------------------------------------------------------------------------------------
def test_modules_are_found_from_the_inside():
    shared = nn.Sequential(conv(4, 4, 1), nn.ReLU())
    net = nn.Sequential(shared, RepVGG(4, 4), nn.Sequential(shared, nn.Flatten())).double()
    found = list(find_regions(net, X))
    assert [s.name for s in found] == ["0", "1.large", "1.small", "1", "2", ""]
    first = found[0]
    assert (first.names, first.modules, [c.input_shape for c in first.calls]) == (
        ("0", "2.0"), ("0", "1"), [(2, 4, 9, 8)] * 2)  # fmt: skip
    assert found[-1].refusal is not None
    assert {s.name for s in find_regions(net, X, wanted=lambda name: "small" in name)} == {"1.small"}


def tied():
    net = nn.Sequential(nn.Sequential(conv(4, 4, 3), nn.ReLU()), nn.Sequential(conv(4, 4, 3)))
    net[1][0].weight = net[0][0].weight
    return net


def watched():
    net = nn.Sequential(nn.Sequential(nn.Sequential(conv(4, 4, 3)), nn.ReLU()))
    net[0][0].register_forward_hook(lambda *_: None)
    return net


UNFIT = {
    "tied": (tied, "its parameters are tied to those of 1.0"),
    "a hook inside": (watched, "a hook watches 0"),
    "a part runs outside": (
        lambda: nn.Sequential(m := nn.Sequential(nn.Sequential(conv(4, 4, 3)), nn.ReLU()), m[0]), "runs outside of it"),
    "two maps": (lambda: Module(lambda m, x: m.a(x)[0], a=Module(lambda m, x: (m.b(x), x), b=conv(4, 4, 1))),
                 "it does not take and give one map"),
    "never runs": (lambda: Module(lambda m, x: m.a[0](x), a=nn.Sequential(conv(4, 4, 1))), "it does not run"),
    "several dtypes": (lambda: nn.Sequential(nn.Sequential(conv(4, 4, 1).bfloat16(), nn.BatchNorm2d(4))),
                       "differ in dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_modules_that_cannot_be_rewritten_as_a_whole(case):
    make, reason = UNFIT[case]
    net = make()
    x = X.to(next(net.parameters()).dtype)
    site = next(s for s in find_regions(net, x) if s.name in ("0", "a"))
    assert reason in site.refusal
    assert all(rule.refuse(site) == site.refusal for rule in (FOLD, MERGE, SKIP, DENSE))


# -- stronger ----------------------------------------------------------------------------------------------
STAGES = {
    "a residual block": lambda: residual(4, 4, nn.Sequential(
        conv(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4, 3))),
    "other channels": lambda: nn.Sequential(conv(4, 3, 3), nn.SiLU(), conv(3, 6, 1), nn.ReLU()),
    "branches": lambda: Module(
        lambda m, x: torch.cat([m.a(x), m.c(m.b(x).relu())], 1), a=conv(4, 2, 1), b=conv(4, 3, 1), c=conv(3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("make", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("rule", [SKIP, DENSE], ids=lambda rule: rule.name)
def test_a_module_becomes_stronger_and_computes_the_same(rule, make):
    torch.manual_seed(0)
    module = settled(make())
    site = site_of(module)
    (proposal,) = rule.propose(site)
    assert parse(str(proposal.block)) == proposal.block
    layer = build(proposal.block, dtype=X.dtype)
    layer.load_state_dict(rule.init(site, proposal).tensors)
    assert distance(layer.eval()(X), module(X)) <= 1e-12
    still = {name for name, _ in layer.train().named_parameters()}
    step = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(2):
        step.zero_grad()
        output = layer(X)
        (output - output.detach().cos()).square().mean().backward()
        still -= {name for name, p in layer.named_parameters() if p.grad.abs().max() > 1e-12}
        step.step()
    assert not still


@pytest.mark.parametrize("make, reason", [
    (lambda: nn.Sequential(conv(4, 4, 3), nn.ReLU()), "no two convolutions with an activation between"),
    (lambda: nn.Sequential(conv(4, 4, 3), conv(4, 4, 3)), "no two convolutions with an activation between"),
    (lambda: nn.Sequential(conv(4, 4, 3), nn.ReLU(), conv(4, 4, 3, stride=2)), "its maps change their size: 9×8 to"),
])  # fmt: skip
def test_why_a_module_becomes_no_stronger(make, reason):
    site = site_of(make().double())
    assert all(reason in rule.refuse(site) for rule in (SKIP, DENSE))


# -- planned -----------------------------------------------------------------------------------------------
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
