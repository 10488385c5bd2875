"""The convolution as one opaque operator, for torch.compile: reconv::convolution chooses its kernel when it runs.

Elsewhere nothing goes through it: torch.export gets PyTorch's own operators, and eager mode is called directly, which
costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reconv.ops import results
from reconv.ops.kernel import CHANNELS_LAST, conv_by_torch, transposed_by_torch
from reconv.ops.problem import gives_channels_last, has_sides
from reconv.ops.ways import transposed_ways, ways

ARGUMENTS = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
LIBRARY = torch.library.Library("reconv", "DEF")
LIBRARY.define(f"convolution(Tensor input, Tensor weight, Tensor? bias, {ARGUMENTS}) -> Tensor")
LIBRARY.define(f"convolution_backward(Tensor grad, Tensor input, Tensor weight, {ARGUMENTS}, bool[] mask) -> "
               "(Tensor, Tensor, Tensor)")  # fmt: skip
HAS_RESULTS = results.has_table(results.results_isa())


def opaque(dims: int, input: Tensor, weight: Tensor, groups: int, padding: Any = 0) -> bool:
    """Whether torch.compile shall see the opaque operator: of the kinds for which there are faster kernels.

    A dense 2D or 1×1 convolution stays PyTorch's, as the compiler lays out and fuses those well.
    """
    return (
        HAS_RESULTS
        and torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not isinstance(padding, str)
        and input.device.type == "cpu"
        and input.ndim == weight.ndim == dims + 2
        and (groups > 1 or dims == 3)
        and not torch.is_autocast_enabled("cpu")
    )


def arguments(dims: int, stride: Any, padding: Any, dilation: Any, transposed: bool = False,
              output_padding: Any = 0) -> tuple[Any, ...]:  # fmt: skip
    """As the schema has them; padding: low and high of each axis in turn."""
    pads = padding if has_sides(padding) else tuple((n, n) for n in _each(padding, dims))
    flat = [side for pair in pads for side in pair]
    return _each(stride, dims), flat, _each(dilation, dims), transposed, _each(output_padding, dims)


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


def _pairs(padding: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(before, behind) of each axis, as the entrances take them."""
    return tuple(zip(padding[::2], padding[1::2], strict=True))


def _found(input: Tensor, weight: Tensor, bias: bool, stride: Any, padding: Any, dilation: Any, transposed: bool,
           output_padding: Any, groups: int) -> Any:  # fmt: skip
    known = (weight.ndim - 2, input.shape, input.stride(), weight.shape, weight.stride(), bias, tuple(stride),
             _pairs(padding), tuple(dilation))  # fmt: skip
    rest = (groups, input.dtype, torch.get_num_threads())
    return transposed_ways(*known, tuple(output_padding), *rest) if transposed else ways(*known, *rest)


def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    with torch.no_grad():
        found = _found(input, weight, bias is not None, *settings)
        output = (found.run if bias is None or found.takes(bias) else found.by_torch)(input, weight, bias)
    return _as(_dense(input, weight, output.new_empty(output.shape, device="meta")), output)


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    return _dense(input, weight, _by_torch(input, weight, bias, *settings))


def _dense(input: Tensor, weight: Tensor, output: Tensor) -> Tensor:
    """An output of this shape, in the layout that torch gives it."""
    given = [(tuple(t.shape), t.stride()) for t in (input, weight)]
    last = gives_channels_last(output.dtype, *given)
    return torch.empty_like(output, memory_format=CHANNELS_LAST[output.ndim - 2] if last else torch.contiguous_format)


def _as(form: Tensor, found: Tensor) -> Tensor:
    """What was found, in memory as it was promised."""
    if found.stride() == form.stride() and not found.storage_offset():
        return found
    return torch.empty_like(form, device=found.device).copy_(found)


def _by_torch(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
              transposed: bool, output_padding: Any, groups: int) -> Tensor:  # fmt: skip
    dims, pads = weight.ndim - 2, _pairs(padding)
    if transposed:
        return transposed_by_torch(dims, input, weight, bias, stride, pads, output_padding, groups, dilation)
    return conv_by_torch(dims, input, weight, bias, stride, pads, dilation, groups)


def _backward(grad: Tensor, input: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    *settings_, mask = settings
    with torch.no_grad():
        found = _found(input, weight, False, *settings_).gradients(grad, input, weight, mask)
    forms = _fake_backward(*(t.to("meta") for t in (grad, input, weight)), *settings)
    return tuple(grad.new_empty(0) if t is None else _as(form, t) for form, t in zip(forms, found, strict=True))


def _fake_backward(grad: Tensor, input: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    mask, transposed = settings[-1], settings[3]
    channels = weight.shape[1] * settings[5] if transposed else weight.shape[0]
    shapes = (input, weight, grad.new_empty(channels))
    return tuple(torch.empty_like(t) if wanted else grad.new_empty(0) for t, wanted in zip(shapes, mask, strict=True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, *ctx.settings = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(input, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    mask = [*ctx.needs_input_grad[:2], ctx.with_bias and ctx.needs_input_grad[2]]
    found = torch.ops.reconv.convolution_backward(grad, input, weight, *ctx.settings, mask)
    return (*(t if wanted else None for t, wanted in zip(found, mask, strict=True)), *[None] * 6)


LIBRARY.impl("convolution", _convolution, "CPU")
LIBRARY.impl("convolution_backward", _backward, "CPU")
torch.library.register_fake("reconv::convolution", _fake, lib=LIBRARY)
torch.library.register_fake("reconv::convolution_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("reconv::convolution", _differentiate, setup_context=_save, lib=LIBRARY)
