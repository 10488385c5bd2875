"""Channels that are the same are removed together, in every module that has them; the rest of the network stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import FakeTarget, grid
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.data import Batch
from reconv.errors import ConvError
from reconv.planning.candidates import Candidate
from reconv.planning.edits import restructure, with_data
from reconv.planning.make import plan
from reconv.planning.plan import Edit, Plan
from reconv.planning.search import cheapest, choose
from reconv.planning.together import exclude, in_turn
from reconv.rewriting.apply import apply
from reconv.ruleset import Proposal, rules_named
from reconv.ruleset.prune_channels import _size
from reconv.spec import parse
from reconv.surgery import Site, clone, find_sites
from reconv.surgery.channels import channels_of
from reconv.surgery.kin import change, remade, text_of
from reconv.surgery.outputs import distance

(PRUNE,) = rules_named("prune_channels")
INPUT = grid(2, 3, 12, 12)


def conv(into: int, out: int, k: int = 3, **others: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, k, padding=k // 2, **others)  # type: ignore[arg-type]


class Net(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def built(run, **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = Net(run, **layers)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net.eval()


def residual() -> nn.Module:
    return built(lambda m, x: m.c(F.relu((y := F.relu(m.n(m.a(x)))) + m.b(y))),
                 a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 8), c=conv(8, 4))  # fmt: skip


def concatenated() -> nn.Module:
    return built(lambda m, x: m.c(torch.cat([F.relu(m.a(x)), m.b(x)], 1)), a=conv(3, 8), b=conv(3, 6), c=conv(14, 4))


def partly_residual() -> nn.Module:
    return built(lambda m, x: m.c(m.a(x) + torch.cat([m.b(x), m.d(x)], 1)),
                 a=conv(3, 8), b=conv(3, 4), d=conv(3, 4), c=conv(8, 4))  # fmt: skip


def depthwise() -> nn.Module:
    return built(lambda m, x: m.c(F.hardswish(m.n(m.d(m.a(x))))),
                 a=conv(3, 8, 1), d=conv(8, 16, groups=8), n=nn.BatchNorm2d(16), c=conv(16, 4, 1))  # fmt: skip


def grouped() -> nn.Module:
    return built(lambda m, x: m.c(F.relu(m.g(m.a(x)))), a=conv(3, 8), g=conv(8, 12, groups=2), c=conv(12, 4))


def shuffled() -> nn.Module:
    def run(m, x):
        y = m.a(x)
        y = y.view(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return m.c(m.g(y))

    return built(run, a=conv(3, 8), g=conv(8, 8, groups=2), c=conv(8, 4))


def halves() -> nn.Module:
    def run(m, x):
        a, b = m.a(x).chunk(2, 1)
        return m.c(a * torch.sigmoid(b))

    return built(run, a=conv(3, 16), c=conv(8, 4))


def flattened() -> nn.Module:
    return built(lambda m, x: m.f(F.adaptive_avg_pool2d(m.a(x), 3).flatten(1)), a=conv(3, 8), f=nn.Linear(72, 5))


def gated() -> nn.Module:
    return built(lambda m, x: m.c((y := m.a(x)) * torch.sigmoid(m.t(F.relu(m.s(y.mean((2, 3), keepdim=True)))))),
                 a=conv(3, 8), s=conv(8, 4, 1), t=conv(4, 8, 1), c=conv(8, 4))  # fmt: skip


def gated_by_linear() -> nn.Module:
    return built(lambda m, x: m.c((y := m.a(x)) * torch.sigmoid(m.t(m.s(y.mean((2, 3)))))[:, :, None, None]),
                 a=conv(3, 8), s=nn.Linear(8, 4), t=nn.Linear(4, 8), c=conv(8, 4))  # fmt: skip


def shared() -> nn.Module:
    return built(lambda m, x: m.c(m.b(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))


def transposed() -> nn.Module:
    return built(lambda m, x: m.c(m.t(m.a(x))), a=conv(3, 8), t=nn.ConvTranspose2d(8, 8, 3, 2, groups=2), c=conv(8, 4))


def upsampled() -> nn.Module:
    return built(lambda m, x: m.c(F.pad(F.interpolate(F.max_pool2d(m.a(x), 2), scale_factor=2), (1, 1, 1, 1))),
                 a=conv(3, 8), c=conv(8, 4))  # fmt: skip


def decided() -> nn.Module:
    return built(lambda m, x: m.c(F.relu(m.a(x)) if x.sum() > 0 else m.b(x).flip(-1)),
                 a=conv(3, 8), b=conv(3, 8), c=conv(8, 4))  # fmt: skip


NETS = {  # a network: its site that is pruned, and what the modules are with half of the channels
    residual: ("a", {"a": "ic3oc4k3x3p1", "n": "norm(4)", "b": "ic4oc4k3x3p1", "c": "ic4oc4k3x3p1"}),
    concatenated: ("b", {"b": "ic3oc3k3x3p1", "c": "ic11oc4k3x3p1"}),
    partly_residual: ("a", {"a": "ic3oc4k3x3p1", "b": "ic3oc2k3x3p1", "d": "ic3oc2k3x3p1", "c": "ic4oc4k3x3p1"}),
    depthwise: ("a", {"a": "ic3oc4k1x1", "d": "ic4oc8k3x3p1g4", "n": "norm(8)", "c": "ic8oc4k1x1"}),
    grouped: ("g", {"g": "ic8oc6k3x3p1g2", "c": "ic6oc4k3x3p1"}),
    shuffled: ("a", {"a": "ic3oc4k3x3p1", "g": "ic4oc8k3x3p1g2"}),
    halves: ("a", {"a": "ic3oc8k3x3p1", "c": "ic4oc4k3x3p1"}),
    flattened: ("a", {"a": "ic3oc4k3x3p1", "f": "linear(36, 5)"}),
    gated: ("a", {"a": "ic3oc4k3x3p1", "s": "ic4oc4k1x1", "t": "ic4oc4k1x1", "c": "ic4oc4k3x3p1"}),
    gated_by_linear: ("a", {"a": "ic3oc4k3x3p1", "s": "linear(4, 4)", "t": "linear(4, 4)", "c": "ic4oc4k3x3p1"}),
    shared: ("a", {"a": "ic3oc4k3x3p1", "b": "ic4oc4k3x3p1", "c": "ic4oc4k3x3p1"}),
    transposed: ("t", {"t": "ic8oc4k3x3s2g2t", "c": "ic4oc4k3x3p1"}),
    upsampled: ("a", {"a": "ic3oc4k3x3p1", "c": "ic4oc4k3x3p1"}),
    decided: ("a", {"a": "ic3oc4k3x3p1", "b": "ic3oc4k3x3p1", "c": "ic4oc4k3x3p1"}),
}  # fmt: skip


def site_of(net: nn.Module, name: str, data: bool = False) -> Site:
    sites = find_sites(net, INPUT).sites
    sites = with_data(sites, [Batch((INPUT,))]) if data else sites
    return next(site for site in sites if site.name == name)


def texts(site: Site, proposal: Proposal) -> dict[str, str]:
    return {site.name: str(proposal.block), **dict(proposal.also)}


def made(net: nn.Module, site: Site, proposal: Proposal) -> nn.Module:
    weights = PRUNE.init(site, proposal)
    return change(clone(net), tuple(texts(site, proposal).items()), {site.name: weights.tensors, **weights.also})


def half(site: Site) -> Proposal:
    return next(iter(PRUNE.propose(site)))


# -- what changes with a site --------------------------------------------------------------------------
@pytest.mark.parametrize("data", [False, True], ids=["by weights", "by samples"])
@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_half_of_the_channels_go_everywhere(make, data):
    name, expected = NETS[make]
    net = make()
    site = site_of(net, name, data)
    assert PRUNE.refuse(site) is None
    proposal = half(site)
    assert texts(site, proposal) == expected
    with torch.no_grad():
        before, after = net(INPUT), made(net, site, proposal)(INPUT)
    assert before.shape == after.shape
    assert 0 < PRUNE.init(site, proposal).error < 1
    assert 0 < distance(after, before) < 1.5


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_all_channels_kept_is_the_same_network(make):
    net = make()
    site = site_of(net, NETS[make][0])
    (proposal,) = PRUNE.full(site)
    assert proposal.block == site.block
    assert PRUNE.init(site, proposal).error == 0
    with torch.no_grad():
        assert distance(made(net, site, proposal)(INPUT), net(INPUT)) < 1e-6


@pytest.mark.parametrize("data", [False, True], ids=["by weights", "by samples"])
@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_channels_that_nobody_reads_go_first_and_are_not_missed(make, data):
    net = make()
    channels = channels_of(net, (INPUT,))
    name = NETS[make][0]
    own = [r for r in dict.fromkeys(channels.leaves[name].outs.tolist())]
    dead = set(own[::2])  # the classes of every network here lie so that this is half of each
    for leaf, each in channels.leaves.items():
        module = net.get_submodule(leaf)
        if each.kind in ("conv", "linear"):
            mask = torch.tensor([r in dead for r in each.ins.tolist()])
            with torch.no_grad():
                if isinstance(module, nn.ConvTranspose2d):
                    module.weight[mask] = 0
                elif getattr(module, "groups", 1) == 1:
                    module.weight[:, mask] = 0
                else:
                    module.weight[:, mask[: module.weight.shape[1]]] = 0
    site = site_of(net, name, data)
    proposal = half(site)
    weights = PRUNE.init(site, proposal)
    with torch.no_grad():
        assert distance(made(net, site, proposal)(INPUT), net(INPUT)) < 1e-5
    assert weights.error < 1e-3


def test_whichever_way_the_network_takes_it_has_the_same_channels():
    net = decided()
    with torch.no_grad():  # one way reads these and the other way gives none of those
        net.a.weight[4:], net.a.bias[4:], net.b.weight[4:], net.b.bias[4:] = 0, 0, 0, 0
    image = INPUT if INPUT.sum() > 0 else -INPUT
    site = next(site for site in find_sites(net, image).sites if site.name == "a")
    student = made(net, site, half(site))
    for x in (image, -image):
        assert distance(student(x), net(x)) < 1e-6


REFUSED = {
    "output": (lambda: built(lambda m, x: m.a(x), a=conv(3, 8)),
               "its channels must stay: they are the network's output"),
    "input": (lambda: built(lambda m, x: m.c(m.a(x) + x), a=conv(3, 3), c=conv(3, 4)),
              "its channels must stay: they are the network's input"),
    "later": (residual, "its channels are those of a, which gives them first"),
    "softmax": (lambda: built(lambda m, x: m.c(m.a(x).softmax(1)), a=conv(3, 8), c=conv(8, 4)),
                "its channels must stay: _softmax takes them, which is not followed"),
    "group norm": (lambda: built(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 8), n=nn.GroupNorm(2, 8), c=conv(8, 4)),
                   "its channels must stay: native_group_norm takes them, which is not followed"),
    "sliced": (lambda: built(lambda m, x: m.c(m.a(x)[:, :4]), a=conv(3, 8), c=conv(4, 4)),
               "its channels must stay: slice cuts the channels"),
    "control flow": (lambda: built(lambda m, x: m.c(m.a(x) if x.sum() > -1e9 else x), a=conv(3, 8), c=conv(8, 4)),
                     "the forward pass decides by values, so that its channels are not certain: in another way its "
                     "channels cannot be followed: RuntimeError: "),
    "decides often": (lambda: built(lambda m, x: m.c(sum(m.a(x) for row in x[0, 0] if row.sum() > -1e9)),
                                    a=conv(3, 8), c=conv(8, 4)),
                      "the forward pass decides by values, so that its channels are not certain: there are more than"),
    "decides on and on": (lambda: built(lambda m, x: m.c(sum(m.a(x) for row in x.flatten() if row > -1e9)),
                                        a=conv(3, 8), c=conv(8, 4)),
                          "its channels cannot be followed: RuntimeError: more than 16 decisions by values"),
    "reads a value": (lambda: built(lambda m, x: m.c(m.a(x) * x.sum().item()), a=conv(3, 8), c=conv(8, 4)),
                      "the forward pass computes with values that it reads, so that its channels are not certain"),
    "other way": (lambda: built(lambda m, x: m.c(m.a(x)) if x.sum() > -1e9 else m.c(m.a(x).softmax(1)),
                                a=conv(3, 8), c=conv(8, 4)),
                  "its channels must stay: _softmax takes them, which is not followed"),
    "literal": (lambda: built(lambda m, x: m.f(m.a(x).mean((2, 3)).view(-1, 8)), a=conv(3, 8), f=nn.Linear(8, 4)),
                "without channels, the network fails: RuntimeError: mat1 and mat2"),
    "one": (lambda: built(lambda m, x: m.c(m.a(x)), a=conv(3, 1), c=conv(1, 4)),
            "it has one channel that could go: it must stay"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(case):
    make, reason = REFUSED[case]
    site = site_of(make(), "b" if case == "later" else "a")
    assert PRUNE.refuse(site).startswith(reason)
    with pytest.raises(ConvError, match="the rule must be able to serve the site"):
        PRUNE.propose(site)


def test_a_site_without_its_network_is_refused():
    site = replace(site_of(residual(), "a"), around=None)
    assert PRUNE.refuse(site) == "its network is not known, or has changed around it"


def test_a_proposal_of_another_size_is_foreign():
    site = site_of(residual(), "a")
    with pytest.raises(ConvError, match="must be one that the rule makes"):
        PRUNE.init(site, replace(half(site), also=(("n", "norm(5)"),)))


@pytest.mark.parametrize("make, sizes", [(nn.Linear, [6.0, 24.0, 38.0]), (nn.Conv1d, [6.0, 24.0, 38.0]),
                                         (nn.ConvTranspose1d, [18.0, 12.0, 38.0])])  # fmt: skip
def test_channels_are_as_large_as_weights_and_bias_tell(make, sizes):
    """Two inputs, three outputs: the sum of squares."""
    module = make(2, 3, *[1] * (make is not nn.Linear))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2], [2, -4], [2, 5]]).reshape(module.weight.shape))
        module.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert _size(module, 3) == pytest.approx(sizes)


def test_samples_choose_better_than_weights():
    """Half of the channels say nearly what others say; only the samples tell which."""
    net = residual()
    with torch.no_grad():
        net.a.weight[4:] = net.a.weight[:4]
        net.a.bias[4:] = net.a.bias[:4]
        for tensor in net.n.state_dict().values():
            if tensor.ndim:
                tensor[4:] = tensor[:4]
        net.b.weight.zero_()
        net.b.bias.zero_()
        apart = []
        for data in (False, True):
            site = site_of(net, "a", data)
            apart.append(distance(made(net, site, half(site))(INPUT), net(INPUT)))
    assert apart[1] < 0.02 < apart[0]


# -- modules beside a site -----------------------------------------------------------------------------
FORMS = [(nn.Conv2d(4, 6, 3), "ic4oc3k3x3"), (nn.BatchNorm1d(8), "norm(5)"), (nn.Linear(8, 3), "linear(6, 2)"),
         (nn.MaxPool2d(3, 2, 1), "maxpool(k3x3s1x1p2x2d2x2)")]  # fmt: skip


@pytest.mark.parametrize("module, text", FORMS, ids=lambda each: str(each))
def test_texts_of_modules_and_modules_of_texts_are_inverse(module, text):
    new = remade("it", module, text)
    assert text_of(new) == text
    assert text_of(remade("it", new, text_of(module))) == text_of(module)


@pytest.mark.parametrize("text", ["norm(x)", "norm(4", "linear(4)", "ic4oc3k3x3", "maxpool(k3)", ""])
def test_a_text_of_another_kind_is_an_error(text):
    with pytest.raises(ConvError):
        remade("it", nn.BatchNorm2d(4), text)


# -- plans ---------------------------------------------------------------------------------------------
def stacked() -> nn.Module:
    layers = []
    for into, out in ((3, 16), (16, 16), (16, 16), (16, 16)):
        layers += [conv(into, out), nn.BatchNorm2d(out), nn.ReLU()]
    return built(lambda m, x: m.f(m.s(x).mean((2, 3))), s=nn.Sequential(*layers), f=nn.Linear(16, 4))


@pytest.mark.parametrize("data", [None, torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))])
@pytest.mark.parametrize("rules, budget", [
    ("prune_channels", "macs=0.4"), ("prune_channels", "params=0.5"), (("exact", "smaller"), "macs=0.4"),
    (("exact", "prune_channels", "separable"), "latency=0.4"),
])  # fmt: skip
def test_a_plan_holds_and_reloads(rules, budget, data, tmp_path):
    net = stacked()
    made = plan(net, INPUT, budget, data=data, rules=rules, target=FakeTarget())
    assert made.met, made.reason
    assert rules != "prune_channels" or any(e.also for e in made.edits)
    exact = {r.name for r in rules_named("exact")}
    chosen = [e for e in made.edits if e.rule not in exact]
    assert not any(exclude(a, b) for a in chosen for b in chosen if a is not b)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    student = apply(net, made, INPUT, data)
    with torch.no_grad():
        output = student(INPUT)
        again = restructure(net, made)
        again.load_state_dict(student.state_dict())
        assert torch.equal(again.eval()(INPUT), output)
    if budget == "macs=0.4":
        macs = lambda m: sum(c.macs for c in find_sites(m, INPUT).calls)  # noqa: E731
        assert macs(student) <= 0.41 * macs(net)


def test_edits_of_neighbours_add_up():
    net = stacked()
    sites = {s.name: s for s in find_sites(net, INPUT).sites}
    edits = [Edit(n, "prune_channels", (p := half(sites[n])).block, also=p.also) for n in ("s.0", "s.3")]
    turned = in_turn(edits, sites)
    assert [str(e.block) for e in turned] == ["ic3oc8k3x3p1", "ic8oc8k3x3p1"]
    assert dict(turned[1].also) == {"s.4": "norm(8)", "s.6": "ic8oc16k3x3p1"}
    student = apply(net, Plan(turned), INPUT)
    assert student(INPUT).shape == net(INPUT).shape
    with pytest.raises(ConvError):  # these were made each for the network as it was
        apply(net, Plan(tuple(edits)), INPUT)


def test_no_choice_holds_edits_that_exclude_each_other():
    prune = Edit("a", "prune_channels", parse("ic4oc2k1"), also=(("b", "ic2oc4k1"),))
    other = Edit("b", "separable", parse("ic4oc4k1"))
    also = Edit("b", "prune_channels", parse("ic4oc2k1"), also=(("c", "ic2oc4k1"),))

    def row(site: str, *edits: Edit) -> list[Candidate]:
        return [Candidate(site, e, {"latency": 1.0 if e else 2.0}, 0.1 if e else 0.0) for e in (None, *edits)]

    both = {"a": row("a", prune), "b": row("b", other)}
    assert choose(both, {"latency": 2.0}) is None
    assert sum(c.edit is not None for c in choose(both, {"latency": 3.0}).values()) == 1
    assert sum(c.edit is not None for c in cheapest(both, ["latency"]).values()) == 1
    adding = {"a": row("a", prune), "b": row("b", also)}
    assert [c.edit for c in choose(adding, {"latency": 2.0}).values()] == [prune, also]
