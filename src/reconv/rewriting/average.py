"""A moving average of the weights that training passes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential moving average of parameters, begun at their values now.

        a ← d · a + (1 − d) · w,    d = min(decay, (1 + step) / (10 + step))

    Example:
        >>> w = torch.tensor([0.0])
        >>> average = Average([w], decay=0.5)
        >>> _ = w.fill_(8.0)
        >>> average.add(step=90)
        >>> average.tensors
        [tensor([4.])]
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors = [p.detach().clone() for p in parameters]

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Goes on from an average that was written."""
        self.tensors = [tensor.to(p.device) for tensor, p in zip(tensors, self.parameters, strict=True)]

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Takes the parameters up as they are after so many steps; the first steps count for more."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The parameters are the average meanwhile."""
        raw = [p.detach().clone() for p in self.parameters]
        self._show(self.tensors)
        try:
            yield
        finally:
            self._show(raw)

    @torch.no_grad()
    def _show(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.copy_(tensor)
