"""Rules on whole modules: the same function in a simpler form, or with more to learn."""

import pytest
import torch
from branched import DBB, STAGES, ACNet, MobileOne, RepVGG, WrongBorder, conv, residual, settled
from torch import nn
from torch.nn import functional as F
from wild import Net

from reconv.errors import ConvError
from reconv.layers import build
from reconv.ruleset import rules_named
from reconv.spec import parse
from reconv.surgery import find_regions
from reconv.surgery.outputs import distance

FOLD, MERGE, SKIP, DENSE = rules_named("fold_branches", "merge_linear", "skip", "dense")
X = torch.linspace(-2, 2, 2 * 4 * 9 * 8, dtype=torch.float64).sin().reshape(2, 4, 9, 8)


# -- simpler -----------------------------------------------------------------------------------------------
FOLDED = {
    "RepVGG": (lambda: RepVGG(4, 4), "ic4oc4k3x3p1 -> relu"),
    "RepVGG, stride, groups": (lambda: RepVGG(4, 6, 2, 2), "ic4oc6k3x3s2p1g2 -> relu"),
    "ACNet": (lambda: ACNet(4, 6, 2), "ic4oc6k3x3s2p1"),
    "DBB": (lambda: DBB(4, 6), "ic4oc6k3x3p1 -> relu"),
    "DBB, stride": (lambda: DBB(4, 4, 2), "ic4oc4k3x3s2p1 -> relu"),
    "MobileOne": (lambda: MobileOne(4), "ic4oc4k3x3p1g4 -> relu"),
    "identity beside a convolution": (lambda: Net(lambda m, x: x + m.a(x), a=conv(4, 4, 3)), "ic4oc4k3x3p1"),
    "an average beside a convolution": (
        lambda: Net(lambda m, x: m.a(x) + F.avg_pool2d(x, 3, 1, 1), a=conv(4, 4, 5)), "ic4oc4k5x5p2"),
    "concatenated": (lambda: Net(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv(4, 2, 3), b=conv(4, 3, 3)),
                     "ic4oc5k3x3p1"),
    "two of three branches": (
        lambda: Net(lambda m, x: m.a(x) + m.c(m.b(x).relu()) + x, a=conv(4, 4, 3), b=conv(4, 2, 1), c=conv(2, 4, 1)),
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
    "two maps": (lambda: Net(lambda m, x: m.a(x)[0], a=Net(lambda m, x: (m.b(x), x), b=conv(4, 4, 1))),
                 "it does not take and give one map"),
    "never runs": (lambda: Net(lambda m, x: m.a[0](x), a=nn.Sequential(conv(4, 4, 1))), "it does not run"),
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
