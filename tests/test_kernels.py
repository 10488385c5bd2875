"""The native kernels against torch, and the choice between the two."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CONVS, Case, conv_specs, whole_numbers
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import reconv
from reconv.errors import ConvError
from reconv.layers import build
from reconv.ops import convolve, direct, families, ways
from reconv.ops.dispatch import choose
from reconv.ops.native import native_isa
from reconv.spec import ConvSpec, output_shape, parse
from reconv.targets import to_layout

CL = torch.channels_last
TAILS = {  # input and output channels around the lanes of a vector, widths around the length of a tile
    f"{text} on {'x'.join(map(str, shape))}": Case(parse(text), shape)
    for text, shape in [
        ("ic1oc1k1x1", (1, 1, 1, 1)),
        ("ic1oc64k3x3p1", (1, 1, 28, 28)),
        ("ic7oc8k5x5p2", (2, 7, 9, 13)),
        ("ic16oc15k3x3p1", (1, 16, 7, 14)),
        ("ic17oc16k3x3p1", (1, 17, 7, 15)),
        ("ic15oc17k1x1", (3, 15, 7, 7)),
        ("ic16oc31k1x1", (1, 16, 1, 29)),
        ("ic33oc33k3x1p1x0", (1, 33, 5, 11)),
        ("ic8oc48k3x3s2p1", (1, 8, 15, 17)),
        ("ic8oc64k1x1s2", (2, 8, 9, 7)),
        ("ic3oc65k3x3p2d2nb", (1, 3, 8, 12)),
        ("ic4oc100k2x3p0:1x2:0", (1, 4, 6, 25)),
        ("ic32oc130k1x1nb", (1, 32, 6, 5)),
    ]
}
DENSE = TAILS | {
    name: case for name, case in CONVS.items()
    if (spec := case.block).spatial_dims == 2 and not spec.transposed and spec.groups == 1
    and spec.padding_mode == "zeros"
}  # fmt: skip
LAYOUTS = {"both": (CL, CL), "input": (CL, torch.contiguous_format), "weight": (torch.contiguous_format, CL)}


def operands(spec: ConvSpec, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "both") -> list:
    of_input, of_weight = LAYOUTS[layout]
    bias = whole_numbers((spec.out_channels,), 3).to(dtype) if spec.bias else None
    return [whole_numbers(shape, 1).to(dtype, memory_format=of_input),
            whole_numbers(spec.weight_shape, 2).to(dtype, memory_format=of_weight), bias]  # fmt: skip


def chosen(*arguments) -> str:
    """The name of the kernel that an entrance took."""
    seen = []
    ways.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "choose", lambda problem: seen.append(choose(problem)) or seen[-1])
        reconv.functional.conv2d(*arguments)
    ways.forget()
    return seen[0].name if seen else "torch"


def wanted(spec: ConvSpec, input, weight, bias):
    """By torch in float64 and contiguous: in channels_last its own float32 reads beyond some one-channel maps."""
    (top, bottom), (left, right) = spec.padding
    input = F.pad(input, (left, right, top, bottom)).double().contiguous()
    bias = None if bias is None else bias.double()
    return F.conv2d(input, weight.double().contiguous(), bias, spec.stride, 0, spec.dilation).to(weight.dtype)


def check(spec: ConvSpec, tensors: list) -> None:
    arguments = (*tensors, spec.stride, spec.padding, spec.dilation)
    got = reconv.functional.conv2d(*arguments)
    assert torch.equal(got, wanted(spec, *tensors))
    assert got.is_contiguous(memory_format=CL) or not got.numel()  # as torch's
    assert got.dtype == tensors[0].dtype


@pytest.fixture(autouse=True)
def measured_here(monkeypatch):
    """The choice is tested as on a processor with results."""
    monkeypatch.setattr(direct, "MEASURED", (native_isa(),))


def test_the_kernels_were_built():
    assert native_isa() in ("avx512", "avx2", "baseline")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE.keys())
def test_direct_equals_torch_exactly(case, dtype, layout):
    check(case.block, operands(case.block, case.input_shape, dtype, layout))


EACH_ISA = """
import test_kernels as t
from reconv.ops import direct
from reconv.ops.native import native_isa
from reconv.ops.problem import forward
for case in t.DENSE.values():
    for dtype in direct.TYPES:
        spec = case.block
        x, weight, bias = t.operands(spec, case.input_shape, dtype)
        if spec.even_padding is not None:
            of_bias = bias is None or (bias.shape, bias.stride())
            problem = forward(2, x.shape, x.stride(), weight.shape, weight.stride(), of_bias, spec.stride,
                              spec.even_padding, spec.dilation, 1, dtype, 1)
            assert t.torch.equal(direct.prepare(problem)(x, weight, bias), t.wanted(spec, x, weight, bias)), case
print(native_isa())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(isa):
    """On a processor that has less, the best that it has."""
    run = subprocess.run([sys.executable, "-c", EACH_ISA], env=os.environ | {"RECONV_ISA": isa},
                         cwd=Path(__file__).parent, capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.strip() == min(isa, native_isa(), key=["baseline", "avx2", "avx512"].index)


@given(conv_specs(dims=2), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_direct_equals_torch_exactly_on_any_spec(spec, in_channels, out_channels, width):
    spec = spec.replace(padding_mode="zeros", transposed=False, output_padding=0, groups=1, in_channels=in_channels,
                        out_channels=out_channels)  # fmt: skip
    shape = (2, in_channels, 8, width)
    try:
        output_shape(spec, shape)
    except ConvError:
        assume(False)
    check(spec, operands(spec, shape, torch.float32))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_same_bits(threads):
    x = torch.randn(3, 40, 33, 31, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=CL)
    weight = torch.randn(70, 40, 3, 3, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=CL)
    before, outputs = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            outputs.append(reconv.functional.conv2d(x, weight, None, 1, 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert (outputs[0] - exact).abs().max() < 1e-6 * (40 * 9) ** 0.5 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", TAILS.values(), ids=TAILS.keys())
def test_weights_with_the_output_channels_innermost(case: Case, dtype):
    x, weight, bias = operands(case.block, case.input_shape, dtype)
    weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)  # as TensorFlow has them
    check(case.block, [x, weight, bias])


def _unaligned(x):
    """The same values one element further on."""
    return torch.cat([x.new_zeros(1), x.permute(0, 2, 3, 1).flatten()])[1:].view(*x.shape[2:], x.shape[1])[
        None].permute(0, 3, 1, 2)  # fmt: skip


VIEWS = {
    "unaligned": lambda x: _unaligned(x[:1]),
    "every second column": lambda x: x[..., ::2],
    "every second row": lambda x: x[..., ::2, :],
    "a window": lambda x: x[..., 2:-1, 1:-2],
    "half of the channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "one of the batch, repeated": lambda x: x[:1].expand(3, -1, -1, -1),
    "none": lambda x: x[:0],
    "transposed": lambda x: x.transpose(2, 3),
    "negated lazily": lambda x: torch.complex(torch.zeros_like(x), x).conj().imag,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("text", ["ic5oc18k1x1", "ic5oc18k3x3p1", "ic5oc18k3x2s2"])
def test_takes_views(text, view):
    spec = parse(text)
    x, weight, bias = operands(spec, (2, 5, 11, 9), torch.float32)
    check(spec, [view(x), weight, bias])
    check(spec, [view(x), weight[:, :, ::1], None if bias is None else bias.expand(2, -1)[1]])


PROBLEMS = {  # conv2d's arguments, and which kernel takes them
    "channels_last": (lambda x, w: (x, w), "direct"),
    "padding same": (lambda x, w: (x, w, None, 1, "same"), "direct"),
    "padding valid": (lambda x, w: (x, w, None, 1, "valid"), "direct"),
    "lists": (lambda x, w: (x, w, None, [1, 2], [1, 0], [1]), "direct"),
    "unbatched": (lambda x, w: (x[0], w), "torch"),
    "groups": (lambda x, w: (x, w[:, :2], None, 1, 0, 1, 3), "torch"),
    "bfloat16": (lambda x, w: (x.bfloat16(), w.bfloat16()), "torch"),
    "complex": (lambda x, w: (x + 0j, w + 0j), "torch"),
    "batch 0": (lambda x, w: (x[:0], w), "torch"),
    "many multiply-accumulates": (lambda x, w: (x.repeat(1, 1, 32, 32), w.repeat(8, 1, 1, 1)), "torch"),
    "many weights": (lambda x, w: (x, w.repeat(400, 1, 2, 2)), "torch"),
}


@pytest.mark.parametrize("make, name", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.usefixtures("torch_alone")
def test_which_kernel_serves(make, name):
    arguments = make(*operands(parse("ic6oc6k3x3nb"), (1, 6, 8, 8), torch.float32)[:2])
    assert chosen(*arguments) == name
    assert torch.equal(reconv.functional.conv2d(*arguments), F.conv2d(*arguments))


@pytest.mark.parametrize("isa", [None, "unheard of"])
@pytest.mark.usefixtures("torch_alone")
def test_torch_serves_where_there_are_no_kernels_or_no_results(isa, monkeypatch):
    tensors = operands(parse("ic6oc6k3x3"), (1, 6, 8, 8), torch.float32)
    assert chosen(*tensors) == "direct"
    for module in (direct, families):
        monkeypatch.setattr(module, "native_isa", lambda: isa)
    assert chosen(*tensors) == "torch"
    assert torch.equal(reconv.functional.conv2d(*tensors), F.conv2d(*tensors))


def _in_mode(mode):
    def surrounded(layer, x):
        with mode:
            layer(x)

    return surrounded


def _forward_ad(layer, x):
    with torch.autograd.forward_ad.dual_level():
        layer(x)


def _with_other_weights(layer, x):
    name, weight = next(iter(layer.named_parameters()))
    torch.vmap(lambda w: torch.func.functional_call(layer, {name: w}, x))(weight[None])


SURROUNDINGS = {
    "torch.compile": lambda layer, x: torch.compile(layer, fullgraph=True, backend="eager")(x),
    "torch.export": lambda layer, x: torch.export.export(layer, (x,)),
    "torch.jit.trace": lambda layer, x: torch.jit.trace(layer, x, check_trace=False),
    "torch.fx": lambda layer, x: torch.fx.symbolic_trace(layer)(x),
    "vmap": lambda layer, x: torch.vmap(layer)(x[None]),
    "functional_call under vmap": lambda layer, x: _with_other_weights(layer, x),
    "forward-mode AD": _forward_ad,
    "a dispatch mode": _in_mode(FlopCounterMode(display=False)),
    "a function mode": _in_mode(torch.device("cpu")),
    "autocast": _in_mode(torch.autocast("cpu")),
}  # fmt: skip


@pytest.mark.parametrize("surrounded", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_is_torch_where_the_surroundings_need_its_operators(surrounded, monkeypatch):
    layer = reconv.nn.Conv2d(4, 8, 3).to(memory_format=CL)
    x = torch.randn(1, 4, 9, 9).contiguous(memory_format=CL)
    with torch.no_grad():
        assert chosen(x, layer.weight, layer.bias) == "direct"
        monkeypatch.setattr(convolve, "_first", _never)
        monkeypatch.setattr(convolve, "find", lambda *call: None)
        monkeypatch.setattr(convolve, "learned", _torch_or_never(convolve.learned))
        surrounded(layer, x)
        surrounded(to_layout(build(parse("ic4oc3k1x1nb -> ic3oc8k3x3")), "channels_last"), x)


def _never(*_):
    raise RuntimeError("a kernel was chosen")


def _torch_or_never(learned):
    def watched(*call):
        found = learned(*call)
        if found is not None:
            found = copy.copy(found)
            found.run = _never
        return found

    return watched


def test_macs_of_a_layer_are_counted_whatever_computes_it():
    layer = reconv.nn.Conv2d(4, 8, 3).to(memory_format=CL)
    x = torch.randn(1, 4, 9, 9).contiguous(memory_format=CL)
    assert reconv.summary(layer, x).total.macs == 8 * 4 * 9 * 49


@pytest.mark.parametrize("arguments", [
    {"stride": 0}, {"stride": (1, 2, 3)}, {"stride": 1.5}, {"padding": -1}, {"padding": "full"}, {"dilation": 0},
    {"stride": 2, "padding": "same"}, {"dilation": 9}, {"groups": 0}, {"bias": torch.ones(3)}, {"padding": (1, 2, 3)},
    {"weight": torch.ones(4, 3, 3, 3)}, {"weight": torch.ones(4, 4, 3)}, {"input": torch.ones(1, 4, 0, 5)},
], ids=str)  # fmt: skip
def test_errors_are_those_of_torch(arguments):
    x = torch.ones(1, 4, 8, 8).contiguous(memory_format=CL)
    given_ = {"input": x, "weight": torch.ones(4, 4, 3, 3)} | arguments
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        F.conv2d(**given_)
    with pytest.raises(theirs.type):
        reconv.functional.conv2d(**given_)
