"""tensorly-torch: Tucker and CP of the weights. Its factors become plain layers, which are faster than its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..method import Method, Setting, Subject, first_conv

CP_ROUNDS = 30  # of alternating least squares; its 100 cost minutes and gain 1 to 5 % of the error
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def factorized(kind: str, subject: Subject, setting: Setting) -> nn.Module:
    """Every dense convolution but the first in factors."""
    model = copy.deepcopy(subject.model)
    spared = first_conv(model)
    for name, conv in list(model.named_modules()):
        dense = isinstance(conv, tuple(CONVS.values())) and conv.groups == 1 and conv is not spared
        # CP of a 1×1 is its SVD, which Tucker gives
        if dense and (kind == "tucker" or max(conv.kernel_size) > 1):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layers_of(kind, conv, setting["rank"]))
    return model


def layers_of(kind: str, conv: Any, rank: float) -> nn.Sequential:
    from tltorch import FactorizedConv

    torch.manual_seed(0)  # CP begins with random factors
    if kind == "tucker":
        return tucker_layers(conv, FactorizedConv.from_conv(conv, rank, factorization=kind,
                                                            fixed_rank_modes="spatial").weight)  # fmt: skip
    return cp_layers(conv, FactorizedConv.from_conv(conv, rank, factorization=kind,
                                                    decomposition_kwargs={"n_iter_max": CP_ROUNDS}).weight)  # fmt: skip


def tucker_layers(conv: Any, weight: Any) -> nn.Sequential:
    """1×1, the core, 1×1; where the core is a 1×1 it goes into the last."""
    (outside, inside), size = weight.factors[:2], len(conv.kernel_size)
    core = weight.core
    for axis, factor in enumerate(weight.factors[2:], 2):
        core = torch.tensordot(core, factor, ([axis], [1])).movedim(-1, axis)
    first = pointwise(inside.T, size)
    if max(conv.kernel_size) == 1:
        last = CONVS[size](core.shape[1], conv.out_channels, 1, conv.stride, bias=conv.bias is not None)
        return nn.Sequential(first, filled(last, pointed(outside @ core.flatten(1), size), conv.bias))
    middle = CONVS[size](core.shape[1], core.shape[0], conv.kernel_size, conv.stride, conv.padding, bias=False)
    return nn.Sequential(first, filled(middle, core), pointwise(outside, size, conv.bias))


def cp_layers(conv: Any, weight: Any) -> nn.Sequential:
    """1×1, one depthwise kernel that spans all axes, 1×1: its "mobilenet" implementation."""
    outside, inside, *along = weight.factors
    rank, size = outside.shape[1], len(conv.kernel_size)
    kernel = along[0].T
    for factor in along[1:]:
        kernel = kernel.unsqueeze(-1) * factor.T.view(rank, *[1] * (kernel.dim() - 1), -1)
    middle = CONVS[size](rank, rank, conv.kernel_size, conv.stride, conv.padding, groups=rank, bias=False)
    return nn.Sequential(pointwise(inside.T, size), filled(middle, kernel.unsqueeze(1)),
                         pointwise(outside * weight.weights, size, conv.bias))  # fmt: skip


def pointwise(matrix: Tensor, size: int, bias: Tensor | None = None) -> nn.Module:
    layer = CONVS[size](matrix.shape[1], matrix.shape[0], 1, bias=bias is not None)
    return filled(layer, pointed(matrix, size), bias)


def pointed(matrix: Tensor, size: int) -> Tensor:
    return matrix.reshape(*matrix.shape, *[1] * size)


@torch.no_grad()
def filled(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def sweep(*ranks: float) -> tuple[Setting, ...]:
    """rank: the share of the parameters that is kept."""
    return tuple({"rank": rank} for rank in ranks)


METHODS = (
    Method("tensorly-torch Tucker", lambda subject, setting: factorized("tucker", subject, setting),
           sweep(0.5, 0.25, 0.12)),
    Method("tensorly-torch CP", lambda subject, setting: factorized("cp", subject, setting), sweep(0.15)),
)  # fmt: skip
