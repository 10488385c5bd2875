"""Networks as they are found in the wild: each convolution is found, swapped or refused; the original stays."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from fakes import grid, whole_numbers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from reconv.errors import ConvError
from reconv.layers import build
from reconv.planning.edits import current, place
from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.spec import parse
from reconv.surgery import applied, clone, find_sites, fresh, swap, tensors_of
from reconv.surgery.outputs import distance, squared_distance, tensors_in

IMAGE = (2, 3, 9, 7)


# the networks ------------------------------------------------------------------------------------


class Net(nn.Module):
    """Parts as given, and a forward as given: forward(self, x)."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(into: int = 3, out: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, **{"padding": 1} | options)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.running_mean.copy_(torch.arange(channels) / 4)
        made.running_var.copy_(1 + torch.arange(channels) / 2)
        made.weight.copy_(1 - torch.arange(channels) / 8)
    return made


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


class Standardised(nn.Conv2d):
    """More than its convolution: the weight is standardised first."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class Plain(nn.Conv2d):
    """A subclass that only adds a method."""

    def fan_in(self) -> int:
        return self.in_channels * 9


class Pruning(prune.BasePruningMethod):
    """A user's own pruning: every other number."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def pruned(method: Callable[[nn.Module], Any]) -> nn.Module:
    made = conv()
    method(made)
    return made


def tied() -> nn.Module:
    first, second = conv(4, 4), conv(4, 4)
    second.weight = first.weight
    return nn.Sequential(conv(), first, nn.ReLU(), second)


def shared_convolution() -> nn.Module:
    inner = conv(4, 4)
    return nn.Sequential(conv(), inner, nn.ReLU(), inner)


def hooked(module: nn.Module, hook: Callable[..., Any] = lambda *args: None, **options: Any) -> nn.Module:
    module.register_forward_hook(hook, **options)
    return module


def twice_under_one_norm() -> nn.Module:
    return Net(lambda s, x: s.bn(s.conv(x)) + s.bn(s.conv(2 * x)), conv=conv(), bn=norm())


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    names: tuple[str, ...]  # of the sites, in the order of their first run
    refusals: Mapping[str, str] = MappingProxyType({})  # site -> part of the reason why it cannot be swapped
    norms: Mapping[str, str] = MappingProxyType({})  # site -> its batch norm, or part of the reason why it has none
    functional: tuple[str, ...] = ()
    shape: tuple[int, ...] = IMAGE


CASES = {
    "plain": Case(lambda: nn.Sequential(conv(), norm(), nn.ReLU()), ("0",), norms={"0": "=1"}),
    "the root is the convolution": Case(conv, ("",)),
    "no batch norm": Case(lambda: nn.Sequential(conv(), nn.ReLU()), ("0",), norms={"0": "no batch norm alone"}),
    "used twice": Case(shared_convolution, ("0", "1")),
    "two batch norms": Case(
        lambda: Net(lambda s, x: s.a(s.conv(x)) + s.b(s.conv(x)), conv=conv(), a=norm(), b=norm()),
        ("conv",), norms={"conv": "different batch norms"},
    ),
    "one output, two batch norms": Case(
        lambda: Net(lambda s, x: (lambda y: s.a(y) + s.b(y))(s.conv(x)), conv=conv(), a=norm(), b=norm()),
        ("conv",), norms={"conv": "different batch norms"},
    ),
    "twice under one batch norm": Case(twice_under_one_norm, ("conv",), norms={"conv": "=bn"}),
    "two under one batch norm": Case(
        lambda: Net(lambda s, x: s.bn(s.a(x)) + s.bn(s.b(x)), a=conv(), b=conv(), bn=norm()),
        ("a", "b"), norms={"a": "serves other inputs", "b": "serves other inputs"},
    ),
    "batch norm of the input, too": Case(
        lambda: Net(lambda s, x: s.bn(s.a(s.bn(x))), a=conv(3, 3), bn=norm(3)),
        ("a",), norms={"a": "serves other inputs"},
    ),
    "output used beside its batch norm": Case(
        lambda: Net(lambda s, x: (lambda y: s.bn(y) + y)(s.conv(x)), conv=conv(), bn=norm()),
        ("conv",), norms={"conv": "no batch norm alone"},
    ),
    "output returned as well": Case(
        lambda: Net(lambda s, x: (lambda y: (s.bn(y), y))(s.conv(x)), conv=conv(), bn=norm()),
        ("conv",), norms={"conv": "used twice"},
    ),
    "output returned in a dataclass": Case(
        lambda: Net(lambda s, x: (lambda y: Seen(s.bn(y), {"raw": y}))(s.conv(x)), conv=conv(), bn=norm()),
        ("conv",), norms={"conv": "used twice"},
    ),
    "output changed in place before its batch norm": Case(
        lambda: Net(lambda s, x: s.bn(s.conv(x).add_(1)), conv=conv(), bn=norm()),
        ("conv",), norms={"conv": "no batch norm alone"},
    ),
    "no running statistics": Case(
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
        ("0",), norms={"0": "no running statistics"},
    ),
    "instance norm": Case(
        lambda: nn.Sequential(conv(), nn.InstanceNorm2d(4, track_running_stats=True)),
        ("0",), norms={"0": "no batch norm alone"},
    ),
    "batch norm that does more": Case(
        lambda: nn.Sequential(conv(), type("NormAct", (nn.BatchNorm2d,), {
            "forward": lambda self, x: nn.BatchNorm2d.forward(self, x).relu()})(4)),
        ("0",), norms={"0": "does more than normalise"},
    ),
    "decides by values": Case(
        lambda: Net(lambda s, x: s.bn(s.conv(x)) if x.sum() > -99 else s.conv(x), conv=conv(), bn=norm()),
        ("conv",), norms={"conv": "by values"},
    ),
    "hook on the convolution": Case(
        lambda: nn.Sequential(hooked(conv()), norm()), ("0",), norms={"0": "a hook watches"}
    ),
    "hook on what holds the convolution alone": Case(
        lambda: nn.Sequential(hooked(nn.Sequential(conv())), norm()), ("0.0",), norms={"0.0": "used twice"}
    ),
    "pre-hook on the batch norm": Case(
        lambda: Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=pre_hooked(norm())),
        ("conv",), norms={"conv": "a hook watches"},
    ),
    "functional, own parameter": Case(
        lambda: Net(lambda s, x: F.conv2d(s.conv(x), s.w), conv=conv(), w=nn.Parameter(grid(2, 4, 3, 3))),
        ("conv",), functional=("conv2d",),
    ),
    "functional, several in one module": Case(
        lambda: Net(lambda s, x: F.conv2d(F.conv2d(s.conv(x), s.w), s.w), conv=conv(),
                    w=nn.Parameter(grid(4, 4, 1, 1))),
        ("conv",), functional=("conv2d", "conv2d#2"),
    ),
    "functional of another's weight": Case(
        lambda: Net(lambda s, x: s.conv(x) + F.conv2d(x, s.conv.weight, padding=1), conv=conv()),
        ("conv",), {"conv": "used outside of it"}, functional=("conv2d",),
    ),
    "functional of another's weight.data": Case(
        lambda: Net(lambda s, x: s.conv(x) + F.conv2d(x, s.conv.weight.data, padding=1), conv=conv()),
        ("conv",), {"conv": "used outside of it"}, functional=("conv2d",),
    ),
    "weight penalised in the forward": Case(
        lambda: Net(lambda s, x: s.conv(x) * s.conv.weight.norm(), conv=conv()),
        ("conv",), {"conv": "used outside of it"},
    ),
    "tied weights": Case(tied, ("0", "1", "3"), {"1": "tied to those of 3", "3": "tied to those of 1"}),
    "a subclass that does more": Case(
        lambda: nn.Sequential(Standardised(3, 4, 3)), ("0",), {"0": "Standardised does more than convolve"}
    ),
    "a subclass that does not": Case(lambda: nn.Sequential(Plain(3, 4, 3)), ("0",)),
    "forward replaced on the object": Case(
        lambda: nn.Sequential(with_own_forward(conv())), ("0",), {"0": "does more than convolve"}
    ),
    "old weight norm": Case(lambda: nn.Sequential(old_weight_norm(conv()), norm()), ("0",), norms={"0": "=1"}),
    "old spectral norm": Case(lambda: nn.Sequential(nn.utils.spectral_norm(conv()), norm()), ("0",), norms={"0": "=1"}),
    "weight norm": Case(lambda: nn.Sequential(parametrizations.weight_norm(conv()), norm()), ("0",), norms={"0": "=1"}),
    "spectral norm": Case(lambda: nn.Sequential(parametrizations.spectral_norm(conv())), ("0",)),
    "pruned": Case(
        lambda: nn.Sequential(pruned(lambda m: prune.l1_unstructured(m, "weight", 0.5)), norm()),
        ("0",), norms={"0": "=1"},
    ),
    "pruned by the user's own method": Case(
        lambda: nn.Sequential(pruned(lambda m: Pruning.apply(m, "weight")), norm()), ("0",), norms={"0": "=1"}
    ),
    "returns a tuple": Case(lambda: Net(lambda s, x: (s.a(x), [s.b(x)]), a=conv(), b=conv()), ("a", "b")),
    "returns a dict": Case(lambda: Net(lambda s, x: {"y": s.a(x), "n": 3}, a=conv()), ("a",)),
    "returns a dataclass": Case(lambda: Net(lambda s, x: Seen(s.a(x), {}), a=conv()), ("a",)),
    "writes into its input": Case(lambda: Net(lambda s, x: s.a(x.mul_(2)), a=conv()), ("a",)),
    "scripted part": Case(
        lambda: nn.Sequential(conv(), torch.jit.script(nn.Sequential(conv(4, 4), nn.ReLU()))),
        ("0",), functional=("1.0",),
    ),
    "unbatched": Case(lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), ("0",), shape=(3, 9)),
    "complex": Case(lambda: Net(lambda s, x: s.a(x.to(torch.cfloat)).abs(), a=conv(dtype=torch.cfloat)), ("a",),
                    {"a": "real floating point"}),
    "1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), ("0",), norms={"0": "=1"}, shape=(2, 3, 9)
    ),
    "3d, transposed": Case(
        lambda: nn.Sequential(nn.ConvTranspose3d(3, 4, 2, 2), nn.BatchNorm3d(4)),
        ("0",), norms={"0": "=1"}, shape=(1, 3, 3, 4, 5),
    ),
    "never run": Case(lambda: Net(lambda s, x: s.a(x), a=conv(), spare=conv()), ("a",)),
}  # fmt: skip


@dataclass
class Seen:
    y: Tensor
    more: dict[str, Tensor]


def pre_hooked(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda m, args: None)
    return module


def with_own_forward(module: nn.Conv2d) -> nn.Module:
    module.forward = lambda x: 2 * nn.functional.conv2d(x, module.weight, module.bias)  # type: ignore[method-assign]
    return module


def make(name: str) -> tuple[Case, nn.Module, Tensor]:
    torch.manual_seed(0)
    case = CASES[name]
    return case, case.make(), grid(*case.shape)


# finding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_convolution_is_found_and_its_neighbours_known(name):
    case, model, x = make(name)
    network = find_sites(model, x)
    assert tuple(site.name for site in network.sites) == case.names
    for site in network.sites:
        wanted = case.refusals.get(site.name)
        assert (wanted in site.refusal) if wanted else site.refusal is None
        wanted = case.norms.get(site.name)
        if wanted and wanted.startswith("="):
            assert (site.norm.name, site.norm_refusal) == (wanted[1:], None)
        elif wanted:
            assert site.norm is None
            assert wanted in site.norm_refusal
    assert tuple(c.name for c in network.calls if c.functional) == case.functional
    assert {name for name, _ in network.refusals} == set(case.functional)


@pytest.mark.parametrize("name", CASES)
def test_finding_leaves_everything_as_it_was(name):
    _, model, x = make(name)
    for module in model.modules():
        module.training = len(type(module).__name__) % 2 == 0  # some on, some off
    before, given = state(model), x.clone()
    random = torch.get_rng_state()
    find_sites(model, x)
    assert state(model) == before
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), random)


def state(model: nn.Module) -> dict[str, Any]:
    """All that a user could see of a network, in a form that can be compared."""
    tensors = {name: (id(t), t.dtype, t.requires_grad, t.detach().clone().flatten().tolist())
               for name, t in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip
    modules = {name: (id(m), m.training, sorted(vars(m)), [len(v) for k, v in sorted(vars(m).items()) if "hooks" in k])
               for name, m in model.named_modules(remove_duplicate=False)}  # fmt: skip
    return {"tensors": tensors, "modules": modules}


@pytest.mark.parametrize("name", CASES)
def test_a_site_holds_what_its_convolution_applies(name):
    """Its block, built and filled with its tensors, gives what the module gives."""
    _, model, x = make(name)
    network = find_sites(model, x)
    copied = clone(model).eval()
    for site in network.sites:
        if site.refusal and "tied" not in site.refusal:
            continue
        layer = build(site.block, dtype=site.dtype)
        layer.load_state_dict(site.tensors)
        inside = grid(*site.input_shape)
        module = copied.get_submodule(site.name)
        torch.testing.assert_close(layer(inside), module(inside))
        tensors = applied(module)
        assert tensors.keys() == site.tensors.keys()
        assert all(torch.equal(tensors[key], site.tensors[key]) for key in tensors)


def test_calls_are_in_order_with_their_shapes_and_macs():
    network = find_sites(shared_convolution(), torch.zeros(*IMAGE))
    assert [c.name for c in network.calls] == ["0", "1", "1"]
    assert network.sites[1].names == ("1", "3")
    inner = (2, 4, 9, 7)
    assert [(c.input_shape, c.output_shape) for c in network.calls] == [(IMAGE, inner), (inner, inner), (inner, inner)]
    assert [c.macs for c in network.calls] == [2 * 63 * 4 * 3 * 9, *[2 * 63 * 4 * 4 * 9] * 2]


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"padding": (1, 2), "padding_mode": "reflect"}, (2, 3, 9, 7)),
        ({"padding": "same", "padding_mode": "circular", "dilation": 2}, (2, 3, 9, 7)),
        ({"padding": "same"}, (3, 9, 7)),
        ({"padding": 2, "padding_mode": "replicate", "stride": 2}, (3, 9, 7)),
    ],
)
def test_padding_that_is_an_operator_of_its_own_counts_as_the_convolutions(options, shape):
    model = nn.Conv2d(3, 4, (3, 2), **options)
    (call,) = find_sites(model, torch.zeros(shape)).calls
    assert call.input_shape == (shape if len(shape) == 4 else (1, *shape))
    assert call.macs == 4 * 3 * 6 * model(torch.zeros(shape)).numel() // 4


def test_a_pre_hook_that_changes_the_input_is_seen():
    model = conv()
    model.register_forward_pre_hook(lambda m, args, kwargs: ((args[0][..., :5, :4],), kwargs), with_kwargs=True)
    (call,) = find_sites(model, torch.zeros(*IMAGE)).calls
    assert (call.input_shape, call.output_shape) == ((2, 3, 5, 4), (2, 4, 5, 4))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_the_activation_that_follows_is_known(inplace, with_norm):
    between = [norm()] if with_norm else []
    model = nn.Sequential(conv(), *between, nn.ReLU(inplace), conv(4, 2))
    sites = find_sites(model, torch.zeros(*IMAGE)).sites
    assert [site.activation for site in sites] == [str(1 + with_norm), None]


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


def test_torchscript_is_seen_but_not_swapped():
    scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv(4, 2)).eval())
    network = find_sites(scripted, torch.zeros(*IMAGE))
    assert network.sites == ()
    assert [c.name for c in network.calls] == ["0", "2"]
    assert [name for name, why in network.refusals if why.startswith("TorchScript")] == ["0", "2"]


def test_numbers_beside_the_tensors_are_passed_on():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, times: int) -> Tensor:
            return self.conv(x) * times

    assert [c.name for c in find_sites(Scaled(), (torch.zeros(*IMAGE), 3)).calls] == ["conv"]


# bad input ---------------------------------------------------------------------------------------


def undeepcopyable() -> nn.Module:
    model = nn.Sequential(conv())
    model.lock = threading.Lock()
    return model


def failing(x: Tensor) -> Tensor:
    raise RuntimeError("only on Sundays")


@pytest.mark.parametrize(
    "make, inputs, message, builtin",
    [
        (lambda: nn.Linear(3, 4), torch.zeros(2, 3), "must run at least one convolution; got model=Linear", ValueError),
        (lambda: Net(lambda s, x: x, a=conv()), torch.zeros(2, 3), "at least one convolution", ValueError),
        (conv, torch.zeros(2, 5, 9, 9), r"accept example_inputs.*\(2, 5, 9, 9\).* to have 3 channels", None),
        (lambda: Net(lambda s, x: failing(x)), torch.zeros(1), "RuntimeError: only on Sundays", None),
        (conv, torch.full(IMAGE, float("nan")), "example_inputs must be finite", ValueError),
        (conv, torch.full(IMAGE, float("inf")), "example_inputs must be finite", ValueError),
        (conv, None, "must be a tensor or a tuple of tensors; got .*NoneType", TypeError),
        (conv, (), "must be a tensor or a tuple of tensors", TypeError),
        (conv, {"x": torch.zeros(IMAGE)}, "must be a tensor or a tuple of tensors", TypeError),
        (conv, (torch.zeros(IMAGE), "x"), "must be a tensor or a tuple of tensors; got .*'Tensor', 'str'", TypeError),
        (lambda: nn.LazyConv2d(4, 3), torch.zeros(IMAGE), "parameter must have its shape; got .*weight", ValueError),
        (undeepcopyable, torch.zeros(IMAGE), r"must allow copy.deepcopy; got .*cannot pickle '_thread.lock'", None),
        (lambda: "net", torch.zeros(IMAGE), "model must be a torch.nn.Module; got model=str", TypeError),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(make, inputs, message, builtin):
    with pytest.raises(ConvError, match=message) as caught:
        find_sites(make(), inputs)
    assert builtin is None or isinstance(caught.value, builtin)


def test_inference_mode_is_told_and_what_was_made_in_it_is_read():
    with torch.inference_mode():
        net, x = conv(), torch.zeros(IMAGE)
        with pytest.raises(ConvError, match="must be read outside of torch.inference_mode"):
            find_sites(net, x)
    assert [site.name for site in find_sites(net, x).sites] == [""]


# copies and swaps --------------------------------------------------------------------------------


def test_a_compiled_network_is_looked_into():
    whole = torch.compile(nn.Sequential(conv()))
    part = nn.Sequential(torch.compile(nn.Sequential(conv())), nn.ReLU(), conv(4, 4))
    assert [s.name for s in find_sites(whole, torch.zeros(*IMAGE)).sites] == ["0"]
    assert [s.name for s in find_sites(part, torch.zeros(*IMAGE)).sites] == ["0.0", "2"]
    assert "0._orig_mod.0.weight" in part.state_dict()


@pytest.mark.parametrize("after_a_run", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_copy_computes_the_same_and_shares_nothing(name, after_a_run):
    _, model, x = make(name)
    model.eval()
    if after_a_run:
        model(x.clone())
    copied = clone(model)
    assert distance(copied(x.clone()), model(x.clone())) == 0
    ours = {t.data_ptr() for t in model.state_dict().values()}
    assert not ours & {t.data_ptr() for t in copied.state_dict().values()}


SWAPPABLE = [name for name, case in CASES.items() if not case.refusals]


@pytest.mark.parametrize("name", SWAPPABLE)
def test_a_swapped_convolution_is_run_in_its_place(name):
    """The same convolution again, put in by the surgeon: nothing changes."""
    _, model, x = make(name)
    model.eval()
    student = clone(model)
    for site in find_sites(model, x).sites:
        student = place(student, site.names, site.block, site.tensors)
        assert type(student.get_submodule(site.name)).__module__ == "reconv.layers.conv"
    torch.testing.assert_close(tensors_in(student(x.clone())), tensors_in(model(x.clone())), rtol=1e-5, atol=1e-6)
    assert [s.name for s in find_sites(student, x).sites] == [s.name for s in find_sites(model, x).sites]


@pytest.mark.parametrize("name", [name for name in SWAPPABLE if CASES[name].norms])
def test_a_folded_batch_norm_changes_nothing(name):
    case, model, x = make(name)
    model.eval()
    sites = {s.name: s for s in find_sites(model, x).sites}
    from reconv.ruleset import FoldBatchNorm

    for site in sites.values():
        rule = FoldBatchNorm()
        if site.norm is None:
            assert case.norms[site.name] in rule.refuse(site)
            continue
        (proposal,) = rule.propose(current(model, sites)[site.name])
        student = place(clone(model), site.names, proposal.block, rule.init(site, proposal).tensors, proposal.absorbs)
        torch.testing.assert_close(tensors_in(student(x.clone())), tensors_in(model(x.clone())), rtol=1e-4, atol=1e-5)
        assert isinstance(student.get_submodule(site.norm.name), nn.Identity)


def test_a_swap_keeps_mode_hooks_sharing_and_gradients_per_module():
    seen: list[str] = []
    model = shared_convolution().train()
    model[0].eval()
    model[0].requires_grad_(False)
    model[1].register_forward_hook(lambda m, args, kwargs, out: seen.append("after"), with_kwargs=True)
    model[1].register_forward_pre_hook(lambda m, args, kwargs: seen.append(f"before {len(args)}"), with_kwargs=True)
    model[1].register_full_backward_hook(lambda m, into, out: seen.append("back"))
    x = torch.zeros(*IMAGE)
    student = clone(model)
    for site in find_sites(model, x).sites:
        student = place(student, site.names, site.block, site.tensors)
    assert student[1] is student[3]
    assert [m.training for m in student] == [False, True, True, True]
    assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]
    seen.clear()
    student(x).sum().backward()
    assert seen == ["before 1", "after"] * 2 + ["back"] * 2


def test_hooks_that_compute_the_old_weight_are_dropped_and_others_kept():
    seen: list[str] = []
    for make_it in (lambda: old_weight_norm(conv()), lambda: pruned(lambda m: Pruning.apply(m, "weight"))):
        model = nn.Sequential(hooked(make_it(), lambda *args: seen.append("seen")))
        (site,) = find_sites(model, torch.zeros(*IMAGE)).sites
        student = place(clone(model), site.names, site.block, site.tensors)
        seen.clear()
        torch.testing.assert_close(student(grid(*IMAGE)), model(grid(*IMAGE)))
        assert seen == ["seen", "seen"]
        assert student[0].state_dict().keys() == {"weight", "bias"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["ic3oc4k3x3p1", "ic3oc3k3x3p1g3nb -> ic3oc4k1x1", "permute(3) -> ic3oc4k3x3p1"])
def test_dtype_and_gradients_are_kept(dtype, text):
    for trainable in (True, False):
        model = nn.Sequential(conv(dtype=dtype)).requires_grad_(trainable)
        (site,) = find_sites(model, torch.zeros(IMAGE, dtype=dtype)).sites
        block = parse(text)
        student = place(clone(model), site.names, block, build(block, dtype=dtype).state_dict())
        assert {(p.dtype, p.requires_grad) for p in student.parameters()} == {(dtype, trainable)}
        assert student(torch.zeros(IMAGE, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, old_weight_norm])
def test_a_parametrised_convolution_without_bias_stays_trainable(wrap):
    model = nn.Sequential(wrap(conv(bias=False)))
    (site,) = find_sites(model, torch.zeros(*IMAGE)).sites
    student = place(clone(model), site.names, site.block, site.tensors)
    assert all(p.requires_grad for p in student.parameters())


def test_swapping_the_root_gives_a_new_root():
    new = nn.Identity()
    assert swap(conv().train(), [""], new) is new
    assert new.training


def test_a_plan_applied_leaves_the_original_as_it_was():
    """Bit for bit: weights, modes, hooks, attributes; and random numbers go on as if nothing had been done."""
    model = nn.Sequential(hooked(conv()), norm(), nn.Dropout(), nn.ReLU(), conv(4, 4, bias=False)).train()
    model[1].eval()
    model.log = ["what", {"ever": 1}]
    before, random = state(model), torch.get_rng_state()
    edit = Edit("4", "separable", parse("ic4oc4k3x3p1g4nb -> ic4oc4k1x1nb"))
    student = apply(model, Plan((edit,)), grid(*IMAGE), data=grid(5, 3, 9, 7))
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in student] == [m.training for m in model]
    assert student.log == model.log
    assert student.log is not model.log


# outputs and inputs ------------------------------------------------------------------------------


def test_outputs_of_any_structure_are_compared():
    a, b = whole_numbers(2, 3), whole_numbers(4, seed=1)
    own_dict, own_tuple = type("Own", (dict,), {}), type("Row", (tuple,), {})
    for wrap in (lambda p, q: (p, q), lambda p, q: {"p": p, "q": [q]}, lambda p, q: Seen(p, {"q": q}),
                 lambda p, q: own_dict(p=p, q=q), lambda p, q: own_tuple((p, q))):  # fmt: skip
        assert [t.shape for t in tensors_in(wrap(a, b))] == [(2, 3), (4,)]
        assert squared_distance(wrap(a + 1, b), wrap(a, b)) == (6.0, float((a**2).sum() + (b**2).sum()))


@pytest.mark.parametrize(
    "student, teacher", [(torch.zeros(2), torch.zeros(3)), ((), ()), (torch.zeros(2), "text"), (3, torch.zeros(1))]
)
def test_outputs_that_cannot_be_compared_are_refused(student, teacher):
    with pytest.raises(ConvError, match="must give the same floating tensors"):
        squared_distance(student, teacher)


@pytest.mark.parametrize("apart, size, wanted", [(0, 0, 0.0), (1, 0, float("inf")), (1, 4, 0.5)])
def test_ratio_of_nothing(apart, size, wanted):
    assert distance(torch.full((1,), size**0.5 + apart**0.5), torch.full((1,), float(size**0.5))) == wanted


def test_fresh_inputs_are_copies():
    x = torch.zeros(3)
    y, number = fresh((x, 5))
    y.add_(1)
    assert (float(x.sum()), number) == (0, 5)
    assert tensors_of([x, 5]) == (x, 5)
