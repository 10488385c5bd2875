"""`trim` of channels that do nothing: the same function, in fewer numbers."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTarget
from test_atrous import Net, conv
from torch import nn
from torch.nn import functional as F

from reconv.planning.edits import restructure
from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.rewriting.apply import apply
from reconv.ruleset import rules_named
from reconv.surgery import find_sites

(TRIM,) = rules_named("trim")
IMAGE = torch.randint(-3, 4, (2, 3, 9, 8), generator=torch.Generator().manual_seed(2)).float()


def spoiled(net: nn.Module, rows=(), columns=(), biases=(), scales=()) -> nn.Module:
    """Weights and biases made zero; no others are."""
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor[tensor == 0] = 1
            tensor.copy_(tensor.abs() if name.endswith("bias") else tensor)
        for name, out in rows:
            net.get_submodule(name).weight[out] = 0
        for name, into in columns:
            net.get_submodule(name).weight[:, into] = 0
        for name, out in biases:
            net.get_submodule(name).bias[out] = 0
        for name, out in scales:
            net.get_submodule(name).weight[out] = 0
            net.get_submodule(name).bias[out] = -1
    return net.eval()


def plain(k: int = 3, **others) -> nn.Module:
    return Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 6), b=conv(6, 2, k, **others))


def normed() -> nn.Module:
    return Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 6, bias=False), n=nn.BatchNorm2d(6), b=conv(6, 2))


def summed() -> nn.Module:
    return Net(lambda m, x: m.c(F.relu(m.a(x) + m.b(x))), a=conv(3, 6), b=conv(3, 6, 1), c=conv(6, 2))


def joined() -> nn.Module:
    return Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 4, 1), c=conv(8, 2))


def depthwise() -> nn.Module:
    return Net(lambda m, x: m.c(F.relu(m.d(m.a(x)))), a=conv(3, 6), d=conv(6, 6, groups=6), c=conv(6, 2, 1))


def grouped() -> nn.Module:
    return Net(lambda m, x: m.g(m.a(x)), a=conv(3, 6), g=conv(6, 4, groups=2))


def flat() -> nn.Module:
    return Net(lambda m, x: m.f(F.relu(m.a(x)).mean((2, 3))), a=conv(3, 6), f=nn.Linear(6, 3))


CASES = {  # network, site -> what it and the others become; nothing where nothing may go
    "read by nobody": (spoiled(plain(), columns=[("b", [1, 4])]), "a", "ic3oc4k3x3p1", {"b": "ic4oc2k3x3p1"}),
    "zero behind the activation": (spoiled(plain(), rows=[("a", [0, 5])], biases=[("a", [0, 5])]), "a", "ic3oc4k3x3p1",
                                   {"b": "ic4oc2k3x3p1"}),
    "a constant, not padded": (spoiled(plain(1), rows=[("a", [0, 2, 5])]), "a", "ic3oc3k3x3p1", {"b": "ic3oc2k1x1"}),
    "a constant, no bias to take it": (spoiled(plain(1, bias=False), rows=[("a", [0, 2, 5])]), "a", "ic3oc3k3x3p1",
                                       {"b": "ic3oc2k1x1"}),
    "a constant, replicated": (spoiled(plain(padding_mode="replicate"), rows=[("a", [0, 2, 5])]), "a", "ic3oc3k3x3p1",
                               {"b": "ic3oc2k3x3p1mreplicate"}),
    "all channels": (spoiled(plain(), rows=[("a", slice(None))], biases=[("a", slice(None))]), "a", "ic3oc1k3x3p1",
                     {"b": "ic1oc2k3x3p1"}),
    "a scale of zero": (spoiled(normed(), scales=[("n", [1, 2])]), "a", "ic3oc4k3x3p1nb",
                        {"n": "norm(4)", "b": "ic4oc2k3x3p1"}),
    "both of a sum": (spoiled(summed(), rows=[("a", [1, 2]), ("b", [1])], biases=[("a", [1]), ("b", [1])]), "a",
                      "ic3oc5k3x3p1", {"b": "ic3oc5k1x1", "c": "ic5oc2k3x3p1"}),
    "one of a concatenation": (spoiled(joined(), columns=[("c", [1, 5])]), "a", "ic3oc3k3x3p1", {"c": "ic7oc2k3x3p1"}),
    "through a depthwise": (spoiled(depthwise(), columns=[("c", [3])]), "a", "ic3oc5k3x3p1",
                            {"d": "ic5oc5k3x3p1g5", "c": "ic5oc2k1x1"}),
    "as many in each group": (spoiled(grouped(), columns=[("g", [1])]), "a", "ic3oc4k3x3p1", {"g": "ic4oc4k3x3p1g2"}),
    "before a linear layer": (spoiled(flat(), rows=[("a", [2, 3])]), "a", "ic3oc4k3x3p1", {"f": "linear(4, 3)"}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_dead_channels_go_and_nothing_else_changes(case):
    net, name, block, also = CASES[case]
    site = next(s for s in find_sites(net, IMAGE).sites if s.name == name)
    (proposal,) = TRIM.full(site)
    assert (str(proposal.block), dict(proposal.also)) == (block, also)
    made = plan(net, IMAGE, "error=1e-4", rules="trim", target=FakeTarget())
    made = made if made.edits else Plan.from_dict({"format": 1, "edits": [
        {"site": name, "rule": "trim", "block": block, "also": also}]})  # fmt: skip
    student = apply(net, Plan.from_dict(made.to_dict()), IMAGE)
    for x in (IMAGE, -IMAGE.flip(0)):
        torch.testing.assert_close(student(x), net(x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in net.parameters())
    again = restructure(net, made)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(IMAGE), student(IMAGE))


STAYS = {
    "a constant that is padded": spoiled(plain(), rows=[("a", [0])]),
    "one of a sum": spoiled(summed(), rows=[("a", [1])], biases=[("a", [1])]),
    "read by another": spoiled(Net(lambda m, x: m.b(y := m.a(x)) + m.c(y), a=conv(3, 6), b=conv(6, 2), c=conv(6, 2)),
                               columns=[("b", [1])]),
    "in one group of two": spoiled(grouped(), rows=[("a", [0])], biases=[("a", [0])]),
    "the output": spoiled(Net(lambda m, x: m.a(x), a=conv(3, 6)), rows=[("a", [0])], biases=[("a", [0])]),
    "only dead on this image": spoiled(plain()),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_dead_for_certain_stays(case):
    site, *_ = find_sites(STAYS[case], IMAGE).sites
    with torch.no_grad():
        if case == "only dead on this image":
            STAYS[case].a.bias[0] = -1000
            site, *_ = find_sites(STAYS[case], IMAGE).sites
    assert TRIM.refuse(site) == "no border of its kernel is zero in all channels"


@torch.no_grad()
def test_a_plan_trims_where_it_measures_faster():
    net = CASES["read by nobody"][0]
    made = plan(net, IMAGE, rules="exact", target=FakeTarget())
    assert {e.site: dict(e.also) for e in made.edits if e.rule == "trim"} == {"a": {"b": "ic4oc2k3x3p1"}}
    torch.testing.assert_close(apply(net, made, IMAGE)(IMAGE), net(IMAGE))
