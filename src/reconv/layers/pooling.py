"""`GridPool`: a max or average pooling with any padding and dilation, which PyTorch's own poolings lack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.errors import conv_error
from reconv.ops.problem import Pads, flat_pads


class GridPool(nn.Module):
    """The largest value, or the mean, under a kernel with gaps; in any number of dimensions.

        y[n, c, p] = max_k or 1/K Σ_k  x[n, c, s·p + d·k − lo]

    Args:    kind: "max" or "avg". padding: (lo, hi) of each axis; what of hi is beyond lo is never counted.
             count_include_pad: whether K counts positions in the padding, as in torch.nn.AvgPool2d.
             divisor: takes the place of K.
    Raises:  ConvError: when the kernel is larger than the padded input.
    Example:
             >>> pool = GridPool("avg", (2,), (1,), ((0, 0),), (3,))
             >>> pool(torch.arange(5.0)[None, None])
             tensor([[[1.5000, 2.5000]]])
    """

    def __init__(self, kind: str, kernel_size: Sequence[int], stride: Sequence[int], padding: Pads,
                 dilation: Sequence[int], count_include_pad: bool = True,
                 divisor: int | None = None) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.kernel_size, self.stride = kind, tuple(kernel_size), tuple(stride)
        self.padding, self.dilation = tuple(padding), tuple(dilation)
        self.count_include_pad, self.divisor = count_include_pad, divisor

    def forward(self, input: Tensor) -> Tensor:
        if self.kind == "max":
            padded = self.padded(input, -torch.inf)
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.kernel_size) - 1]
            return pool(padded, self.kernel_size, self.stride, 0, self.dilation)
        total = self.summed(self.padded(input, 0.0))
        if self.divisor is not None:
            return total / self.divisor
        counted = self.counted(input)
        return total / (prod(self.kernel_size) if counted is None else counted)

    def padded(self, input: Tensor, value: float) -> Tensor:
        return F.pad(input, flat_pads(self.padding), value=value)

    def counted(self, input: Tensor) -> Tensor | None:
        """How many positions each mean is over; None: all of the kernel's."""
        inner = [(lo, lo) if self.count_include_pad else (0, 0) for lo, _ in self.padding]
        outer = [(lo - a, hi - b) for (lo, hi), (a, b) in zip(self.padding, inner, strict=True)]
        if not any(map(any, outer)):
            return None
        lengths = input.shape[input.ndim - len(self.kernel_size) :]
        ones = input.new_ones([1, 1, *(n + a + b for n, (a, b) in zip(lengths, inner, strict=True))])
        return self.summed(F.pad(ones, flat_pads(outer)))

    def summed(self, padded: Tensor) -> Tensor:
        spans = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        lengths = padded.shape[padded.ndim - len(spans) :]
        if any(n <= span for n, span in zip(lengths, spans, strict=True)):
            raise conv_error("GridPool", "the kernel must fit its padded input", also=RuntimeError,
                             got={"kernel extents": [s + 1 for s in spans], "lengths": list(lengths)})  # fmt: skip
        total: Tensor | None = None
        for taps in product(*map(range, self.kernel_size)):
            starts = [d * k for d, k in zip(self.dilation, taps, strict=True)]
            window: Any = tuple(slice(at, n - span + at, s) for at, n, span, s in
                           zip(starts, lengths, spans, self.stride, strict=True))  # fmt: skip
            part = padded[..., *window]
            total = part if total is None else total + part
        assert total is not None  # a kernel has a tap
        return total

    def extra_repr(self) -> str:
        return (f"{self.kind}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
                f"dilation={self.dilation}")  # fmt: skip
