"""Networks as they are found in the wild, and what there is to find in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from fakes import grid
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

IMAGE = (2, 3, 9, 7)


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


def state(model: nn.Module) -> dict[str, Any]:
    """All that a user could see of a network, in a form that can be compared."""
    tensors = {name: (id(t), t.dtype, t.requires_grad, t.detach().clone().flatten().tolist())
               for name, t in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip
    modules = {name: (id(m), m.training, sorted(vars(m)), [len(v) for k, v in sorted(vars(m).items()) if "hooks" in k])
               for name, m in model.named_modules(remove_duplicate=False)}  # fmt: skip
    return {"tensors": tensors, "modules": modules}
