"""How far a student is from its teacher, as a loss that can be learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def distillation_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The mean over tensors of ‖s − t‖² / ‖t‖² (of ‖s‖² where t is 0).

    Example:
        >>> distillation_loss([torch.tensor([3.0, 3.0])], [torch.tensor([3.0, 4.0])])
        tensor(0.0400)
    """
    return torch.stack([_relative(s, t) for s, t in zip(ours, theirs, strict=True)]).mean()


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    loss: Tensor = _RelativeDistance.apply(ours, theirs)  # type: ignore[no-untyped-call]
    return loss


class _RelativeDistance(torch.autograd.Function):
    """‖s − t‖² / ‖t‖² in as few passes over s and t as there can be, since activations are large; t is fixed."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(theirs)
        size = torch.where(size > 0, size, 1.0)
        apart = ours - theirs
        ctx.save_for_backward(apart, size)
        return (torch.linalg.vector_norm(apart) / size).square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        apart, size = ctx.saved_tensors
        return apart * (2 * grad / size / size), None


def label_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor], targets: Tensor | None) -> Tensor | None:
    """Cross entropy with targets that are class indices, to the first output of scores (N, K) that knows them.

    Labels that the teacher mostly contradicts number the classes in another way: they are not used.
    """
    if targets is None or targets.ndim != 1 or targets.dtype not in INDICES or int(targets.min()) < 0:
        return None
    for scores, known in zip(ours, theirs, strict=True):
        fits = scores.ndim == 2 and len(scores) == len(targets) and int(targets.max()) < scores.shape[1]
        if fits and 2 * int((known.argmax(1) == targets).sum()) > len(targets):
            return F.cross_entropy(scores, targets.long())
    return None
