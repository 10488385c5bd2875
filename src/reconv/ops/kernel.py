"""`Kernel`: one way to compute a pass of a convolution; and those that PyTorch brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.ops.problem import Problem, Shape, Size, flat_pads, has_sides, is_mistaken, pads_beyond

Run = Callable[[Any, Any, Any, Any], Tensor]  # of x, w, bias and y: what the pass does not read may be None
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Kernel:
    """One way to compute a pass of a convolution.

    `refuse` tells why it cannot serve a problem, or None; `prepare` makes the function that computes it.
    `foreign` are PyTorch's own ways: any of them gives what torch gives.
    """

    name: str
    prepare: Callable[[Problem], Run]
    refuse: Callable[[Problem], str | None]
    foreign: bool = False


# -- PyTorch, as it would do it -------------------------------------------------------------------
def conv_by_torch(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
                  dilation: Size, groups: int) -> Tensor:  # fmt: skip
    """torch.nn.functional's convolution, with a padding per side besides; around two faults of PyTorch 2.13, `beyond`
    and `is_mistaken`.
    """
    mistaken = False
    if isinstance(input, Tensor) and isinstance(weight, Tensor) and weight.ndim == dims + 2:
        padding = pads_beyond(weight.shape, padding, dilation) or padding
        lie = (input.shape, input.stride()), (weight.shape, weight.stride())
        mistaken = input.ndim == weight.ndim and is_mistaken(input.dtype, groups, *lie)
        if mistaken:
            input, weight = input.contiguous(), weight.contiguous()
    if has_sides(padding):
        input, padding = F.pad(input, flat_pads(padding)), 0
    output = CONV[dims](input, weight, bias, stride, padding, dilation, groups)
    return output.contiguous(memory_format=CHANNELS_LAST[dims]) if mistaken else output


def transposed_by_torch(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
                        output_padding: Size, groups: int, dilation: Size) -> Tensor:  # fmt: skip
    """torch.nn.functional's transposed convolution, with a padding per side: torch cuts the even part off."""
    if not has_sides(padding):
        return CONV_TRANSPOSE[dims](input, weight, bias, stride, padding, output_padding, groups, dilation)
    even = [min(pair) for pair in padding]
    output = CONV_TRANSPOSE[dims](input, weight, bias, stride, even, output_padding, groups, dilation)
    for axis, ((lo, hi), both) in enumerate(zip(padding, even, strict=True), start=output.ndim - len(even)):
        length = output.shape[axis] - lo - hi + 2 * both
        if length < 1:
            raise RuntimeError("the padding must leave some of the output")
        output = output.narrow(axis, lo - both, length)
    return output


def torch_run(problem: Problem) -> Run:
    """PyTorch's own operator for the pass."""
    if problem.op == "forward" and not problem.transposed:
        return _torch_forward(problem)
    if problem.op == "input_gradient" and problem.transposed:
        return _torch_transposed(problem)
    return _torch_gradient(problem)


def _torch_forward(problem: Problem) -> Run:
    pads = problem.even_padding or problem.padding
    settings = (problem.stride, pads, problem.dilation, problem.groups)

    def run(x: Tensor, w: Tensor, b: Tensor | None, y: Any) -> Tensor:
        output = conv_by_torch(problem.dims, x, w, b, *settings)
        return output.relu_() if problem.relu else output

    return run


def _torch_transposed(problem: Problem) -> Run:
    pads = problem.even_padding or problem.padding
    settings = (problem.stride, pads, _output_padding(problem), problem.groups, problem.dilation)
    return lambda x, w, b, y: transposed_by_torch(problem.dims, y, w, b, *settings)


def _output_padding(problem: Problem) -> Shape:
    """Of a transposed convolution: what its output has more than its input asks for."""
    each = zip(problem.x[2:], problem.y[2:], problem.stride, problem.padding, problem.dilation, problem.w[2:],
               strict=True)  # fmt: skip
    return tuple(n - ((m - 1) * s - lo - hi + d * (k - 1) + 1) for n, m, s, (lo, hi), d, k in each)


def _torch_gradient(problem: Problem) -> Run:
    """By PyTorch's backward pass; x has zeros around it where the padding is uneven, as torch knows none such."""
    backward, place = torch.ops.aten.convolution_backward, int(problem.op == "weight_gradient")
    mask = [place == 0, place == 1, False]
    if problem.transposed:
        even = [min(pair) for pair in problem.padding]
        more = flat_pads([(lo - p, hi - p) for (lo, hi), p in zip(problem.padding, even, strict=True)])
        settings: Any = (problem.stride, even, problem.dilation, True, _output_padding(problem), problem.groups, mask)
        return lambda x, w, b, y: backward(_padded(x, more), y, w, None, *settings)[place]
    flat = [] if problem.even_padding is not None else flat_pads(problem.padding)
    none = [0] * problem.dims
    settings = (problem.stride, problem.even_padding or none, problem.dilation, False, none, problem.groups, mask)

    def run(x: Tensor, w: Tensor, b: Any, y: Tensor) -> Tensor:
        found: Tensor = backward(y, _padded(x, flat), w, None, *settings)[place]
        if flat and place == 0:
            for axis, (lo, _) in enumerate(problem.padding, start=2):
                found = found.narrow(axis, lo, problem.x[axis])
        return found

    return run


def _padded(x: Tensor, flat: Sequence[int]) -> Tensor:
    return F.pad(x, list(flat)) if any(flat) else x


TORCH = Kernel("torch", torch_run, lambda problem: None, foreign=True)


# -- the router: PyTorch by a detour that can be the shorter way ----------------------------------
def _refuse_onednn(problem: Problem) -> str | None:
    if problem.op != "forward" or problem.transposed:
        return "it computes nothing but the forward pass"
    if problem.dtype != torch.float32:
        return "the dtype must be torch.float32"
    return None if torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available() else "oneDNN is switched off"


def _onednn(problem: Problem) -> Run:
    """oneDNN, where PyTorch would take its plain loops instead (Slow2d, Slow3d)."""
    function, flat, even = torch.ops.aten.mkldnn_convolution, flat_pads(problem.padding), problem.even_padding
    line = problem.dims == 1  # as a map of height 1
    widen: tuple[int, ...] = (1,) if line else ()
    stride, dilation = (*widen, *problem.stride), (*widen, *problem.dilation)
    pads = ((0,) if line else ()) + (even if even is not None else (0,) * problem.dims)

    def run(x: Tensor, w: Tensor, b: Tensor | None, y: Any) -> Tensor:
        if even is None:
            x = F.pad(x, flat)
        if line:
            x, w = x.unsqueeze(2), w.unsqueeze(2)
        output = function(x, w, b, pads, stride, dilation, problem.groups)
        output = output.squeeze(2) if line else output
        return output.relu_() if problem.relu else output

    return run


ONEDNN = Kernel("onednn", _onednn, _refuse_onednn, foreign=True)


def _relaid(problem: Problem) -> Run:
    """PyTorch in the other memory format, and back."""
    run, last = torch_run(problem), not problem.is_channels_last()
    there = CHANNELS_LAST[max(2, problem.dims)] if last else torch.contiguous_format
    _, strides = problem.wanted

    def relaid(tensor: Tensor | None) -> Any:
        if tensor is None or tensor.ndim < 3:
            return tensor
        if tensor.ndim == 3 and last:  # as a map of height 1
            return tensor.unsqueeze(2).contiguous(memory_format=there).squeeze(2)
        return tensor.contiguous(memory_format=there)

    def detour(x: Tensor | None, w: Tensor | None, b: Tensor | None, y: Tensor | None) -> Tensor:
        output = run(relaid(x), relaid(w), b, relaid(y))
        return output if output.stride() == strides else output.new_empty_strided(output.shape, strides).copy_(output)

    return detour


def _refuse_relaid(problem: Problem) -> str | None:
    """In bfloat16 channels_last PyTorch 2.13 gives wrong gradients to the weights of dilated groups; in float32 wrong
    values in 3D, where a weight of one channel is of both layouts.
    """
    if problem.dims == 3 and problem.groups == 1 and 1 in problem.w[:2]:
        return "one channel in 3D, on which PyTorch in channels_last may be wrong"
    return None if problem.dtype in (torch.float32, torch.float64) else "the dtype must be float32 or float64"


RELAID = Kernel("torch, other layout", _relaid, _refuse_relaid, foreign=True)
