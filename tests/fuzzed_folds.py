"""What must hold of a random call (fuzzed.py): a fold for each way to compute it, `check` for any.

The truth is float64, by PyTorch's plain operators and, where it is small, by `ops.reference` as well. On whole numbers
equality is exact. On other numbers the error is at most (n + 4) · ε · Σ|x·w|, n summands to an output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from fuzzed import DTYPES, Call
from fuzzed_blocks import layered, ruled
from fuzzed_bounds import Wrong, laid, must_equal, numbers
from fuzzed_mistakes import mistaken
from kernel_cases import computed
from torch import Tensor

from reconv import functional
from reconv.layers import build
from reconv.ops import deform, problem, reference, separable_native, ways
from reconv.ops.dispatch import KERNELS
from reconv.ops.fft import FFT
from reconv.ops.kernel import TORCH, Kernel, conv_by_torch, torch_run, transposed_by_torch
from reconv.ops.native import native_isa
from reconv.ops.problem import Problem
from reconv.spec import Chain, ConvSpec, Deform, output_shape, parse


# -- what must hold -------------------------------------------------------------------------------
@contextmanager
def of_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def every_way() -> Iterator[None]:
    """Kernels are chosen as on a processor that they were measured on, and for gradients whatever they save."""
    here = (native_isa(),)
    with (patch("reconv.ops.direct.MEASURED", here), patch("reconv.ops.deform_native.MEASURED", here),
          patch("reconv.ops.separable_native.MEASURED", here), patch("reconv.ops.ways.OVERHEAD_MS", -1.0),
          patch("reconv.ops.dispatch.CALL_MS", 0.0),
          patch("reconv.ruleset.kernel._gains", lambda *_: True)):  # fmt: skip
        ways.forget()
        yield
    ways.forget()


def check(call: Call) -> Counter[str]:
    """Raises Wrong where the call gives anything else than it must; what was compared, and how often."""
    with of_threads(call.threads):
        return Counter(FOLDS[call.kind](call))


# -- the entrances --------------------------------------------------------------------------------
def entrance(call: Call) -> Iterator[str]:
    """torch.nn.functional's signatures, or the layer where the padding is no zeros; and all gradients."""
    spec = ConvSpec.parse(call.block)
    sizes = (call.shape, spec.weight_shape, (spec.out_channels,))
    exact = [numbers(call, size, i) for i, size in enumerate(sizes[: 2 + spec.bias])]
    given = [laid(call, t, (0, 1, 3)[i]) for i, t in enumerate(exact)]
    ours, theirs = (lambda *t: _by_entrance(spec, *t)), (lambda *t: _by_torch(spec, *t))
    yield from _compared(call, ours, theirs, given, _summands(spec))
    if len(given[0]) and call.seed % 4 == 0:
        alone = _by_entrance(spec, given[0][-1], *given[1:])
        must_equal(call, "a sample alone", alone[None], _by_torch(spec, *(t.double() for t in given))[-1:],
                   _by_torch(spec, *(t.double().abs() for t in given))[-1:], _summands(spec))  # fmt: skip
        yield "a sample alone"
    if len(given[0]) and prod(spec.kernel_size) * spec.groups <= 40:
        bias = given[2] if spec.bias else torch.zeros(spec.out_channels)
        truth = reference.run(spec, {"weight": given[1], "bias": bias}, given[0])
        exact = [t.double() for t in given]
        scale = _by_torch(spec, *(t.abs() for t in exact))
        must_equal(call, "the reference", _by_entrance(spec, *given), torch.from_numpy(truth), scale, _summands(spec))
        yield "reference"


def _by_entrance(spec: ConvSpec, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if spec.padding_mode != "zeros":
        layer = build(spec, dtype=input.dtype)
        return torch.func.functional_call(layer, {"weight": weight} | ({} if bias is None else {"bias": bias}), input)
    dims, pads = spec.spatial_dims, spec.even_padding or spec.padding
    if spec.transposed:
        compute: Any = getattr(functional, f"conv_transpose{dims}d")
        return compute(input, weight, bias, spec.stride, pads, spec.output_padding, spec.groups, spec.dilation)
    compute = getattr(functional, f"conv{dims}d")
    return compute(input, weight, bias, spec.stride, pads, spec.dilation, spec.groups)


def _by_torch(spec: ConvSpec, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if spec.padding_mode != "zeros":
        flat = [side for pair in reversed(spec.padding) for side in pair]
        input = torch.nn.functional.pad(input, flat, mode=spec.padding_mode)
        spec = spec.replace(padding=0, padding_mode="zeros")
    dims, pads = spec.spatial_dims, spec.even_padding or spec.padding
    if spec.transposed:
        return transposed_by_torch(dims, input, weight, bias, spec.stride, pads, spec.output_padding, spec.groups,
                                   spec.dilation)  # fmt: skip
    return conv_by_torch(dims, input, weight, bias, spec.stride, pads, spec.dilation, spec.groups)


def _summands(spec: ConvSpec) -> int:
    return prod(spec.kernel_size) * spec.in_channels // spec.groups + 1


def _compared(call: Call, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], given: Sequence[Tensor],
              summands: int) -> Iterator[str]:  # fmt: skip
    """Output and, where they are asked for, gradients of the one on what is given and of the other in float64."""
    wanted = call.grads
    leaves = [t.detach().requires_grad_(wanted) for t in given]
    truth = [t.detach().double().requires_grad_(wanted) for t in given]
    output, want = ours(*leaves), theirs(*truth)
    scales = [t.detach().abs().requires_grad_(wanted) for t in truth]
    scale = theirs(*scales) if wanted or _needs_scale(call, want) else None
    must_equal(call, "output", output, want, scale, summands)
    yield "output"
    if not wanted:
        return
    assert scale is not None
    grad = laid(call, numbers(call, tuple(output.shape), 5), 2)
    found = torch.autograd.grad(output, leaves, grad)
    right = torch.autograd.grad(want, truth, grad.double())
    most = torch.autograd.grad(scale, scales, grad.double().abs())
    many = summands + prod(output.shape)
    for i, (a, b, c) in enumerate(zip(found, right, most, strict=True)):
        must_equal(call, f"gradient {i}", a, b, c, many)
        yield f"gradient {i}"


def _needs_scale(call: Call, want: Tensor) -> bool:
    return not call.whole or DTYPES[call.dtype].itemsize < 4


# -- every kernel, whichever would be chosen ------------------------------------------------------
def each_kernel(call: Call) -> Iterator[str]:
    """All three passes by each kernel that serves them, on operands that lie anyhow."""
    spec, dtype = ConvSpec.parse(call.block), DTYPES[call.dtype]
    out = output_shape(spec, call.shape)
    small, large = (out, call.shape) if not spec.transposed else (call.shape, out)  # of y and of x
    x, w, y = (laid(call, numbers(call, size, i), i) for i, size in enumerate((large, spec.weight_shape, small)))
    bias = numbers(call, (spec.out_channels,), 3).to(dtype) if spec.bias else None
    for known, b in _problems(call, spec, (x, w, y), bias):
        tensors: list[Tensor | None] = [x, w, b, y]
        want, scale = _wanted(known, tensors), None
        if not call.whole or dtype.itemsize < 4:
            scale = _wanted(known._replace(relu=False), [t if t is None else t.abs() for t in tensors])
        alive = []  # so that none is given the memory of another one's result
        for kernel in _serving(known):
            alive.append(computed(kernel, known, tensors))
            most = _of_transform(known, tensors) if kernel is FFT else scale
            given = replace(call, whole=call.whole and kernel is not FFT)
            what = f"{kernel.name}, {known.op}"
            must_equal(given, what, alive[-1], want, most, _terms(known))
            yield what
            if call.seed % 4 == 0 and not kernel.foreign and kernel is not FFT:
                others = known._replace(threads=3 - min(call.threads, 2))
                if not torch.equal(computed(kernel, others, tensors), alive[-1]):
                    raise Wrong(f"{kernel.name}, {known.op}: other bits with other threads: {call}")
                yield "threads"


def _problems(call: Call, spec: ConvSpec, tensors: Sequence[Tensor],
              bias: Tensor | None) -> Iterator[tuple[Problem, Tensor | None]]:  # fmt: skip
    """The three passes, each with its bias: that of a convolution or of a transposed one."""
    x, w, y = ((tuple(t.shape), t.stride()) for t in tensors)
    dims, of_bias = spec.spatial_dims, True if bias is None else (tuple(bias.shape), bias.stride())
    settings, rest = (spec.stride, spec.padding, spec.dilation), (spec.groups, tensors[0].dtype, call.threads)
    if spec.transposed:
        known = problem.transposed(dims, *y, *w, of_bias, *settings, spec.output_padding, *rest)
    else:
        known = problem.forward(dims, *x, *w, of_bias, *settings, *rest, relu=bool(call.seed % 3 == 0))
    if known is None:
        raise Wrong(f"there must be a problem: {call}")
    yield known, bias
    grad = x if spec.transposed else y
    for other in problem.gradients(known, grad[1]):
        yield other, None


def _serving(known: Problem) -> Iterator[Kernel]:
    return (k for k in KERNELS[known.op] if k is not TORCH and k.refuse(known) is None)


def _wanted(known: Problem, tensors: Sequence[Tensor | None]) -> Tensor:
    exact = torch_run(known._replace(dtype=torch.float64, relu=False))(
        *(t if t is None else t.double() for t in tensors)
    )
    return exact.relu() if known.relu else exact


def _terms(known: Problem) -> int:
    return known.macs // max(1, prod(known.wanted[0])) + 1


def _of_transform(known: Problem, tensors: Sequence[Tensor | None]) -> Tensor:
    """A transform spreads its rounding over all values."""
    want = _wanted(known._replace(relu=False), [t if t is None else t.abs() for t in tensors])
    return torch.full_like(want, float(want.max()))


# -- deformable and separable ---------------------------------------------------------------------
def deformed(call: Call) -> Iterator[str]:
    block = parse(call.block)
    assert isinstance(block, Deform)
    spec, out = block.conv, output_shape(block, call.shape)
    points = block.offset_groups * prod(spec.kernel_size)
    sizes = {"input": call.shape, "offset": (call.shape[0], points * spec.spatial_dims, *out[2:]),
             "weight": spec.weight_shape, "bias": (spec.out_channels,),
             "mask": (call.shape[0], points, *out[2:])}  # fmt: skip
    names = [n for n in sizes if (n != "bias" or spec.bias) and (n != "mask" or block.modulated)]
    exact = [numbers(call, sizes[n], i, half=n in ("offset", "mask")) for i, n in enumerate(names)]
    given = [laid(call, t, (0, 2, 1, 3, 2)[list(sizes).index(n)]) for n, t in zip(names, exact, strict=True)]
    window = {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation}
    compute: Any = getattr(functional, f"deform_conv{spec.spatial_dims}d")

    def ours(*tensors: Tensor) -> Tensor:
        return compute(**dict(zip(names, tensors, strict=True)), **window)

    def theirs(*tensors: Tensor) -> Tensor:
        return deform._by_operators(spec, **dict(zip(names, tensors, strict=True)))

    summands = _summands(spec) * 2**spec.spatial_dims
    yield from _compared_loosely(call, ours, theirs, given, summands)
    if prod(out) * prod(spec.kernel_size) * block.offset_groups <= 300:
        arrays = {n: t.double().numpy() for n, t in zip(names, given, strict=True)}
        truth = reference.deform_conv(spec, arrays["input"], arrays["offset"], arrays["weight"],
                                      arrays.get("bias", torch.zeros(spec.out_channels).double().numpy()),
                                      arrays.get("mask"))  # fmt: skip
        _near(call, "the reference", ours(*given), torch.from_numpy(truth), summands)
        yield "reference"


def _compared_loosely(call: Call, ours: Callable[..., Tensor], theirs: Callable[..., Tensor],
                      given: Sequence[Tensor], summands: int) -> Iterator[str]:  # fmt: skip
    leaves = [t.detach().requires_grad_(call.grads) for t in given]
    truth = [t.detach().double().requires_grad_(call.grads) for t in given]
    output, want = ours(*leaves), theirs(*truth)
    _near(call, "output", output, want, summands)
    yield "output"
    if call.grads:
        grad = laid(call, numbers(call, tuple(output.shape), 5), 2)
        pairs = zip(
            torch.autograd.grad(output, leaves, grad), torch.autograd.grad(want, truth, grad.double()), strict=True
        )
        for i, (found, right) in enumerate(pairs):
            _near(call, f"gradient {i}", found, right, summands)
            yield f"gradient {i}"


def _near(call: Call, what: str, got: Tensor, want: Tensor, summands: int) -> None:
    """Exact for whole numbers and halves; else to rounding of the largest value."""
    largest = max(1.0, float(want.detach().abs().max())) * 8
    must_equal(call, what, got, want, None if call.whole else torch.full_like(want.detach(), largest), summands)


def separated(call: Call) -> Iterator[str]:
    """The entrance, and the native kernel with its ReLUs where it can compute them."""
    block = parse(call.block)
    assert isinstance(block, Chain)
    first, then = block.blocks
    assert isinstance(first, ConvSpec)
    assert isinstance(then, ConvSpec)
    sizes = [call.shape, first.weight_shape, then.weight_shape, *([(then.out_channels,)] if then.bias else [])]
    exact = [numbers(call, size, i) for i, size in enumerate(sizes)]
    given = [laid(call, t, (0, 1, 1, 3)[i]) for i, t in enumerate(exact)]
    compute: Any = getattr(functional, f"separable_conv{first.spatial_dims}d")
    pads = first.even_padding or first.padding

    def ours(input: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor | None = None) -> Tensor:
        return compute(input, depthwise, pointwise, bias, first.stride, pads, first.dilation)

    def theirs(input: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor | None = None) -> Tensor:
        return _by_torch(then, _by_torch(first, input, depthwise), pointwise, bias)

    summands = _summands(first) * _summands(then)
    rounded = call.dtype == "bfloat16"  # between the two as well, where two kernels compute them
    if not rounded:
        yield from _compared(call, ours, theirs, given, summands)
    input, depthwise, pointwise, *bias = given
    known = problem.forward(first.spatial_dims, tuple(input.shape), input.stride(), tuple(depthwise.shape),
                            depthwise.stride(), True, first.stride, first.padding, first.dilation, first.groups,
                            input.dtype, call.threads, relu=call.seed % 2 == 0)  # fmt: skip
    operand = (tuple(pointwise.shape), pointwise.stride())
    if known is None or separable_native.cannot(known, operand) or (bias and bias[0].stride() != (1,)):
        return
    relu = call.seed % 3 == 0
    got = separable_native.prepare(known, operand, call.threads, relu)(
        input, depthwise, None, pointwise, *(bias or [None])
    )
    between = _by_torch(first, input.double(), depthwise.double())
    want = _by_torch(then, between.relu() if known.relu else between, pointwise.double(), *(b.double() for b in bias))
    scale = theirs(*(t.double().abs() for t in given))
    must_equal(call, "the native kernel", got, want.relu() if relu else want, scale, summands)
    yield "native"


FOLDS: dict[str, Callable[[Call], Iterable[str]]] = {
    "call": entrance, "kernels": each_kernel, "separable": separated, "deform": deformed, "layer": layered,
    "mistake": mistaken,
    "rule": ruled,
}  # fmt: skip
