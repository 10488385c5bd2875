"""How far a student is from its teacher, as a loss that can be learned from; also of a share of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.rewriting.teacher import Answer

INNER, LABELS = 1.0, 0.02  # weights of the matched activations, which fade, and of the labels beside the outputs
INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Whole:
    """What the loss of a share must know of the whole batch, so that the losses of all shares add up to its own.

    Args:    sizes: ‖t‖ of the teacher's outputs and of its matched activations; None: those of the share itself.
             votes: with how many labels each of its outputs agrees, minus infinity where they cannot be its labels.
    """

    samples: int
    votes: Sequence[float] = ()
    sizes: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, wanted: Answer, targets: Tensor | None) -> Whole:
        """Of a batch that one process has to itself."""
        return cls(len(targets) if targets is not None else 0, label_votes(wanted.outputs, targets))

    @classmethod
    def over(cls, wanted: Answer, targets: Tensor | None, there: bool, total: Callable[[Tensor], Tensor]) -> Whole:
        """Of one that several processes share; `there`: whether this one has any part of it."""
        tensors = [*wanted.outputs, *wanted.inner]
        squares = [torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in tensors]
        own = Whole.of(wanted, targets)
        counted = torch.stack([*squares, *squares[0].new_tensor([*own.votes, own.samples])])
        *sums, samples = total(counted if there else torch.zeros_like(counted))
        votes = [float(v) for v in sums[len(tensors) :]]
        return cls(int(samples), votes, [s.sqrt() for s in sums[: len(tensors)]])


def loss_of(ours: Answer, wanted: Answer, targets: Tensor | None, whole: Whole, inner: float) -> Tensor:
    """The loss of a share of a batch; `inner`: the weight of the matched activations."""
    outputs = len(wanted.outputs)
    sizes = (None, None) if whole.sizes is None else (whole.sizes[:outputs], whole.sizes[outputs:])
    loss = distillation_loss(ours.outputs, wanted.outputs, sizes[0])
    if ours.inner:
        loss = loss + inner * distillation_loss(ours.inner, wanted.inner, sizes[1])
    labels = label_loss(ours.outputs, targets, whole)
    return loss if labels is None else loss + LABELS * labels


def distillation_loss(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], sizes: Sequence[Tensor] | None = None
) -> Tensor:
    """The mean over tensors of ‖s − t‖² / ‖t‖² (of ‖s‖² where t is 0).

    Args:    sizes: ‖t‖ of larger tensors, of which these are parts.
    Example:
        >>> distillation_loss([torch.tensor([3.0, 3.0])], [torch.tensor([3.0, 4.0])])
        tensor(0.0400)
    """
    norms = sizes or [torch.linalg.vector_norm(t) for t in theirs]
    return torch.stack([_relative(s, t, norm) for s, t, norm in zip(ours, theirs, norms, strict=True)]).mean()


def _relative(ours: Tensor, theirs: Tensor, size: Tensor) -> Tensor:
    loss: Tensor = _RelativeDistance.apply(ours, theirs, size.to(theirs.dtype))  # type: ignore[no-untyped-call]
    return loss


class _RelativeDistance(torch.autograd.Function):
    """‖s − t‖² / ‖t‖² in as few passes over s and t as there can be, since activations are large; t is fixed."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor, size: Tensor) -> Tensor:
        size = torch.where(size > 0, size, 1.0)
        apart = ours - theirs
        ctx.save_for_backward(apart, size)
        return (torch.linalg.vector_norm(apart) / size).square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        apart, size = ctx.saved_tensors
        return apart * (2 * grad / size / size), None, None


def label_votes(theirs: Sequence[Tensor], targets: Tensor | None) -> list[float]:
    """With how many labels each of the teacher's outputs agrees; minus infinity: they cannot be its classes."""
    if targets is None or targets.ndim != 1 or targets.dtype not in INDICES or int(targets.min()) < 0:
        return [-math.inf] * len(theirs)
    last, votes = int(targets.max()), []
    for scores in theirs:
        fits = scores.ndim == 2 and len(scores) == len(targets) and last < scores.shape[1]
        votes.append(float((scores.argmax(1) == targets).sum()) if fits else -math.inf)
    return votes


def label_loss(ours: Sequence[Tensor], targets: Tensor | None, whole: Whole) -> Tensor | None:
    """Cross entropy with targets that are class indices, to the first output of scores (N, K) that knows them.

    Labels that the teacher mostly contradicts number the classes in another way: they are not used.
    """
    for scores, agreed in zip(ours, whole.votes, strict=True):
        if targets is not None and 2 * agreed > whole.samples:
            return F.cross_entropy(scores, targets.long(), reduction="sum") / whole.samples
    return None
