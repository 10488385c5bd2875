"""What an edit makes of modules beside its site, as text that a person can read, and the modules made from it.

A convolution is its spec's text; `norm(64)` a batch norm of 64 channels; `linear(512, 10)` a layer of 512 inputs and
10 outputs; `maxpool(k3x3s1x1p2x2d2x2)` and `avgpool(…)` poolings, of which the grid is told and the rest stays
(`p0:1x0:1` is a padding that is larger at the high ends).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.data import seeded
from reconv.errors import conv_error
from reconv.layers import build
from reconv.layers.compose import block_of
from reconv.layers.pooling import GridPool
from reconv.ops.problem import Pads
from reconv.spec import parse
from reconv.surgery.clone import names_of, swap
from reconv.surgery.norms import normalises
from reconv.surgery.trace import is_conv, plain_forward

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
Grid = tuple[tuple[int, ...], tuple[int, ...], Pads, tuple[int, ...]]  # kernel, stride, padding and dilation
Also = tuple[tuple[str, str], ...]  # names of modules, and what they become
Tensors = Mapping[str, Tensor]
_FORM = re.compile(r"(norm|linear|maxpool|avgpool)\(([^()]*)\)")
_GRID = re.compile(r"k([\dx]+)s([\dx]+)p([\dx:]+)d([\dx]+)")


def aliases(model: nn.Module, name: str) -> list[str]:
    """All qualified names of the module that has this one."""
    return names_of(model, model.get_submodule(name))


def text_of(module: nn.Module) -> str | None:
    """The text of a module that an edit beside it can change; None where there is none."""
    if is_conv(module):
        return None if plain_forward(module) else str(block_of(module))
    if isinstance(module, _BatchNorm) and normalises(module):
        return f"norm({module.num_features})"
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return f"linear({module.in_features}, {module.out_features})"
    grid = pool_grid(module)
    return None if grid is None else pool_text(pool_kind(module), grid)


def pool_kind(pool: nn.Module) -> str:
    if isinstance(pool, GridPool):
        return pool.kind
    return "max" if type(pool) in MAX_POOLS else "avg"


def pool_text(kind: str, grid: Grid) -> str:
    """The text of a pooling of kind "max" or "avg"."""
    kernel, stride, padding, dilation = grid
    pads = [str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in padding]
    parts = zip("kspd", (kernel, stride, pads, dilation), strict=True)
    return f"{kind}pool({''.join(letter + 'x'.join(map(str, of)) for letter, of in parts)})"


def pool_grid(module: nn.Module) -> Grid | None:
    """The grid of a max or average pooling; None of any other module.

    Where it rounds its number of positions up, the padding at the high end is larger, so that rounding down does.
    """
    if isinstance(module, GridPool):
        return module.kernel_size, module.stride, module.padding, module.dilation
    kinds = next((kinds for kinds in (MAX_POOLS, AVERAGE_POOLS) if type(module) in kinds), None)
    if kinds is None or getattr(module, "return_indices", False):
        return None
    dims = kinds.index(type(module)) + 1
    values = (getattr(module, name, 1) for name in ("kernel_size", "stride", "padding", "dilation"))
    kernel, stride, padding, dilation = ((v,) * dims if isinstance(v, int) else tuple(v) for v in values)
    up = [min(s - 1, d * (k - 1) - p) if module.ceil_mode else 0  # no window starts behind the input
          for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)]  # fmt: skip
    return kernel, stride, tuple((p, p + n) for p, n in zip(padding, up, strict=True)), dilation


@seeded(0)  # the user's random numbers stay as they are
def remade(name: str, module: nn.Module, text: str) -> nn.Module:
    """A module of the same kind with the sizes that the text tells; its weights are not yet set.

    Raises:  ConvError: when the text is none, or tells of another kind of module.
    """
    now = text_of(module)
    form = _FORM.fullmatch(text.strip())
    if now is None or _kind(now) != _kind(text):
        raise conv_error("also", "a module beside the site must stay of its kind", also=ValueError,
                         got={"module": name, "type": type(module).__name__, "text": repr(text)},
                         do="Is it changed by another edit?")  # fmt: skip
    if form is None:
        like = next(module.parameters())  # a convolution has a weight
        return build(parse(text), device=like.device, dtype=like.dtype)
    try:
        return _remade(module, form[1], form[2])
    except (ValueError, TypeError) as error:
        raise conv_error("also", "the text of a module must be norm(n), linear(n, n), maxpool(k…s…p…d…) or avgpool(…)",
                         got={"module": name, "text": repr(text)}, also=ValueError) from error  # fmt: skip


def _kind(text: str) -> str:
    form = _FORM.fullmatch(text.strip())
    return form[1] if form else "conv"


def _remade(module: nn.Module, kind: str, inside: str) -> nn.Module:
    if kind == "linear":
        inputs, outputs = map(int, inside.split(","))
        assert isinstance(module, nn.Linear)
        return nn.Linear(inputs, outputs, module.bias is not None, device=module.weight.device,
                         dtype=module.weight.dtype)  # fmt: skip
    if kind != "norm":
        return _pool(module, kind.removesuffix("pool"), inside)
    new = copy.deepcopy(module)
    channels = int(inside)
    assert isinstance(new, _BatchNorm)
    new.num_features = channels
    for key, tensor in [*new.named_parameters(recurse=False), *new.named_buffers(recurse=False)]:
        if tensor.ndim == 1:
            resized = torch.zeros(channels, dtype=tensor.dtype, device=tensor.device)
            parameter = isinstance(tensor, nn.Parameter)
            setattr(new, key, nn.Parameter(resized, tensor.requires_grad) if parameter else resized)
    return new


def _pool(module: nn.Module, kind: str, inside: str) -> nn.Module:
    """PyTorch's own pooling where it has such a grid, with all other settings of the old one."""
    form = _GRID.fullmatch(inside)
    if not form:
        raise ValueError(inside)
    kernel, stride, pads, dilation = (numbers.split("x") for numbers in form.groups())
    kernel, stride, dilation = (tuple(map(int, numbers)) for numbers in (kernel, stride, dilation))
    ends = [tuple(map(int, (f"{p}:{p}" if ":" not in p else p).split(":"))) for p in pads]
    padding = tuple((lo, hi) for lo, hi in ends)
    own = all(lo == hi and 2 * lo <= k for (lo, hi), k in zip(padding, kernel, strict=True))
    if isinstance(module, GridPool) or not own or (kind == "avg" and max(dilation) > 1):
        divisor = getattr(module, "divisor_override", None) or getattr(module, "divisor", None)
        return GridPool(kind, kernel, stride, padding, dilation, getattr(module, "count_include_pad", True), divisor)
    new: Any = copy.deepcopy(module)
    new.kernel_size, new.stride, new.padding = kernel, stride, tuple(lo for lo, _ in padding)
    new.ceil_mode = False  # see pool_grid
    if kind == "max":
        new.dilation = dilation
    return new


def change(model: nn.Module, also: Also, tensors: Mapping[str, Tensors] | None = None) -> nn.Module:
    """Remakes the modules of these names, with these tensors (None: not set), in place; returns the root."""
    for name, text in also:
        try:
            old = model.get_submodule(name)
        except AttributeError as error:
            raise conv_error("also", "each name must be a module of the network", got={"module": name},
                             also=ValueError) from error  # fmt: skip
        new = remade(name, old, text)
        if tensors is not None:
            new.load_state_dict(dict(tensors.get(name, {})))
        trainable = any(p.requires_grad for p in old.parameters())
        model = swap(model, aliases(model, name), new.requires_grad_(trainable))
    return model
