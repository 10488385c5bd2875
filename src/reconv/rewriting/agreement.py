"""Whether a network that was written or read elsewhere computes the same, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
DISCRETE_TOLERANCE = 1e-3  # share of whole numbers or booleans (an argmax, say) that rounding may turn


def agreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float]:
    """(error, tolerance) of the output that is nearest to its tolerance.

    The error is the largest difference of any element, the tolerance a part of the largest that was expected; of whole
    numbers it is the share that differs.

    Raises:  ValueError: where shapes or dtypes differ, or a tolerance is passed; its text goes on from "it".
    Example:
             >>> agreement([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -4.0])])
             (0.0, 0.004)
    """
    kinds = [
        [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors] for tensors in (expected, got)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"its outputs are {', '.join(kinds[1])}, not {', '.join(kinds[0])}")
    if not expected:
        raise ValueError("the network returns no tensor")
    error, tolerance = max(map(_difference, expected, got), key=lambda pair: pair[0] / pair[1])
    if not error <= tolerance:
        raise ValueError(f"its outputs are {error:.3g} away from the network's; {tolerance:.3g} would be rounding")
    return error, tolerance


def _difference(expected: Tensor, got: Tensor) -> tuple[float, float]:
    if not (expected.is_floating_point() or expected.is_complex()):
        return (expected != got).double().mean().item() if expected.numel() else 0.0, DISCRETE_TOLERANCE
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), got.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs())
    error = apart.nan_to_num(nan=float("inf")).max().item() if apart.numel() else 0.0
    finite = a.abs()[a.isfinite()]
    scale = finite.max().item() if finite.numel() else 0.0
    return error, TOLERANCE.get(expected.dtype, 1e-3) * (scale or 1.0)
