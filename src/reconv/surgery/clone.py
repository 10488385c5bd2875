"""Copies of a user's network, and layers swapped in a copy; the original is never touched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from reconv.errors import ConvError, conv_error


def names_of(model: nn.Module, module: nn.Module) -> list[str]:
    """All qualified names of a module in a network."""
    return [name for name, m in model.named_modules(remove_duplicate=False) if m is module]


def first_names(model: nn.Module) -> dict[nn.Module, str]:
    """The first qualified name of each module."""
    return {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}


def noise(x: Any) -> Any:
    """Another input of the same kind: random, where it is a tensor of real numbers."""
    return torch.rand_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x


def not_accepted(inputs: Sequence[Any], error: Exception) -> ConvError:
    """Of a network that raised this on the example inputs."""
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs]
    return conv_error("reconv", "the network must accept example_inputs", got={"shapes": shapes},
                      do=f"It raised {type(error).__name__}: {error}")  # fmt: skip


def clone(model: nn.Module) -> nn.Module:
    """A deep copy: modes, hooks, sharing, device and dtype as they are.

    Raises:  ConvError: when the network cannot be copied; its own error is quoted.
    """
    if not isinstance(model, nn.Module):
        raise conv_error("reconv", "model must be a torch.nn.Module", got={"model": type(model).__name__},
                         also=TypeError)  # fmt: skip
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    try:
        copied: nn.Module = copy.deepcopy(model, _computed_tensors(model))
    except Exception as error:
        raise conv_error("reconv", "the network must allow copy.deepcopy",
                         got={"model": type(model).__name__, "error": repr(str(error))},
                         do="Give a network whose attributes can be copied.") from error  # fmt: skip
    for parent in copied.modules():
        for name, child in parent.named_children():
            if hasattr(child, "_orig_mod"):
                setattr(parent, name, child._orig_mod)
    return copied


def _computed_tensors(model: nn.Module) -> dict[int, object]:
    """A memo for deepcopy with the non-leaf tensors (old weight norm keeps such), which it refuses by itself."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def swap(model: nn.Module, names: Sequence[str], new: nn.Module) -> nn.Module:
    """Puts `new` in the place of the module with these qualified names; returns the (maybe new) root.

    Mode and hooks of the old module are kept; hooks that only computed its weight (weight norm, pruning) are not,
    since `new` holds the weight that they computed.
    """
    old = model.get_submodule(names[0])
    new.train(old.training)
    move_hooks(old, new)
    for name in names:
        if name == "":
            return new
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    return model


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Gives `new` the hooks of `old`, but for those that compute its weight."""
    for table in _HOOKS:
        kept = {key: hook for key, hook in getattr(old, table).items() if not _computes_weight(hook)}
        getattr(new, table).update(kept)
    for table in _HOOK_FLAGS:
        getattr(new, table).update(getattr(old, table))
    new._is_full_backward_hook = old._is_full_backward_hook


def _computes_weight(hook: object) -> bool:
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


def applied(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what a layer computes with, named as in its state dict.

    Of a convolution the weight and bias as they are applied: after weight norm, pruning and other parametrisations.
    """
    if not isinstance(module, nn.modules.conv._ConvNd):
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    if any(map(_computes_weight, module._forward_pre_hooks.values())):
        module = clone(module).eval()  # in evaluation, spectral norm leaves its vectors as they are
        hooks: dict[int, Any] = module._forward_pre_hooks
        for hook in filter(_computes_weight, hooks.values()):
            hook(module, ())  # sets the weight anew
    tensors: dict[str, Any] = {"weight": module.weight, "bias": module.bias}
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if tensor is not None}


def user_hooks(module: nn.Module) -> bool:
    """Whether somebody watches what goes into or comes out of a module."""
    return any(not _computes_weight(hook) for table in _HOOKS for hook in getattr(module, table).values())


def fresh(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of the inputs of one call, since a network may write into them."""
    return tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs)


def tensors_of(example_inputs: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Example inputs as a tuple: tensors, and the plain numbers that a network may take after the first.

    Raises:  ConvError: when they are something else, or hold NaN or infinity.
    """
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if not inputs or not isinstance(inputs[0], Tensor) or not all(isinstance(x, Tensor | int | float) for x in inputs):
        raise conv_error("reconv", "example_inputs must be a tensor or a tuple of tensors",
                         got={"example_inputs": [type(x).__name__ for x in inputs]}, also=TypeError)  # fmt: skip
    if not all(bool(torch.isfinite(x).all()) for x in inputs if isinstance(x, Tensor)):
        raise conv_error("reconv", "example_inputs must be finite", got={"example_inputs": "NaN or Inf"},
                         do="Clean the data first.", also=ValueError)  # fmt: skip
    return inputs
