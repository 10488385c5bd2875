"""The native deformable convolution of two dimensions and its gradients (csrc/deform.cpp).

It samples stretches of positions into the cache, with channels as lanes, and multiplies them there: the matrix of all
samples, as large as the map times the kernel's points, is never in memory. `benchmarks/deform.py` has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from reconv.ops.dispatch import NOT_PLAIN, batched, plainness
from reconv.ops.native import TYPES, bound, native_isa
from reconv.spec import ConvSpec

MEASURED = ("avx512",)  # instruction sets with results; others take the plain operators
MOST_ELEMENTS, LONGEST = 2**31, 2**30  # places in the map are 32-bit
Plain = Callable[..., Tensor]  # of spec, input, offset, weight, bias and mask, by plain operators


def refuse(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
           mask: Tensor | None) -> str | None:  # fmt: skip
    """Why the native deformable convolution does not serve, or None."""
    if plainness(input, offset, weight, bias, mask) == NOT_PLAIN:  # first: torch.compile looks no further
        return "PyTorch must see plain operators, or the tensors are no ordinary ones"
    if native_isa() is None:
        return "the package was built without native kernels"
    if native_isa() not in MEASURED:
        return f"it has not been measured on {native_isa()}"
    if spec.spatial_dims != 2:
        return "it must have two dimensions"
    if input.dtype not in TYPES:
        return f"the dtype must be one of {', '.join(map(str, TYPES))}"
    if not all(input.shape) or not offset.numel():
        return "there must be something to compute"
    batch, channels, height, width = input.shape
    if (batch * (height + 2) + 3) * (width + 2) * channels + 64 >= MOST_ELEMENTS or _reach(spec, input) >= LONGEST:
        return f"the map must have fewer than {MOST_ELEMENTS} values and the window must stay near"
    return None


def _reach(spec: ConvSpec, input: Tensor) -> int:
    axes = zip(input.shape[2:], spec.kernel_size, spec.dilation, spec.padding, strict=True)
    return max(size + taps * step + lo + hi for size, taps, step, (lo, hi) in axes)


def convolve(plain: Plain, spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
             mask: Tensor | None) -> Tensor:  # fmt: skip
    """The deformable convolution, where nothing refuses it. `plain` gives the derivatives of its gradients."""
    tensors = (input, offset, weight, bias, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: Tensor = _Differentiable.apply(plain, spec, *tensors)  # type: ignore[no-untyped-call]
        return output
    return _forward(spec, *tensors)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain: Plain, spec: ConvSpec, *tensors: Any) -> Tensor:
        ctx.plain, ctx.spec = plain, spec
        ctx.save_for_backward(*tensors)
        return _forward(spec, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or plainness(grads[0], *tensors) == NOT_PLAIN or batched(grads[0]):
            return (None, None, *_plain_gradients(ctx.plain, ctx.spec, tensors, wanted, grads[0]))
        return (None, None, *_gradients(ctx.spec, tensors, wanted, grads[0]))


def _plain_gradients(plain: Plain, spec: ConvSpec, tensors: Sequence[Tensor | None], wanted: Sequence[bool],
                     grad: Tensor) -> list[Tensor | None]:  # fmt: skip
    """The gradients by plain operators, which can be differentiated and batched themselves."""
    create = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Views: one given tensor may have been computed from another.
        seen = [t if t is None else t.view_as(t) if t.requires_grad else t.detach() for t in tensors]
        asked = [t for t, want in zip(seen, wanted, strict=True) if t is not None and want]
        found = iter(torch.autograd.grad(plain(spec, *seen), asked, grad, create_graph=create))
    return [next(found) if want else None for want in wanted]


# -- calls of the kernels -------------------------------------------------------------------------
def _forward(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
             mask: Tensor | None) -> Tensor:  # fmt: skip
    input, last = _laid(input)
    offset, weight = offset.contiguous(), weight.contiguous()
    bias, mask = (t if t is None else t.contiguous() for t in (bias, mask))
    output = input.new_empty((input.shape[0], spec.out_channels, *offset.shape[2:]))
    _call(0, spec, input, offset, last)(input, offset, mask, weight, bias, output, *[None] * 6)
    return output


def _gradients(spec: ConvSpec, tensors: Sequence[Any], wanted: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
    """The gradients to input, offset, weight, bias and mask, where they are wanted."""
    input, last = _laid(tensors[0])
    offset, weight = tensors[1].contiguous(), tensors[2].contiguous()
    mask = None if tensors[4] is None else tensors[4].contiguous()
    found = [torch.empty_like(t) if want else None
             for t, want in zip((input, offset, weight, tensors[3], mask), wanted, strict=True)]  # fmt: skip
    to_input, to_offset, to_weight, to_bias, to_mask = found
    _call(1, spec, input, offset, last)(input, offset, mask, weight, None, None, grad.contiguous(),
         to_input, to_offset, to_mask, to_weight, to_bias)  # fmt: skip
    return found


def _laid(input: Tensor) -> tuple[Tensor, bool]:
    """The input, in one of the layouts that the kernels read; and whether it is channels_last."""
    if input.is_contiguous():
        return input, False
    if input.is_contiguous(memory_format=torch.channels_last):
        return input, True
    return input.contiguous(), False


def _call(which: int, spec: ConvSpec, input: Tensor, offset: Tensor, last: bool) -> Callable[..., None]:
    """A function of DeformTensors of csrc/deform.hpp."""
    return _bound(which, spec, input.shape, offset.shape, last, input.dtype, torch.get_num_threads())


@lru_cache(maxsize=4096)
def _bound(which: int, spec: ConvSpec, input: torch.Size, offset: torch.Size, last: bool, dtype: torch.dtype,
           threads: int) -> Callable[..., None]:  # fmt: skip
    taps = spec.kernel_size[0] * spec.kernel_size[1]
    numbers = [input[0], spec.groups, offset[1] // (2 * taps), spec.in_channels, spec.out_channels]
    for size, out, kernel, stride, dilation, (lo, _) in zip(
        input[2:], offset[2:], spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True
    ):
        numbers += [size, out, kernel, stride, dilation, lo]
    return bound("deform", which, dtype, [*numbers, last, threads])
