"""What the middle of a layer's output sees of the input: all that can count, and how much of it does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reconv.costing.receptive import ReceptiveField
from reconv.errors import conv_error
from reconv.surgery.clone import clone, fresh
from reconv.surgery.outputs import tensors_in
from reconv.surgery.trace import Trace
from reconv.surgery.watched import watched

Window = tuple[tuple[int, int], ...]  # per axis, the first position and the one behind the last


def theoretical_fields(model: nn.Module, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Window | None]:
    """The input positions that can change the middle of some modules' outputs, unclipped; None where unknown.

    Returns: for each module that ran; the axes are those along which convolutions slide.
    Raises:  ConvError: when the network rejects the inputs.
    Example:
             >>> theoretical_fields(nn.Sequential(nn.Conv1d(1, 1, 5, padding=2)), (torch.ones(1, 1, 3),), ["0"])
             {'0': ((-1, 4),)}
    """
    net, inputs, seen = clone(model), fresh(inputs), dict[str, Window | None]()
    observer = ReceptiveField(inputs)

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensors = tensors_in(output)
        if tensors and name not in seen:
            seen[name] = observer.middle(tensors[0])

    for name in names:
        net.get_submodule(name).register_forward_hook(partial(note, name))
    Trace.of(net, inputs, observer)
    return seen


def effective_fields(model: nn.Module, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The effective receptive field of the middle of some modules' outputs, over samples.

        field[p] = mean over samples n of Σ_c |∂ (Σ_o y[n, o, centre]) / ∂ x[n, c, p]|

    Args:    inputs: as the network takes them, the first floating, (N, C, *spatial). names: of modules that give
             (N, C, *spatial).
    Returns: for each module that ran, its field over the first input: (*spatial).
    Raises:  ConvError: when the first input has no gradient.
    Source:  Luo et al. 2016, arXiv:1701.04128
    Example:
             >>> net = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.ReLU())
             >>> (effective_fields(net, (torch.ones(2, 1, 7),), ["0"])["0"] > 0).int().tolist()
             [0, 0, 1, 1, 1, 0, 0]
    """
    first, *others = fresh(inputs)
    if not first.is_floating_point():
        raise conv_error("effective_fields", "the first input must be floating, so that it has a gradient",
                         got={"dtype": first.dtype}, also=TypeError)  # fmt: skip
    net = clone(model).eval()
    for parameter in filter(lambda each: each.is_leaf, net.parameters()):  # TorchScript's copies are none
        parameter.requires_grad_(False)
    first.requires_grad_()
    with torch.enable_grad(), watched(net, names) as seen:
        net(first.clone(), *others)  # it may write into its input
        return {name: _field(output, first) for name, output in seen.items() if output.requires_grad}


def _field(output: Tensor, first: Tensor) -> Tensor:
    """Of the middle of one output, which has its axes where the input has them."""
    middle = output
    for size in output.shape[2:]:
        middle = middle.select(2, size // 2)
    (gradient,) = torch.autograd.grad(middle.sum(), first, retain_graph=True)
    return gradient.abs().sum(1).mean(0)


def within(field: Tensor, share: float = 0.95) -> Window:
    """Per axis, the first position and the one behind the last, between which this share of a field's sum lies.

    Example:
             >>> within(torch.tensor([0.0, 1.0, 8.0, 1.0, 0.0]), 0.5), within(torch.tensor([0.0, 1.0, 8.0, 1.0, 0.0]))
             (((2, 3),), ((1, 4),))
    """
    return tuple(_ends(field.double().sum([a for a in range(field.ndim) if a != axis]) if field.ndim > 1
                       else field.double(), share) for axis in range(field.ndim))  # fmt: skip


def _ends(along: Tensor, share: float) -> tuple[int, int]:
    """What lies below the first and above the last position are halves of the rest, at most."""
    total = float(along.sum())
    if not total:
        return 0, 0
    reached = along.cumsum(0) / total
    low = int((reached <= (1 - share) / 2).sum())
    high = int((reached < (1 + share) / 2).sum())
    return low, min(high + 1, len(along))
