"""Layers for operators of a traced graph: convolutions, batch norms and ReLUs that name where they stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

aten = torch.ops.aten
CONVS: dict[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d, aten.conv1d.padding: nn.Conv1d, aten.conv2d.default: nn.Conv2d,
    aten.conv2d.padding: nn.Conv2d, aten.conv3d.default: nn.Conv3d, aten.conv3d.padding: nn.Conv3d,
    aten.conv_transpose1d.default: nn.ConvTranspose1d, aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}  # fmt: skip
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
Found = tuple[str, nn.Module] | None


def layer_of(
    root: nn.Module, operator: Any, tensors: Mapping[str, str], given: Mapping[str, Any], ndim: int, stood: str
) -> Found:
    """The path and the layer that an operator was called by; None where that is not certain.

    Args:    tensors: the path of each tensor argument in `root`, "" where it is computed.
             given: the other arguments. ndim: of the input. stood: the module that called the operator, "" if unknown.
    """
    if operator in CONVS:
        return _conv(root, operator, tensors, _settings(operator, given))
    if operator is aten.batch_norm.default:
        return _norm(root, tensors, _settings(operator, given), ndim)
    if operator is aten.relu.default and stood and _free(root, stood):
        return stood, nn.ReLU()
    return None


def _settings(operator: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the operator that are no tensors."""
    return {a.name: given.get(a.name, a.default_value) for a in operator._schema.arguments}


def _conv(root: nn.Module, operator: Any, tensors: Mapping[str, str], given: dict[str, Any]) -> Found:
    place, weight, own = _place(root, tensors, "weight", "bias")
    settings = {
        key: given[key] for key in ("stride", "padding", "output_padding", "dilation", "groups") if key in given
    }
    if place is None or any(
        isinstance(x, dict) for s in settings.values() for x in (s if isinstance(s, list) else [s])
    ):
        return None
    kind, groups = CONVS[operator], given["groups"]
    out, into = weight.shape[0], weight.shape[1] * groups
    if "output_padding" in given:
        out, into = weight.shape[1] * groups, weight.shape[0]
    dims = weight.ndim - 2
    sizes = {k: v if isinstance(v, str | int) else tuple(v) * (dims if len(v) == 1 else 1) for k, v in settings.items()}
    layer = kind(into, out, tuple(weight.shape[2:]), **sizes, bias="bias" in own, device="meta")
    return _filled(root, place, layer, own)


def _norm(root: nn.Module, tensors: Mapping[str, str], given: dict[str, Any], ndim: int) -> Found:
    place, mean, own = _place(root, tensors, "running_mean", "running_var", "weight", "bias")
    if place is None or given["training"] or "running_var" not in own or ("weight" in own) != ("bias" in own):
        return None
    counter = {"num_batches_tracked": torch.tensor(0)}
    layer = NORMS[ndim](len(mean), given["eps"], given["momentum"], affine="weight" in own, device="meta")
    return _filled(root, place, layer, counter | own)


def _place(
    root: nn.Module, tensors: Mapping[str, str], first: str, *more: str
) -> tuple[str | None, Any, dict[str, Any]]:
    """The module that holds all these tensors under their usual names and nothing else, the first and all of them."""
    path, _, last = tensors.get(first, "").rpartition(".")
    wanted = {name: tensors[name] for name in (first, *more) if name in tensors}
    if not path or last != first or any(held != f"{path}.{name}" for name, held in wanted.items()):
        return None, None, {}
    module = root.get_submodule(path)
    own = {**module._parameters, **module._buffers}
    extra = {name for name, tensor in own.items() if tensor is not None} - wanted.keys() - {"num_batches_tracked"}
    if extra or module._modules:
        return None, None, {}
    return path, own[first], {name: tensor for name, tensor in own.items() if tensor is not None}


def _filled(root: nn.Module, path: str, layer: nn.Module, own: Mapping[str, Any]) -> Found:
    """The layer with these tensors; the one that is there already where it says the same, None where it says other."""
    present = root.get_submodule(path)
    if type(present) is not nn.Module:
        return (path, present) if repr(present) == repr(layer) else None
    for name, tensor in own.items():
        (layer._parameters if name in layer._parameters else layer._buffers)[name] = tensor
    return path, layer


def _free(root: nn.Module, path: str) -> bool:
    """Whether there is a ReLU at the path, or nothing yet."""
    module = root
    for part in path.split("."):
        if type(module) is not nn.Module:  # a layer, which calls none itself
            return False
        if part not in module._modules:
            return part.isidentifier() or part.isdigit()
        module = getattr(module, part)
    return isinstance(module, nn.ReLU)
