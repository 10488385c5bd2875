"""What one operation of a traced forward pass computes, as blocks with their tensors: modules and functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.errors import ConvError
from reconv.layers.compose import ChainLayer, block_of
from reconv.layers.described import Described
from reconv.layers.sequence import Absorbed
from reconv.spec import Activation, BatchNorm, Block, ConvSpec
from reconv.surgery.clone import applied
from reconv.surgery.norms import normalises

EPS = 1e-5  # of a BatchNorm block
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SAME = (nn.Identity, Absorbed, *DROPOUTS)  # in evaluation
ADDITIONS = (operator.add, operator.iadd, torch.add)
FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.relu: "relu", torch.relu_: "relu", F.relu: "relu", F.relu6: "relu6", F.leaky_relu: "leaky_relu",
    F.elu: "elu", F.silu: "silu", F.gelu: "gelu", F.hardswish: "hardswish", F.hardsigmoid: "hardsigmoid",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", torch.tanh: "tanh", F.tanh: "tanh",
}  # fmt: skip
METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}
POOLINGS: dict[Any, int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
                            F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}  # fmt: skip
PADDINGS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


class NoBlockError(Exception):
    """Why a module is no block; a refusal, never shown as an error."""


@dataclass(frozen=True)
class Part:
    """One block with its tensors, and the name of the module whose work it is, where there is one."""

    block: Block
    tensors: Mapping[str, Tensor]
    module: str | None = None


Channels = Callable[[], int]  # of what comes in; it raises NoBlockError where nothing tells them


def is_leaf(module: nn.Module) -> bool:
    """Whether `of_module` knows the module itself, so that tracing need not look into it."""
    if isinstance(module, (*SAME, ChainLayer, Described, _BatchNorm)) or pads_with_norm(module):
        return True
    try:
        block_of(module)
    except ConvError:
        return False
    return True


def of_module(name: str, module: Any, channels: Channels) -> Iterator[Part]:
    """What a leaf computes, one after the other.

    Raises:  NoBlockError, ConvError: when no block says it.
    """
    if isinstance(module, SAME):
        return
    if isinstance(module, ChainLayer):
        for key, part in module.named_children():
            yield from of_module(f"{name}.{key}", part, channels)
    elif type(module) in POOLINGS:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = {name: getattr(module, name) for name in names if hasattr(module, name)}
        yield average(POOLINGS[type(module)], channels(), **given)
    elif isinstance(module, PADDINGS):
        yield padded(module.padding, module.value, channels())
    elif pads_with_norm(module):
        yield padded([module.pad_pixels] * 4, 0, channels())
        yield from of_module(f"{name}.bn", module.bn, channels)
    elif isinstance(module, _BatchNorm) and normalises(module):
        yield Part(BatchNorm(), _norm(name, module), name)
        for key, part in module.named_children():  # timm's have dropout and activation
            yield from of_module(f"{name}.{key}", part, channels)
    elif not is_leaf(module):
        raise NoBlockError(f"no block says {type(module).__name__}")
    else:
        yield Part(block_of(module), applied(module), name)


def of_function(function: Any, arguments: Sequence[Any], options: Mapping[str, Any],
                channels: Channels) -> Part | None:  # fmt: skip
    """What a function of a map and of constants computes; None: nothing, in evaluation.

    Args:    arguments: those after the map.
    Raises:  NoBlockError: when no block says it.
    """
    if function is F.dropout and not {**_bound(arguments, ("p", "training")), **options}.get("training", True):
        return None
    if function in FUNCTIONS and not arguments and set(options) <= {"inplace"}:
        return Part(Activation(FUNCTIONS[function]), {})
    if function in POOLINGS:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return average(POOLINGS[function], channels(), **{**_bound(arguments, names), **options})
    if function is F.pad:
        given = {**_bound(arguments, ("pad", "mode", "value")), **options}
        if given.get("mode", "constant") == "constant":
            return padded(given["pad"], given.get("value") or 0, channels())
    if function in CONVOLUTIONS:
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        return _convolution(**{**_bound(arguments, names), **options})
    said = [*map(str, arguments), *(f"{name}={value}" for name, value in options.items() if name != "inplace")]
    what = f" with {', '.join(said)}" if function in FUNCTIONS else ""
    raise NoBlockError(f"no block says {getattr(function, '__name__', function)}{what}")


def _bound(arguments: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, arguments, strict=False))


def _convolution(weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                 groups: int = 1) -> Part:  # fmt: skip
    if isinstance(padding, str):
        raise NoBlockError(f"no block says a functional convolution with padding {padding!r}")
    spec = ConvSpec(in_channels=weight.shape[1] * groups, out_channels=weight.shape[0],
                    kernel_size=tuple(weight.shape[2:]), stride=stride, padding=padding, dilation=dilation,
                    groups=groups, bias=bias is not None)  # fmt: skip
    return Part(spec, {"weight": weight.detach().clone()} | ({} if bias is None else {"bias": bias.detach().clone()}))


# -- constant convolutions ------------------------------------------------------------------------
def average(dims: int, channels: int, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
            count_include_pad: bool = True, divisor_override: int | None = None) -> Part:  # fmt: skip
    """Average pooling as a depthwise convolution whose taps are all the same.

    Raises:  NoBlockError: where windows at the border count fewer values than others.
    """
    spec = ConvSpec(in_channels=channels, out_channels=channels, kernel_size=_axes(kernel_size, dims), bias=False,
                    stride=_axes(kernel_size if stride in (None, ()) else stride, dims), groups=channels,
                    padding=_axes(padding, dims))  # fmt: skip
    if ceil_mode:
        raise NoBlockError("average pooling whose windows may stand over the border")
    if any(map(any, spec.padding)) and not (count_include_pad or divisor_override):
        raise NoBlockError("average pooling that counts fewer values at the border")
    taps = divisor_override or prod(spec.kernel_size)
    return Part(spec, {"weight": torch.full(spec.weight_shape, 1 / taps, dtype=torch.float64)})


def padded(pads: Any, value: float, channels: int) -> Part:
    """Padding by zeros as a depthwise 1×1 that does nothing else.

    Args:    pads: as torch has them: of the last axis first.
    """
    if value or len(pads) % 2 or any(p < 0 for p in pads):
        raise NoBlockError("padding by other values than zero, or that cuts off")
    axes = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
    spec = ConvSpec(in_channels=channels, out_channels=channels, kernel_size=(1,) * len(axes), padding=axes,
                    groups=channels, bias=False)  # fmt: skip
    return Part(spec, {"weight": torch.ones(spec.weight_shape, dtype=torch.float64)})


def _axes(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


# -- batch norms ----------------------------------------------------------------------------------
def _norm(name: str, norm: _BatchNorm) -> dict[str, Tensor]:
    """The tensors of a batch norm of any ε as those of a BatchNorm block: √((σ² + 1e-5) / (σ² + ε)) goes to γ."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise NoBlockError(f"batch norm {name} keeps no running statistics")
    ones = torch.ones_like(mean)
    weight = ones if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    if norm.eps != EPS:
        weight = (weight.double() * ((var.double() + EPS) / (var.double() + norm.eps)).sqrt()).to(weight.dtype)
    seen = norm.num_batches_tracked
    return {"weight": weight.clone(), "bias": bias.clone(), "running_mean": mean.clone(), "running_var": var.clone(),
            "num_batches_tracked": torch.tensor(0) if seen is None else seen.clone()}  # fmt: skip


def pads_with_norm(module: Any) -> bool:
    """Whether a module is a batch norm and a border of what that norm makes of zeros, as DBB's authors have it.

    Then it is the norm of the map padded with zeros. What it is called says little, so that it is tried.

    Source:  Ding et al. 2021, arXiv:2103.13425
    """
    norm, pixels = getattr(module, "bn", None), getattr(module, "pad_pixels", None)
    if not isinstance(norm, _BatchNorm) or type(norm).forward is not _BatchNorm.forward or norm.running_mean is None:
        return False
    if module.training or not isinstance(pixels, int) or pixels < 0 or list(module.children()) != [norm]:
        return False
    x = torch.linspace(-2, 2, norm.num_features * 35).sin().reshape(1, -1, 5, 7).to(norm.running_mean)
    try:
        with torch.no_grad():
            return torch.allclose(module(x), norm(F.pad(x, [pixels] * 4)), rtol=1e-3, atol=1e-4)
    except Exception:  # whatever a foreign forward pass may raise
        return False
