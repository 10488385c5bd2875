"""A layer that spreads blocks of channels over space."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

from reconv.errors import conv_error
from reconv.layers.described import Described
from reconv.spec.block import PixelShuffle


class PixelShuffleLayer(Described, nn.Module):
    """y[n, c, s·p + r] = x[n, (c, r), p], then cut at the ends; (N, C, *spatial), or without a batch.

    Args:    factors: s of each axis; crop: (lo, hi) positions to cut off each axis.
    Raises:  ConvError: when these are no 1, 2 or 3 counts, or no pairs.
    Source:  Shi et al. 2016, arXiv:1609.05158
    Example:
             >>> import torch
             >>> PixelShuffleLayer((2, 2), crop=((0, 1), (0, 1)))(torch.zeros(1, 12, 4, 4)).shape
             torch.Size([1, 3, 7, 7])
    """

    def __init__(self, factors: Sequence[int], crop: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.shuffle = PixelShuffle(factors, crop)  # type: ignore[arg-type]  # which makes tuples of them

    def forward(self, input: Tensor) -> Tensor:
        factors = self.shuffle.factors
        dims = len(factors)
        if input.ndim not in (dims + 1, dims + 2) or input.shape[-dims - 1] % prod(factors):
            raise conv_error("pixel_shuffle", f"input must be (N, a multiple of {prod(factors)}, {dims} spatial axes)",
                             got={"input": tuple(input.shape)}, spec=self.shuffle, also=RuntimeError)  # fmt: skip
        output = F.pixel_shuffle(input, factors[0]) if dims == 2 and len(set(factors)) == 1 else _spread(input, factors)
        for axis, (lo, hi) in enumerate(self.shuffle.crop, -dims):
            if lo or hi:
                output = output.narrow(axis, lo, output.shape[axis] - lo - hi)
        return output

    def extra_repr(self) -> str:
        return str(self.shuffle).partition("(")[2][:-1]


def _spread(input: Tensor, factors: Sequence[int]) -> Tensor:
    """Any factors, in any number of dimensions: (…, C·∏s, *p) to (…, C, *s, *p) to (…, C, *(p, s)) to (…, C, *p·s)."""
    dims = len(factors)
    *front, channels = input.shape[:-dims]
    lengths = input.shape[-dims:]
    parted = input.reshape(*front, channels // prod(factors), *factors, *lengths)
    first = len(front) + 1
    order = [axis for i in range(first, first + dims) for axis in (i + dims, i)]
    grown = [s * n for s, n in zip(factors, lengths, strict=True)]
    return parted.permute(*range(first), *order).reshape(*front, channels // prod(factors), *grown)
