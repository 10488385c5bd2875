"""1D convolution with long kernels by the fast Fourier transform.

Beyond a few hundred taps a transform costs less than the taps. A long signal is cut into overlapping frames, so that
the transforms stay short. Sums are rounded otherwise than in a plain convolution: the relative error is about
1e-6 · log2(length) in float32, also for whole numbers.

Source:  Cooley and Tukey 1965; overlap-save: Stockham 1966
"""

from __future__ import annotations

from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.ops.kernel import Kernel, Run
from reconv.ops.problem import Problem

LEAST_TAPS = 512
DTYPES = (torch.float32, torch.float64)


def refuse(problem: Problem) -> str | None:
    """Why it does not serve, or None."""
    if problem.dims != 1:
        return "it is for 1D"
    if problem.dtype not in DTYPES:
        return f"the dtype must be one of {', '.join(map(str, DTYPES))}"
    return None if problem.w[2] >= LEAST_TAPS else f"the kernel must have at least {LEAST_TAPS} taps"


def prepare(problem: Problem) -> Run:
    """The function of x, w, bias and y."""
    (lo, _), (stride,), (dilation,) = problem.padding[0], problem.stride, problem.dilation
    length, width, taps = problem.x[2], problem.w[1], problem.w[2]
    groups, reach = problem.groups, dilation * (taps - 1) + 1
    span = stride * (problem.y[2] - 1) + 1  # outputs of stride 1, up to the last that is wanted

    def forward(x: Tensor, w: Tensor, b: Tensor | None, y: Any) -> Tensor:
        x = _placed(x, lo, span + reach - 1)
        output = _correlated(x.unflatten(1, (groups, 1, width)), _spread(w, dilation).unflatten(0, (groups, -1)))
        output = output.flatten(1, 2)[..., :span:stride]
        output = output.contiguous() if b is None else output + b[:, None]
        return output.relu_() if problem.relu else output

    def input_gradient(x: Any, w: Tensor, b: Tensor | None, y: Tensor) -> Tensor:
        y = _placed(_spread(y, stride), reach - 1 - lo, length + reach - 1)
        flipped = _spread(w, dilation).flip(2).unflatten(0, (groups, -1)).transpose(1, 2)
        output = _correlated(y.unflatten(1, (groups, 1, -1)), flipped).flatten(1, 2)
        return output if b is None else output + b[:, None]

    def weight_gradient(x: Tensor, w: Any, b: Any, y: Tensor) -> Tensor:
        """The output's gradient is the kernel here; the images of a batch are its channels."""
        x = _placed(x, lo, span + reach - 1).unflatten(1, (groups, width)).movedim(0, 2)  # groups, width, batch, length
        y = _spread(y, stride).unflatten(1, (groups, -1)).movedim(0, 2)
        found = torch.stack([_correlated(x[:, i, None], y) for i in range(width)], 2)
        return found[..., :reach:dilation].flatten(0, 1).contiguous()

    return {"forward": forward, "input_gradient": input_gradient, "weight_gradient": weight_gradient}[problem.op]


def _correlated(x: Tensor, w: Tensor) -> Tensor:
    """y[…, g, o, p] = Σ_{c,k} w[g, o, c, k] · x[…, g, 0, c, p + k], for every p at which w lies within x."""
    taps, length = w.shape[-1], x.shape[-1]
    size = _frame(taps, length)
    step, wanted = size - taps + 1, length - taps + 1
    frames = -(-wanted // step)
    x = F.pad(x, (0, (frames - 1) * step + size - length)).unfold(-1, size, step)  # …, g, 1, c, frame, size
    meets = torch.fft.rfft(w, size).conj()[..., None, :]
    products = torch.fft.rfft(x) * meets if w.shape[-2] == 1 else _summed(torch.fft.rfft(x), meets)
    if w.shape[-2] == 1:
        products = products.squeeze(-3)
    return torch.fft.irfft(products, size)[..., :step].flatten(-2)[..., :wanted]


def _summed(x: Tensor, w: Tensor) -> Tensor:
    """Σ_c, a channel at a time: the products of all would be large."""
    total = x[..., 0, :, :] * w[..., 0, :, :]
    for c in range(1, x.shape[-3]):
        total = total.addcmul_(x[..., c, :, :], w[..., c, :, :])
    return total


def _frame(taps: int, length: int) -> int:
    """The length of a transform that makes all of them cheapest."""
    sizes = {_smooth(length)} | {2**i for i in range(taps.bit_length(), length.bit_length() + 1) if 2**i >= 2 * taps}
    return min(sizes, key=lambda n: -(-(length - taps + 1) // (n - taps + 1)) * n * log2(n))


def _smooth(least: int) -> int:
    """The next length of small factors: 2ⁱ, 3·2ⁱ or 5·2ⁱ."""
    return min(f * 2 ** max(0, (-(-least // f) - 1).bit_length()) for f in (1, 3, 5))


def _placed(x: Tensor, lo: int, length: int) -> Tensor:
    """x behind `lo` zeros, and behind it zeros up to the length; what does not fit is cut off."""
    return F.pad(x, (lo, length - lo - x.shape[2]))


def _spread(x: Tensor, step: int) -> Tensor:
    """x with step − 1 zeros between its values."""
    if step == 1:
        return x
    wide = x.new_zeros(*x.shape[:2], (x.shape[2] - 1) * step + 1)
    wide[..., ::step] = x
    return wide


FFT = Kernel("fft", prepare, refuse)
