"""What an edit makes of modules beside its site, as text that a person can read, and the modules made from it.

A convolution is its spec's text; `norm(64)` a batch norm of 64 channels; `linear(512, 10)` a layer of 512 inputs and
10 outputs; `maxpool(k3x3s1x1p2x2d2x2)` and `avgpool(…)` poolings, of which the grid is told and the rest stays.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.data import seeded
from reconv.errors import conv_error
from reconv.layers import build
from reconv.layers.compose import block_of
from reconv.surgery.clone import swap
from reconv.surgery.norms import normalises
from reconv.surgery.trace import is_conv, plain_forward

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
Also = tuple[tuple[str, str], ...]  # names of modules, and what they become
Tensors = Mapping[str, Tensor]
_FORM = re.compile(r"(norm|linear|maxpool)\(([^()]*)\)")
_GRID = re.compile(r"k([\dx]+)s([\dx]+)p([\dx]+)d([\dx]+)")


def aliases(model: nn.Module, name: str) -> list[str]:
    """All qualified names of the module that has this one."""
    module = model.get_submodule(name)
    return [n for n, m in model.named_modules(remove_duplicate=False) if m is module]


def text_of(module: nn.Module) -> str | None:
    """The text of a module that an edit beside it can change; None where there is none."""
    if is_conv(module):
        return None if plain_forward(module) else str(block_of(module))
    if isinstance(module, _BatchNorm) and normalises(module):
        return f"norm({module.num_features})"
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return f"linear({module.in_features}, {module.out_features})"
    if type(module) in MAX_POOLS:
        return pool_text(*_grid(module))
    return None


def pool_text(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> str:
    """The text of a max pooling."""
    parts = zip("kspd", (kernel, stride, padding, dilation), strict=True)
    return f"maxpool({''.join(letter + 'x'.join(map(str, of)) for letter, of in parts)})"


def _grid(pool: nn.Module) -> list[tuple[int, ...]]:
    dims = MAX_POOLS.index(type(pool)) + 1
    values = (getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation"))
    return [(v,) * dims if isinstance(v, int) else tuple(v) for v in values]


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
    like = next((p for p in module.parameters()), None)
    if form is None:
        from reconv.spec import parse

        assert like is not None  # a convolution has a weight
        return build(parse(text), device=like.device, dtype=like.dtype)
    try:
        return _remade(module, form[1], form[2], like)
    except (ValueError, TypeError) as error:
        raise conv_error("also", "the text of a module must be norm(n), linear(n, n) or maxpool(k…s…p…d…)",
                         got={"module": name, "text": repr(text)}, also=ValueError) from error  # fmt: skip


def _kind(text: str) -> str:
    form = _FORM.fullmatch(text.strip())
    return form[1] if form else "conv"


def _remade(module: nn.Module, kind: str, inside: str, like: Tensor | None) -> nn.Module:
    if kind == "linear":
        inputs, outputs = map(int, inside.split(","))
        assert isinstance(module, nn.Linear)
        return nn.Linear(inputs, outputs, module.bias is not None, device=module.weight.device,
                         dtype=module.weight.dtype)  # fmt: skip
    new = copy.deepcopy(module)
    if kind == "norm":
        channels = int(inside)
        assert isinstance(new, _BatchNorm)
        new.num_features = channels
        for key, tensor in [*new.named_parameters(recurse=False), *new.named_buffers(recurse=False)]:
            if tensor.ndim == 1:
                resized = torch.zeros(channels, dtype=tensor.dtype, device=tensor.device)
                parameter = isinstance(tensor, nn.Parameter)
                setattr(new, key, nn.Parameter(resized, tensor.requires_grad) if parameter else resized)
        return new
    grid = _GRID.fullmatch(inside)
    if not grid:
        raise ValueError(inside)
    for attribute, numbers in zip(("kernel_size", "stride", "padding", "dilation"), grid.groups(), strict=True):
        setattr(new, attribute, tuple(map(int, numbers.split("x"))))
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
