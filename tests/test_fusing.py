"""A ReLU that nobody else needs is known, so that exact rules may fuse it and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from fakes import grid
from torch import Tensor, nn
from torch.nn import functional as F
from wild import IMAGE, Net, conv, hooked, norm, pre_hooked

from reconv.layers import build
from reconv.planning.edits import current, place
from reconv.spec import parse
from reconv.surgery import clone, find_sites
from reconv.surgery.outputs import tensors_in


class Leak(nn.ReLU):
    """More than its type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x


def with_relu(forward: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    """A network of a convolution, a ReLU and what is given besides."""
    return lambda: Net(forward, **{"conv": conv(), "relu": nn.ReLU()} | parts)


def replaced_relu() -> nn.Module:
    made = nn.ReLU()
    made.forward = lambda x: x + 1
    return made


def conv_relu_conv(relu: nn.Module, *between: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(), *between, relu, conv(4, 4))


class Fusing(NamedTuple):
    make: Callable[[], nn.Module]
    kinds: tuple[str | None, ...]  # of each site
    shape: tuple[int, ...] = IMAGE


FUSING = {
    "plain": Fusing(conv_relu_conv(nn.ReLU()), ("relu", None)),
    "in place": Fusing(conv_relu_conv(nn.ReLU(inplace=True)), ("relu", None)),
    "behind a batch norm": Fusing(conv_relu_conv(nn.ReLU(), norm()), ("relu", None)),
    "behind a batch norm, in place": Fusing(conv_relu_conv(nn.ReLU(True), norm()), ("relu", None)),
    "behind a dropout": Fusing(conv_relu_conv(nn.ReLU(), nn.Dropout()), ("relu", None)),
    "1D, strided": Fusing(lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2), nn.ReLU()), ("relu",), (2, 3, 9)),
    "3D, reflected": Fusing(
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1, padding_mode="reflect", groups=2), nn.ReLU()),
        ("relu",), (1, 2, 5, 4, 3)),
    "transposed, dilated": Fusing(
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, dilation=(1, 2)), nn.ReLU()), ("relu",)),
    "each convolution its own": Fusing(
        lambda: nn.Sequential(conv(), nn.ReLU(), conv(4, 4), norm(), nn.ReLU(), conv(4, 2)), ("relu", "relu", None)),
    "a convolution run twice, its ReLU as well": Fusing(
        with_relu(lambda s, x: s.relu(s.conv(x)) + s.relu(s.conv(2 * x))), ("relu",)),
    "a batch norm run twice, its ReLU as well": Fusing(
        with_relu(lambda s, x: s.relu(s.bn(s.conv(x))) + s.relu(s.bn(s.conv(2 * x))), bn=norm()), ("relu",)),
    "under two names": Fusing(lambda: (lambda r: Net(
        lambda s, x: s.b(s.conv(x)), conv=conv(), a=r, b=r))(nn.ReLU()), ("relu",)),
    "the result used twice": Fusing(with_relu(lambda s, x: (lambda y: (y, y + 1))(s.relu(s.conv(x)))), ("relu",)),
    "in place, then the input's name used": Fusing(
        with_relu(lambda s, x: (lambda y: s.relu(y) + y)(s.conv(x)), relu=nn.ReLU(True)), ("relu",)),
    "shared by two convolutions": Fusing(
        with_relu(lambda s, x: s.relu(s.two(s.relu(s.conv(x)))), two=conv(4, 4)), (None, None)),
    "shared with a batch norm's": Fusing(
        with_relu(lambda s, x: s.relu(s.conv(x)) + s.relu(s.bn(s.two(x))), two=conv(), bn=norm()), (None, None)),
    "shared with what is no convolution": Fusing(with_relu(lambda s, x: s.relu(s.conv(s.relu(x)))), (None,)),
    "a convolution run twice, activated once": Fusing(
        with_relu(lambda s, x: s.relu(s.conv(x)) + s.conv(2 * x)), (None,)),
    "functional": Fusing(with_relu(lambda s, x: F.relu(s.conv(x))), (None,)),
    "its forward called as a function": Fusing(with_relu(lambda s, x: s.relu.forward(s.conv(x))), (None,)),
    "another activation": Fusing(conv_relu_conv(nn.ReLU6()), (None, None)),
    "a subclass": Fusing(conv_relu_conv(Leak()), (None, None)),
    "forward replaced on the object": Fusing(conv_relu_conv(replaced_relu()), (None, None)),
    "hooked ReLU": Fusing(conv_relu_conv(hooked(nn.ReLU())), (None, None)),
    "pre-hooked ReLU": Fusing(lambda: conv_relu_conv(pre_hooked(nn.ReLU()))(), (None, None)),
    "hooked convolution": Fusing(lambda: nn.Sequential(hooked(conv()), nn.ReLU()), (None,)),
    "hooked batch norm": Fusing(lambda: nn.Sequential(conv(), hooked(norm()), nn.ReLU()), (None,)),
    "hook on what holds the convolution": Fusing(
        lambda: nn.Sequential(hooked(nn.Sequential(conv(), norm())), nn.ReLU()), (None,)),
    "hook on what holds the ReLU": Fusing(
        lambda: nn.Sequential(conv(), hooked(nn.Sequential(nn.ReLU()))), (None,)),
    "hook on what holds both": Fusing(lambda: nn.Sequential(hooked(nn.Sequential(conv(), nn.ReLU()))), ("relu",)),
    "read twice": Fusing(with_relu(lambda s, x: (lambda y: s.relu(y) + y)(s.conv(x))), (None,)),
    "read twice by the ReLU": Fusing(with_relu(lambda s, x: (lambda y: s.relu(y) + s.relu(y))(s.conv(x))), (None,)),
    "pre-activation returned": Fusing(with_relu(lambda s, x: (lambda y: (s.relu(y), y))(s.conv(x))), (None,)),
    "pre-activation behind a batch norm returned": Fusing(
        with_relu(lambda s, x: (lambda y: (s.relu(y), y))(s.bn(s.conv(x))), bn=norm()), (None,)),
    "decides by values": Fusing(with_relu(lambda s, x: s.relu(s.conv(x)) if x.sum() > -99 else s.conv(x)), (None,)),
    "fused already": Fusing(lambda: nn.Sequential(build(parse("ic3oc4k3x3 -> relu"))), (None,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSING)
def test_a_relu_that_nobody_else_needs_is_known(name):
    case = FUSING[name]
    model = case.make().eval()
    sites = find_sites(model, torch.zeros(*case.shape)).sites
    assert tuple(site.activation_kind for site in sites) == case.kinds
    assert all(site.activation for site in sites if site.activation_kind)


@pytest.mark.parametrize("name", FUSING)
@pytest.mark.usefixtures("torch_alone")
def test_exact_rules_change_nothing(name):
    """Where there is no batch norm, not a bit of whole numbers; and ReLUs that serve others stay."""
    from reconv.ruleset import rules_named

    case = FUSING[name]
    torch.manual_seed(0)
    model, x = case.make().eval(), grid(*case.shape).mul(8).round()
    exact = not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for p in model.parameters() if exact else ():
        p.data.mul_(8).round_()
    student, fused = clone(model), []
    for site in find_sites(model, x).sites:
        for rule in rules_named("exact"):
            if rule.refuse(site) is None:
                (proposal,) = rule.propose(site)
                tensors = rule.init(site, proposal).tensors
                student = place(student, site.names, proposal.block, tensors, proposal.absorbs)
                site = current(student, {"it": site.after(proposal.block, tensors, proposal.absorbs)})["it"]
                fused += [site.name] if rule.name == "fuse_activation" else []
    assert len(fused) == len(case.kinds) - case.kinds.count(None)
    relus = sum(type(m) is nn.ReLU for m in model.modules())
    assert sum(type(m) is nn.ReLU for m in student.modules()) == relus  # each in its place, or in a chain
    bounds = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(tensors_in(student(x.clone())), tensors_in(model(x.clone())), **bounds)
