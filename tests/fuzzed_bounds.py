"""Numbers for a random call (fuzzed.py), and how near to the truth what it computes must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fuzzed import DTYPES, VIEWS, Call
from torch import Tensor


# -- numbers --------------------------------------------------------------------------------------
def numbers(call: Call, shape: Sequence[int], place: int, half: bool = False) -> Tensor:
    """Float64 values that the call's dtype can hold; whole ones so small that sums stay exact in it."""
    generator = torch.Generator().manual_seed(8 * call.seed + place)
    if not call.whole:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(DTYPES[call.dtype]).double()
    most = 1 if DTYPES[call.dtype].itemsize < 4 else 3 if call.kind == "deform" else 4
    found = torch.randint(-most, most + 1, tuple(shape), generator=generator).double()
    return found / 2 if half else found


def laid(call: Call, tensor: Tensor, place: int, dtype: torch.dtype | None = None) -> Tensor:
    return VIEWS[call.views[place]](tensor.to(dtype or DTYPES[call.dtype]))


# -- what must hold -------------------------------------------------------------------------------
class Wrong(AssertionError):  # noqa: N818 - what is wrong is a call
    """Some computation is not what it must be."""


def must_equal(call: Call, what: str, got: Tensor, want: Tensor, scale: Tensor | None, summands: int) -> None:
    """scale: Σ|x·w| for each value; None where the values are exact whatever they are."""
    dtype = DTYPES[call.dtype]
    if got.dtype != dtype or got.shape != want.shape:
        raise Wrong(f"{what}: {got.dtype} {tuple(got.shape)}, wanted {dtype} {tuple(want.shape)}: {call}")
    got, want = got.detach().double(), want.detach()
    if not got.numel():
        return
    if call.whole and (scale is None or float(scale.detach().max()) <= 2 / torch.finfo(dtype).eps):
        if not torch.equal(got, want):
            raise Wrong(f"{what}: {differing(got, want)}: {call}")
        return
    assert scale is not None
    bound = (summands + 4) * torch.finfo(dtype).eps * scale
    if not bool(((got - want).abs() <= bound).all()):  # NaN is wrong, too
        raise Wrong(f"{what}: {differing(got, want)}: {call}")


def differing(got: Tensor, want: Tensor) -> str:
    wrong = (got != want).nonzero()
    at = tuple(wrong[0].tolist())
    return f"{len(wrong)} of {want.numel()} values differ, the first at {at}: {float(got[at])} for {float(want[at])}"
