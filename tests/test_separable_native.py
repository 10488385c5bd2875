"""The native separable convolution against two convolutions of PyTorch's in float64, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from cases import whole_numbers
from torch import Tensor
from torch.nn import functional as F

from reconv.ops import problem as problems
from reconv.ops import separable_native
from reconv.ops.native import native_isa
from reconv.ops.problem import Problem, dense_strides, flat_pads
from reconv.spec import ConvSpec, parse

pytestmark = pytest.mark.skipif(native_isa() is None, reason="no native kernels")
CONV = {1: F.conv1d, 2: F.conv2d}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CASES = [  # depthwise part, output channels, input: around the lanes of a vector, the length of a tile and of a segment
    ("ic1oc1k3x3p1", 1, (1, 1, 5, 5)),
    ("ic16oc16k3x3p1g16", 16, (2, 16, 9, 11)),
    ("ic17oc17k5x5s2p2g17", 33, (1, 17, 12, 7)),
    ("ic3oc3k3x3s2p1d2g3", 65, (1, 3, 15, 16)),
    ("ic15oc15k3x3p0:1x2:0g15", 130, (2, 15, 8, 29)),
    ("ic32oc32k7x7p3g32nb", 48, (1, 32, 30, 31)),
    ("ic64oc64k3x3p1g64", 64, (1, 64, 5, 57)),
    ("ic8oc8k5x5p3:3x4:2g8", 9, (1, 8, 2, 3)),
    ("ic33oc33k2x3s3x4g33", 1, (1, 33, 9, 9)),
    ("ic20oc20k3x1p1x0g20", 30, (1, 20, 7, 130)),
    ("ic5oc5k2x3s5p9g5", 7, (1, 5, 3, 2)),
    ("ic70oc70k31p15g70", 40, (1, 70, 300)),
    ("ic6oc6k4s3p2:1d2g6", 7, (2, 6, 50)),
]
cases = pytest.mark.parametrize("text, out_channels, shape", CASES)


def operands(
    text: str, out_channels: int, shape: tuple[int, ...], dtype: torch.dtype, last: bool
) -> tuple[ConvSpec, list[Tensor | None]]:
    """The depthwise convolution, its input, weight and bias, and the pointwise weight and bias."""
    spec = parse(text)
    assert isinstance(spec, ConvSpec)
    ones = (1,) * spec.spatial_dims
    sizes = (shape, spec.weight_shape, (spec.out_channels,), (out_channels, spec.out_channels, *ones), (out_channels,))
    tensors: list[Tensor | None] = []
    for seed, size in enumerate(sizes):
        values = whole_numbers(size, seed).to(dtype)
        if last and len(size) > 1:
            values = values.new_empty_strided(size, dense_strides(size, True)).copy_(values)
        tensors.append(values)
    if not spec.bias:
        tensors[2] = tensors[4] = None
    return spec, tensors


def problem_of(spec: ConvSpec, input: Tensor, weight: Tensor, relu: bool = False) -> Problem:
    known = problems.forward(spec.spatial_dims, tuple(input.shape), input.stride(), tuple(weight.shape),
                             weight.stride(), True, spec.stride, spec.padding, spec.dilation, spec.groups,
                             input.dtype, 1, relu)  # fmt: skip
    assert known is not None
    return known


def compute(spec: ConvSpec, tensors: list[Tensor | None], threads: int = 1, relu: tuple[bool, bool] = (False, False)):
    input, weight, _, pointwise, _ = tensors
    known, operand = problem_of(spec, input, weight, relu[0]), (tuple(pointwise.shape), pointwise.stride())
    assert separable_native.cannot(known, operand) is None
    return separable_native.prepare(known, operand, threads, relu[1])(*tensors)


def wanted(spec: ConvSpec, tensors: list[Tensor | None], relu: tuple[bool, bool] = (False, False)) -> Tensor:
    input, weight, bias, pointwise, pointwise_bias = (None if t is None else t.double() for t in tensors)
    conv = CONV[spec.spatial_dims]
    padded = F.pad(input, flat_pads(spec.padding))
    between = conv(padded, weight, bias, spec.stride, 0, spec.dilation, spec.groups)
    result = conv(between.relu() if relu[0] else between, pointwise, pointwise_bias)
    return result.relu() if relu[1] else result


@cases
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_numbers_are_exact(text, out_channels, shape, dtype, last):
    spec, tensors = operands(text, out_channels, shape, dtype, last)
    for relu in ((False, False), (True, False), (False, True)):
        got = compute(spec, tensors, relu=relu)
        assert got.dtype == dtype
        assert torch.equal(got.double(), wanted(spec, tensors, relu).to(dtype).double())


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_output_lies_as_the_input(last):
    spec, tensors = operands("ic16oc16k3x3p1g16", 24, (2, 16, 9, 11), torch.float32, last)
    assert compute(spec, tensors).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_views_are_read_where_they_are():
    spec, tensors = operands("ic17oc17k3x3s2p1g17", 33, (2, 17, 10, 12), torch.float32, False)
    want = wanted(spec, tensors)
    whole = [torch.full([size + 3 for size in t.shape], torch.nan) for t in tensors]
    views = [t[tuple(slice(1, 1 + size) for size in of.shape)].copy_(of) for t, of in zip(whole, tensors, strict=True)]
    views[2], views[4] = views[2].contiguous(), views[4].contiguous()
    assert torch.equal(compute(spec, views).double(), want)


@cases
def test_threads_do_not_change_a_bit(text, out_channels, shape):
    spec, tensors = operands(text, out_channels, shape, torch.float32, False)
    tensors = [None if t is None else torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in tensors]
    assert torch.equal(compute(spec, tensors, 1), compute(spec, tensors, 3))


def test_nan_and_infinity_go_where_arithmetic_takes_them():
    spec, tensors = operands("ic16oc16k3x3p1g16nb", 16, (1, 16, 9, 9), torch.float32, True)
    tensors[0][0, 3, 4, 4], tensors[0][0, 5, 0, 8] = torch.nan, torch.inf
    torch.testing.assert_close(compute(spec, tensors).double(), wanted(spec, tensors), equal_nan=True, rtol=0, atol=0)


def test_refusals_have_reasons(monkeypatch):
    monkeypatch.setattr(separable_native, "MEASURED", (native_isa(),))
    spec, tensors = operands("ic16oc16k3x3p1g16", 24, (1, 16, 64, 64), torch.float32, False)
    known, operand = problem_of(spec, *tensors[:2]), ((24, 16, 1, 1), (16, 1, 1, 1))
    assert separable_native.refuse(known, operand) is None
    for asked, pointwise, why in [
        (known, ((2**15, 16, 1, 1), (16, 1, 1, 1)), "weights"),
        (known, ((24, 16, 3, 3), (144, 9, 3, 1)), "pointwise"),
        (known._replace(dtype=torch.float16), operand, "dtype"),
        (known._replace(op="input_gradient"), operand, "forward"),
        (known._replace(w=(32, 1, 3, 3), y=(1, 32, 64, 64)), operand, "filter of its own"),
    ]:
        assert why in separable_native.refuse(asked, pointwise)
    monkeypatch.setattr(separable_native, "MEASURED", ())
    assert "measured" in separable_native.refuse(known, operand)
