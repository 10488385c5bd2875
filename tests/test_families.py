"""Every kernel, on every pass, dtype and layout of the table, against PyTorch in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import whole_numbers
from kernel_cases import KERNEL_CASES, computed
from torch import Tensor

from reconv.ops import problem as problems
from reconv.ops.dispatch import KERNELS
from reconv.ops.kernel import TORCH, Kernel, torch_run
from reconv.ops.native import native_isa
from reconv.ops.problem import OPS, Problem, dense_strides
from reconv.spec import ConvSpec, output_shape

BY_NAME = {kernel.name: kernel for each in KERNELS.values() for kernel in each}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
EXACT = {name for name in BY_NAME if name != "fft"}


def laid(tensor: Tensor, layout: str) -> Tensor:
    """1D channels-last: the same strides, as no memory format is named so."""
    strides = dense_strides(tuple(tensor.shape), layout == "channels_last")
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def problem_of(op: str, spec: ConvSpec, shape: tuple[int, ...], dtype: torch.dtype, layout: str,
               threads: int = 1) -> tuple[Problem | None, list[Tensor | None]]:  # fmt: skip
    """The problem and its x, w, bias and y, of whole numbers; None where the pass is not one of the spec's."""
    x, y = (output_shape(spec, shape), shape) if spec.transposed else (shape, output_shape(spec, shape))
    tensors = [laid(whole_numbers(size, seed).to(dtype), layout) for seed, size in enumerate((x, spec.weight_shape, y))]
    bias = whole_numbers((spec.out_channels,), 3).to(dtype) if spec.bias else None
    of_bias = True if bias is None else (tuple(bias.shape), bias.stride())
    weight = (tuple(tensors[1].shape), tensors[1].stride())
    settings = (spec.stride, spec.padding, spec.dilation)
    if spec.transposed:
        known = problems.transposed(spec.spatial_dims, y, tensors[2].stride(), *weight, of_bias, *settings,
                                    spec.output_padding, spec.groups, dtype, threads)  # fmt: skip
    else:
        known = problems.forward(spec.spatial_dims, x, tensors[0].stride(), *weight, of_bias, *settings, spec.groups,
                                 dtype, threads)  # fmt: skip
    assert known is not None
    if op != known.op:
        grad = tensors[0 if spec.transposed else 2]
        known = next(p for p in problems.gradients(known, grad.stride()) if p.op == op)
        bias = None
    return known, [tensors[0], tensors[1], bias, tensors[2]]


def wanted(known: Problem, tensors: list[Tensor | None]) -> Tensor:
    """By PyTorch in float64, rounded once."""
    exact = torch_run(known._replace(dtype=torch.float64))(*(None if t is None else t.double() for t in tensors))
    return exact.relu() if known.relu and known.op == "forward" else exact


def serving(op: str, dtype: torch.dtype, layout: str) -> list[tuple[str, str]]:
    """Kernels and cases that go together."""
    found = []
    for name, case in KERNEL_CASES.items():
        known, _ = problem_of(op, case.block, case.input_shape, dtype, layout)
        found += [(kernel.name, name) for kernel in KERNELS[op]
                  if kernel is not TORCH and kernel.refuse(known) is None]  # fmt: skip
    return found


def check(kernel: Kernel, known: Problem, tensors: list[Tensor | None]) -> None:
    got, want = computed(kernel, known, tensors), wanted(known, tensors)
    assert got.dtype == known.dtype
    assert got.shape == want.shape
    if kernel.name in EXACT:
        assert torch.equal(got.double(), want.to(known.dtype).double())
    else:
        assert (got.double() - want).abs().max() <= 2e-6 * want.abs().max() * (1 + len(bin(got.numel())))


@pytest.fixture(autouse=True)
def direct_is_measured_here(monkeypatch):
    monkeypatch.setattr("reconv.ops.direct.MEASURED", (native_isa(),))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_exact(op, dtype, layout):
    pairs = serving(op, DTYPES[dtype], layout)
    assert {name for name, _ in pairs} >= {"depthwise", "planar"}
    for kernel, case in pairs:
        block, shape = KERNEL_CASES[case]
        known, tensors = problem_of(op, block, shape, DTYPES[dtype], layout)
        try:
            check(BY_NAME[kernel], known, tensors)
        except AssertionError as wrong:
            raise AssertionError(f"{kernel}, {case}: {wrong}") from wrong


def test_every_kernel_is_in_the_table():
    served = {name for op in OPS for name, _ in serving(op, torch.float32, "channels_last")}
    assert served | {"fft", "torch"} == set(BY_NAME)


LONG = {  # kernels of 512 taps and more
    "one channel": ("ic1oc1k1025p512", (2, 1, 3000)),
    "depthwise": ("ic3oc3k600p599:0g3", (1, 3, 700)),
    "groups": ("ic4oc6k513p3g2", (2, 4, 900)),
    "dense, stride": ("ic3oc2k512s3p100", (1, 3, 1500)),
    "dilated": ("ic2oc2k520p0:7d2g2nb", (1, 2, 1200)),
    "dilated and strided": ("ic2oc4k515s2p600d3g2", (1, 2, 1800)),
    "transposed": ("ic3oc2k512s4p2top1", (1, 3, 60)),
    "padded beyond the kernel": ("ic1oc2k512p700", (1, 1, 512)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text, shape", LONG.values(), ids=LONG.keys())
def test_long_kernels_by_transform(text, shape, op, dtype):
    known, tensors = problem_of(op, ConvSpec.parse(text), shape, DTYPES[dtype], "contiguous")
    check(BY_NAME["fft"], known, tensors)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_float_data_is_near_float64(name, op):
    """The error grows with the square root of the number of summands."""
    kernel, generator = BY_NAME[name], torch.Generator().manual_seed(0)
    for case in KERNEL_CASES.values():
        known, tensors = problem_of(op, case.block, case.input_shape, torch.float32, "channels_last")
        if kernel.refuse(known) is not None:
            continue
        tensors = [None if t is None else torch.randn(t.shape, generator=generator) for t in tensors]
        known = known._replace(**{f"{t}_stride": dense_strides(getattr(known, t), False) for t in "xwy"})
        got, want = computed(kernel, known, tensors), wanted(known, tensors)
        summands = known.macs / want.numel() * (1 if op == "forward" else 3)
        assert (got.double() - want).abs().max() <= 2e-6 * max(summands, 4) ** 0.5 * max(1, want.abs().max()), case


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "one element further": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "a window": lambda t: torch.nn.functional.pad(t, (2, 1))[..., 2:-1],
    "some of more channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "the batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_takes_views(name, op, view):
    for text, shape in (("ic5oc5k3x3s2p1g5", (2, 5, 9, 11)), ("ic6oc6k3x3p1g2", (2, 6, 7, 9)),
                        ("ic5oc18k3x2p1x0", (2, 5, 6, 7)), ("ic4oc4k3x2x3p1g4t", (2, 4, 3, 4, 5))):  # fmt: skip
        spec = ConvSpec.parse(text)
        if spec.transposed and op == "forward":
            continue
        known, tensors = problem_of(op, spec, shape, torch.float32, "contiguous")
        tensors = [None if t is None else (view(t) if t.ndim > 1 else t) for t in tensors]
        strides = {
            f"{key}_stride": t.stride() for key, t in zip("xwy", (tensors[0], tensors[1], tensors[3]), strict=True)
        }
        mine = {"forward": "y", "input_gradient": "x", "weight_gradient": "w"}[op]
        known = known._replace(**{k: v for k, v in strides.items() if k[0] != mine})
        if BY_NAME[name].refuse(known) is None:
            check(BY_NAME[name], known, tensors)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_threads_give_the_same_bits(name, op):
    generator = torch.Generator().manual_seed(0)
    for text, shape in (("ic40oc40k5x5p2g40", (3, 40, 33, 31)), ("ic12oc12k3x3p1g3", (3, 12, 40, 41)),
                        ("ic33oc34k3x3p1", (2, 33, 30, 31)), ("ic20oc40k31p15g20", (2, 20, 500))):  # fmt: skip
        known, tensors = problem_of(op, ConvSpec.parse(text), shape, torch.float32, "channels_last")
        tensors = [None if t is None else t.copy_(torch.randn(t.shape, generator=generator)) for t in tensors]
        if BY_NAME[name].refuse(known) is None:
            one, *others = (computed(BY_NAME[name], known._replace(threads=n), tensors) for n in (1, 2, 3))
            assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_what_an_earlier_call_left_in_scratch_memory_is_not_seen(name, op):
    """NaN, which kernels may handle in a slower way, with sums of another order."""
    for width in range(9, 26):
        known, tensors = problem_of(op, ConvSpec.parse("ic6oc6k3x3p1g3"), (1, 6, 7, width), torch.float32, "contiguous")
        if BY_NAME[name].refuse(known) is None:
            larger = problem_of(op, ConvSpec.parse("ic6oc6k3x3p1g3"), (1, 6, 19, 40), torch.float32, "contiguous")
            kept = [
                t if t is None else torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in tensors
            ]
            before = computed(BY_NAME[name], known, kept)
            computed(BY_NAME[name], larger[0], [t if t is None else torch.full_like(t, torch.nan) for t in larger[1]])
            assert torch.equal(computed(BY_NAME[name], known, kept), before), width


@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_relu_behind(name):
    for text, shape in (("ic18oc18k3x3p1g18", (1, 18, 9, 10)), ("ic8oc8k3x3p1g2", (1, 8, 9, 10)),
                        ("ic3oc20k3x3x3p1", (1, 3, 5, 6, 7))):  # fmt: skip
        for layout in ("contiguous", "channels_last"):
            known, tensors = problem_of("forward", ConvSpec.parse(text), shape, torch.float32, layout)
            if BY_NAME[name].refuse(known := known._replace(relu=True)) is None:
                check(BY_NAME[name], known, tensors)


@pytest.mark.parametrize("name", ["depthwise", "planar", "dense"])
def test_nan_and_infinities_are_kept(name):
    for text, shape in (("ic18oc18k3x3p1g18", (1, 18, 9, 10)), ("ic8oc8k3x3p1g2", (1, 8, 9, 10)),
                        ("ic3oc20k3x3x3p1", (1, 3, 5, 6, 7))):  # fmt: skip
        for value in (torch.nan, torch.inf, -torch.inf):
            for dtype in DTYPES.values():
                known, tensors = problem_of("forward", ConvSpec.parse(text), shape, dtype, "contiguous")
                if BY_NAME[name].refuse(known) is None:
                    tensors[0].flatten()[37] = value
                    got, want = computed(BY_NAME[name], known, tensors), wanted(known, tensors).to(dtype)
                    assert torch.equal(got.isnan(), want.isnan())
                    assert torch.equal(got.nan_to_num(), want.nan_to_num())


EACH_ISA = """
import torch
import test_families as t
from reconv.ops.native import native_isa
for op in t.OPS:
    for dtype in t.DTYPES.values():
        for layout in ("contiguous", "channels_last"):
            for kernel, case in t.serving(op, dtype, layout):
                if kernel in ("depthwise", "planar", "dense"):
                    block, shape = t.KERNEL_CASES[case]
                    t.check(t.BY_NAME[kernel], *t.problem_of(op, block, shape, dtype, layout))
print(native_isa())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same(isa):
    """On a processor that has less, the best that it has."""
    run = subprocess.run([sys.executable, "-c", EACH_ISA], env=os.environ | {"RECONV_ISA": isa},
                         cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == min(isa, native_isa(), key=["baseline", "avx2", "avx512"].index)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_nothing_beyond_the_tensors_is_touched(isa):
    run = subprocess.run([sys.executable, "guarded.py"], env=os.environ | {"RECONV_ISA": isa},
                         cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout.split()[-1]) > 1000
