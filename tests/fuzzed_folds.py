"""What must hold of a random call (fuzzed.py): a fold for each way to compute it, `check` for any.

The truth is float64, by PyTorch's plain operators and, where it is small, by `ops.reference` as well. On whole numbers
equality is exact. On other numbers the error is at most (n + 4) · ε · Σ|x·w|, n summands to an output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import prod
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from cases import fill
from fuzzed import DTYPES, VIEWS, Call
from handmade import distance, make_site, run
from test_rules_random import check as stand_in
from torch import Tensor, nn

from reconv import functional
from reconv.errors import ConvError
from reconv.layers import build
from reconv.ops import deform, problem, reference, separable_native, ways
from reconv.ops.dispatch import KERNELS
from reconv.ops.fft import FFT
from reconv.ops.kernel import TORCH, Kernel, conv_by_torch, torch_run, transposed_by_torch
from reconv.ops.native import native_isa
from reconv.ops.problem import Problem
from reconv.ruleset import RULES, Rule
from reconv.spec import Chain, ConvSpec, Deform, convs, output_shape, parse


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
            raise Wrong(f"{what}: {_differing(got, want)}: {call}")
        return
    assert scale is not None
    bound = (summands + 4) * torch.finfo(dtype).eps * scale
    if not bool(((got - want).abs() <= bound).all()):  # NaN is wrong, too
        raise Wrong(f"{what}: {_differing(got, want)}: {call}")


def _differing(got: Tensor, want: Tensor) -> str:
    wrong = (got != want).nonzero()
    at = tuple(wrong[0].tolist())
    return f"{len(wrong)} of {want.numel()} values differ, the first at {at}: {float(got[at])} for {float(want[at])}"


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
    try:
        yield from _entered(call, spec, given)
    except Wrong:
        if not _torch_is_wrong(call, spec, given):
            raise
        yield TORCHS_OWN


TORCHS_OWN = "wrong in PyTorch as well"  # 2.13: channels_last maps of one channel in 3D, with strides


def _torch_is_wrong(call: Call, spec: ConvSpec, given: Sequence[Tensor]) -> bool:
    """Whether PyTorch's own operator on these tensors is not what it is in float64, either."""
    try:
        list(_compared(call, lambda *t: _by_torch(spec, *t), lambda *t: _by_torch(spec, *t), given, _summands(spec)))
    except Wrong:
        return True
    return False


def _entered(call: Call, spec: ConvSpec, given: Sequence[Tensor]) -> Iterator[str]:
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
            alive.append(_run(kernel, known, tensors))
            most = _of_transform(known, tensors) if kernel is FFT else scale
            given = replace(call, whole=call.whole and kernel is not FFT)
            what = f"{kernel.name}, {known.op}"
            try:
                must_equal(given, what, alive[-1], want, most, _terms(known))
            except Wrong:  # PyTorch by a detour is wrong where PyTorch is
                if not kernel.foreign or torch.equal(_run(TORCH, known, tensors).double(), want):
                    raise
                what = TORCHS_OWN
            yield what
            if call.seed % 4 == 0 and not kernel.foreign and kernel is not FFT:
                if not torch.equal(_run(kernel, known._replace(threads=3 - min(call.threads, 2)), tensors), alive[-1]):
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


def _run(kernel: Kernel, known: Problem, tensors: Sequence[Tensor | None]) -> Tensor:
    """What is to be computed is not there yet: a kernel that reads it gets NaN."""
    hidden = {"forward": 3, "input_gradient": 0, "weight_gradient": 1}[known.op]
    given = [torch.full_like(t, torch.nan) if i == hidden and t is not None else t for i, t in enumerate(tensors)]
    return kernel.prepare(known)(*given)


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


# -- layers of all kinds of block -----------------------------------------------------------------
@torch.no_grad()
def layered(call: Call) -> Iterator[str]:
    """What `build` makes of a block, in evaluation mode, against the reference."""
    block = parse(call.block)
    if str(block) != call.block:
        raise Wrong(f"its text must be {block}: {call}")
    layer = fill_small(build(block, dtype=torch.float64), call)
    input = laid(call, numbers(call, call.shape, 0), 0)
    truth = torch.from_numpy(reference.run(block, layer.state_dict(), input))
    layer = layer.to(input.dtype)
    if call.views[1] == "channels_last" and next(convs(block)).spatial_dims == 2:
        layer = layer.to(memory_format=torch.channels_last)
    output = layer(input)
    if tuple(output.shape) != output_shape(block, call.shape) or output.shape != truth.shape:
        raise Wrong(f"shape {tuple(output.shape)}: {call}")
    largest = max(1.0, float(truth.abs().max()))
    if not float((output.double() - truth).abs().max()) <= 2e3 * torch.finfo(output.dtype).eps * largest:
        raise Wrong(f"output {_differing(output.double(), truth)}: {call}")
    if not torch.equal(layer(input), output):
        raise Wrong(f"the same bits again: {call}")
    yield "output"


def fill_small(layer: nn.Module, call: Call) -> nn.Module:
    """Whole numbers, so small that nothing grows much through some layers."""
    fill(layer)
    for name, tensor in layer.state_dict().items():
        if not name.endswith(("index", "running_var")):
            tensor.clamp_(-1, 1)
    return layer.eval()


# -- calls that are wrong -------------------------------------------------------------------------
def mistaken(call: Call) -> Iterator[str]:
    """Where PyTorch raises, so do we, an error of its type; where it computes, we give the same."""
    spec, r = ConvSpec.parse(call.block), Random(call.seed)
    name = f"conv{'_transpose' * spec.transposed}{spec.spatial_dims}d"
    given: dict[str, Any] = {
        "input": numbers(call, call.shape, 0).to(DTYPES[call.dtype]), "bias": None, "stride": spec.stride,
        "weight": numbers(call, spec.weight_shape, 1).to(DTYPES[call.dtype]), "groups": spec.groups,
        "padding": tuple((min if spec.transposed else max)(pair) for pair in spec.padding), "dilation": spec.dilation,
    }  # fmt: skip
    if spec.bias:
        given["bias"] = numbers(call, (spec.out_channels,), 3).to(DTYPES[call.dtype])
    if spec.transposed:
        given["output_padding"] = spec.output_padding
    right, before = dict(given), _outcome(getattr(functional, name), given)
    for _ in range(r.choice((1, 1, 2))):
        key = r.choice(tuple(given))
        change = r.choice(_MISTAKES[key if key in _MISTAKES else "number"])
        with suppress(AttributeError, IndexError):  # two mistakes may exclude each other
            given[key] = change(r, given[key])
    outcomes = [_outcome(getattr(module, name), given) for module in (functional, torch.nn.functional)]
    ours, theirs = outcomes
    if isinstance(theirs, Tensor):
        if not (isinstance(ours, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)):
            raise Wrong(f"torch computes it, we: {ours!r:.200}: {_shown(given)}: {call}")
    elif not (isinstance(ours, ConvError) and isinstance(ours, type(theirs)) and str(ours).startswith(f"{name}: ")):
        raise Wrong(f"torch: {theirs!r:.200}, we: {ours!r:.200}: {_shown(given)}: {call}")
    after = _outcome(getattr(functional, name), right)  # nothing of the mistake is remembered
    if not (isinstance(before, Tensor) and isinstance(after, Tensor) and torch.equal(before, after)):
        raise Wrong(f"before {before!r:.200}, after {after!r:.200}: {_shown(given)}: {call}")
    yield "computed" if isinstance(theirs, Tensor) else "an error of its type"


def _outcome(compute: Callable[..., Tensor], given: dict[str, Any]) -> object:
    try:
        return compute(**given)
    except Exception as error:
        return error


def _shown(given: dict[str, Any]) -> dict[str, object]:
    return {n: (tuple(t.shape), t.dtype) if isinstance(t, Tensor) else t for n, t in given.items()}


_MISTAKES: dict[str, tuple[Callable[[Random, Any], Any], ...]] = {
    "number": (
        lambda r, v: r.choice((0, -1, 1, 2, 3, 7, 100)), lambda r, v: (1,) * r.randint(0, 4), lambda r, v: [2],
        lambda r, v: r.choice((1.0, None, "same", (1.5,), (-1,), [[1]], True)),
    ),
    "padding": (
        lambda r, v: r.choice((0, -1, 1, 2, 50)), lambda r, v: (1,) * r.randint(0, 4),
        lambda r, v: r.choice(("same", "valid", "sam", 1.0, None, (0.5,), (-1,), [0])),
    ),
    "input": (
        lambda r, v: v[0], lambda r, v: v[None], lambda r, v: v[0, 0], lambda r, v: v[:, :-1], lambda r, v: v[..., :1],
        lambda r, v: v.double(), lambda r, v: v.long(), lambda r, v: v[:0], lambda r, v: v[..., :0],
        lambda r, v: None, lambda r, v: v.tolist(), lambda r, v: torch.cat([v, v], 1),
    ),
    "weight": (
        lambda r, v: v[0], lambda r, v: v[None], lambda r, v: v[:-1], lambda r, v: v[:, :-1], lambda r, v: v[..., :0],
        lambda r, v: v.float(), lambda r, v: v.bfloat16(), lambda r, v: None, lambda r, v: torch.cat([v, v], 1),
    ),
    "bias": (
        lambda r, v: None, lambda r, v: torch.ones(r.randint(0, 5)), lambda r, v: torch.ones(1, 1),
        lambda r, v: torch.tensor(1.0), lambda r, v: 1.0, lambda r, v: v if v is None else v[:-1],
        lambda r, v: v if v is None else v[None], lambda r, v: v if v is None else v.long(),
    ),
}  # fmt: skip


# -- rules ----------------------------------------------------------------------------------------
RULES_TRIED = [rule for rule in RULES if rule.group != "denser"]


def ruled(call: Call) -> Iterator[str]:
    """Each of some rules refuses with a reason, or offers what stands in the place, as near as it says."""
    spec = ConvSpec.parse(call.block)
    for step in (0, 9, 17):
        rule = RULES_TRIED[(call.seed + step) % len(RULES_TRIED)]
        stand_in(rule, spec)
        yield rule.name
        if rule.group == "smaller" and rule.name != "prune_channels":  # that needs a network
            yield from _as_near_as_it_says(call, rule, spec)


def _as_near_as_it_says(call: Call, rule: Rule, spec: ConvSpec) -> Iterator[str]:
    """The response to one-hot inputs holds every weight once, so its relative error is that of the weights; that to
    zeros is the bias.
    """
    pads = [(d * (k - 1),) * 2 for d, k in zip(spec.dilation, spec.kernel_size, strict=True)]
    once = spec.replace(padding=0) if spec.transposed else spec.replace(padding=pads, stride=1, padding_mode="zeros")
    site = make_site(once)
    if rule.refuse(site):
        return
    channels = once.in_channels
    one_hot = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * once.spatial_dims)
    nothing = torch.zeros_like(one_hot)
    offered = list(rule.propose(site))
    for proposal in offered[:: max(1, len(offered) // 4)]:
        weights = rule.init(site, proposal)
        was, now = (run(block, tensors, one_hot) - run(block, tensors, nothing) for block, tensors in
                    ((site.block, site.tensors), (proposal.block, weights.tensors)))  # fmt: skip
        if abs(distance(was, now) - weights.error) > 1e-8:
            raise Wrong(f"{proposal.block} is {distance(was, now)} apart, said to be {weights.error}: {call}")
        if not torch.allclose(run(proposal.block, weights.tensors, nothing), run(site.block, site.tensors, nothing)):
            raise Wrong(f"{proposal.block} has another bias: {call}")
        yield f"{rule.name} as near as it says"


FOLDS: dict[str, Callable[[Call], Iterable[str]]] = {
    "call": entrance, "kernels": each_kernel, "separable": separated, "deform": deformed, "layer": layered,
    "mistake": mistaken,
    "rule": ruled,
}  # fmt: skip
