"""Deformable convolutions: against the plain reference, ONNX Runtime and ONNX's examples; and their laws."""

from __future__ import annotations

import functools
import importlib
from math import prod

import numpy as np
import onnxruntime
import pytest
import torch
from cases import conv_specs
from deform_cases import CASES, compute, each_case, operands, quarters, some, true_value, window
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.backend.test.case import node as onnx_nodes
from torch import Tensor
from torch.nn import functional as F

from reconv import functional
from reconv.errors import ConvError
from reconv.spec import ConvSpec, Deform, output_shape, parse


# -- values ---------------------------------------------------------------------------------------
@each_case
def test_equals_the_reference_exactly(block, shape):
    tensors = operands(block, shape)
    output = compute(block.conv, tensors)
    np.testing.assert_array_equal(output, true_value(block.conv, tensors), strict=True)
    assert tuple(output.shape) == output_shape(block, shape)
    assert output.is_contiguous()


@st.composite
def deforms(draw: st.DrawFn) -> Deform:
    spec = draw(conv_specs().filter(lambda spec: not spec.transposed)).replace(padding_mode="zeros")
    groups = draw(st.sampled_from([g for g in range(1, spec.in_channels + 1) if spec.in_channels % g == 0]))
    return Deform(spec, groups, draw(st.booleans()))


@settings(max_examples=50)
@given(deforms(), st.integers(0, 99))
def test_equals_the_reference_exactly_on_any_spec(block, seed):
    shape = (1, block.conv.in_channels, *{1: (17,), 2: (5, 4), 3: (3, 2, 3)}[block.conv.spatial_dims])
    try:
        output_shape(block, shape)
    except ConvError:
        assume(False)
    tensors = operands(block, shape, seed)
    np.testing.assert_array_equal(compute(block.conv, tensors), true_value(block.conv, tensors), strict=True)


@each_case
def test_takes_any_batch(block, shape):
    many = operands(block, (33, *shape[1:]))
    wanted = compute(block.conv, many)
    assert torch.equal(compute(block.conv, part_of(many, slice(20, 21))), wanted[20:21])
    assert torch.equal(compute(block.conv, part_of(many, slice(0, 0))), wanted[:0])


def part_of(tensors: dict[str, Tensor], batch: slice) -> dict[str, Tensor]:
    return {name: t[batch] if name in ("input", "offset", "mask") else t for name, t in tensors.items()}


LAYOUTS = {
    "transposed memory": lambda x: x.mT.contiguous().mT,
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@some("mask 1d", "mask", "mask 3d")
def test_layouts(layout, block, shape):
    tensors = operands(block, shape)
    laid = {name: layout(t) if t.ndim > 2 else t for name, t in tensors.items()}
    assert torch.equal(compute(block.conv, laid), compute(block.conv, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@some("1d", "mask", "mask 3d")
def test_dtypes(dtype, block, shape):
    """All sums of this data are exact in float32; lower ones round the samples and the result only."""
    tensors = {name: tensor.to(dtype) for name, tensor in operands(block, shape).items()}
    output = compute(block.conv, tensors)
    assert output.dtype == dtype
    wanted = torch.from_numpy(true_value(block.conv, tensors))
    if dtype == torch.float32:
        assert torch.equal(output.double(), wanted)
    else:
        scale = float(wanted.abs().max())
        torch.testing.assert_close(output.double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps * scale)


def test_fractions_are_exact_far_from_the_origin():
    length = 2**20 + 3
    x = torch.arange(length, dtype=torch.float32).reshape(1, 1, length) % 8
    offset = torch.full_like(x, 2.0**-10)
    inside = functional.deform_conv1d(x, offset, torch.ones(1, 1, 1))[0, 0, :-1]
    assert torch.equal(inside, (x + 2.0**-10 * x.diff(append=x[..., -1:]))[0, 0, :-1])


BORDERS = [  # of the map 1 2 3 4: the position, what is there
    (-1.5, 0), (-1, 0), (-0.75, 0.25), (-0.25, 0.75), (0, 1), (0.5, 1.5), (3, 4), (3.25, 3), (3.75, 1), (4, 0),
    (5.5, 0), (1e9, 0), (-1e30, 0), (float("inf"), 0), (float("-inf"), 0), (float("nan"), float("nan")),
]  # fmt: skip


@pytest.mark.parametrize("position, wanted", BORDERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_map_falls_to_zero_at_its_border(position, wanted, axis):
    x = torch.arange(1.0, 5).reshape(1, 1, *[4 if i == axis else 1 for i in range(3)])
    offset = torch.zeros(1, 3, 1, 1, 1)
    offset[:, axis] = position
    output = functional.deform_conv3d(x, offset, torch.ones(1, 1, 1, 1, 1), stride=4)
    torch.testing.assert_close(output.flatten(), torch.tensor([float(wanted)]), rtol=0, atol=0, equal_nan=True)


def test_what_is_not_finite_stays_where_it_is():
    x = torch.tensor([[[1.0, float("inf"), 3, 4]]])
    output = functional.deform_conv1d(x, torch.tensor([[[-2.0, 2, 0.5, 9]]]), torch.ones(1, 1, 1))
    assert output.tolist() == [[[0, 4, 3.5, 0]]]


# -- independent implementations ------------------------------------------------------------------
def onnx_pads(spec: ConvSpec) -> list[int]:
    return [lo for lo, _ in spec.padding] + [hi for _, hi in spec.padding]


def onnx_runtime(block: Deform, tensors: dict[str, Tensor]) -> np.ndarray:
    spec, order = block.conv, ("input", "weight", "offset", "bias", "mask")
    names = [name if name in tensors else "" for name in order]
    while not names[-1]:
        names.pop()
    node = helper.make_node("DeformConv", names, ["output"], kernel_shape=spec.kernel_size, strides=spec.stride,
                            dilations=spec.dilation, pads=onnx_pads(spec), group=spec.groups,
                            offset_group=block.offset_groups)  # fmt: skip
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, tensors[n].shape) for n in names if n]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 22)])  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensors[name].float().numpy() for name in names if name})[0]


OF_PLANES = {name: case for name, case in CASES.items() if case[0].conv.spatial_dims == 2}


@pytest.mark.parametrize("block, shape", OF_PLANES.values(), ids=OF_PLANES.keys())
def test_equals_onnx_runtime(block, shape):
    tensors = operands(block, shape)
    np.testing.assert_array_equal(compute(block.conv, tensors), onnx_runtime(block, tensors))


@settings(max_examples=50)
@given(deforms().filter(lambda block: block.conv.spatial_dims == 2), st.integers(0, 99))
def test_equals_onnx_runtime_on_any_spec(block, seed):
    shape = (2, block.conv.in_channels, 9, 7)
    try:
        output_shape(block, shape)
    except ConvError:
        assume(False)
    tensors = operands(block, shape, seed)
    np.testing.assert_array_equal(compute(block.conv, tensors), onnx_runtime(block, tensors))


@functools.cache
def onnx_examples() -> list[object]:
    importlib.import_module(f"{onnx_nodes.__name__}.deformconv")
    return [case for case in onnx_nodes._NodeTestCases if case.model.graph.node[0].op_type == "DeformConv"]


def test_onnx_has_examples():
    assert len(onnx_examples()) == 4


@pytest.mark.parametrize("i", range(4))
def test_equals_onnx_examples(i):
    model, [(inputs, [wanted])] = onnx_examples()[i].model, onnx_examples()[i].data_sets
    names = [("input", "weight", "offset", "bias", "mask")[i] for i, n in enumerate(model.graph.node[0].input) if n]
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in zip(names, inputs, strict=True)}
    attributes = {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    assert attributes.keys() <= {"kernel_shape", "pads", "offset_group"}
    padding = tuple(zip(attributes["pads"][:2], attributes["pads"][2:], strict=True))
    torch.testing.assert_close(functional.deform_conv2d(**tensors, padding=padding), torch.from_numpy(wanted))


# -- laws -----------------------------------------------------------------------------------------
def plain(spec: ConvSpec, tensors: dict[str, Tensor], **changes: object) -> Tensor:
    entrance = getattr(functional, f"conv{spec.spatial_dims}d")
    kept = {name: tensor for name, tensor in tensors.items() if name not in ("offset", "mask")}
    return entrance(**kept, **window(spec) | {"groups": spec.groups} | changes)


@each_case
def test_without_offsets_it_is_the_plain_convolution(block, shape):
    tensors = operands(block, shape)
    tensors["offset"].zero_()
    tensors.pop("mask", None)
    assert torch.equal(compute(block.conv, tensors), plain(block.conv, tensors))


@each_case
def test_a_constant_mask_is_a_factor_of_the_weight(block, shape):
    tensors = {name: tensor for name, tensor in operands(block, shape).items() if name != "mask"}
    taps = prod(block.conv.kernel_size)
    shared = torch.arange(1.0, 1 + taps).double() / 4  # one number for each point of the kernel
    out = output_shape(block, shape)[2:]
    mask = shared.repeat(block.offset_groups).reshape(1, -1, *[1] * len(out)).expand(shape[0], -1, *out)
    weight = tensors["weight"] * shared.reshape(block.conv.kernel_size)
    assert torch.equal(compute(block.conv, tensors | {"mask": mask}), compute(block.conv, tensors | {"weight": weight}))


def moved(block: Deform, shape: tuple[int, ...], moves: Tensor) -> Tensor:
    """Offsets that are the same at every position: moves is (points of the kernel, axes)."""
    out = output_shape(block, shape)[2:]
    everywhere = moves.double().flatten().repeat(block.offset_groups).reshape(1, -1, *[1] * len(out))
    return everywhere.expand(shape[0], -1, *out)


def points(spec: ConvSpec) -> Tensor:
    """The kernel's points: (points, axes)."""
    return torch.tensor(list(np.ndindex(*spec.kernel_size)))


@pytest.mark.parametrize("by", [-2, 1, 2])
@some("1d", "2d", "3d", "mask 1d", "groups", "stride", "uneven")
def test_the_same_offset_everywhere_shifts_the_input(by, block, shape):
    spec, tensors = block.conv, operands(block, shape)
    tensors.pop("mask", None)
    tensors["offset"] = moved(block, shape, torch.full_like(points(spec), by))
    pads = [side for lo, hi in reversed(spec.padding) for side in (lo - by, hi + by)]
    shifted = tensors | {"input": F.pad(tensors["input"], pads)}
    assert torch.equal(compute(spec, tensors), plain(spec, shifted, padding=0))


@pytest.mark.parametrize("factor", [2, 3])
@some("1d", "2d", "3d", "groups", "stride", "kernel per axis")
def test_dilation_is_a_special_offset(factor, block, shape):
    """Offsets that scale the kernel by a factor are those of a dilated convolution."""
    spec, tensors = block.conv, operands(block, shape)
    tensors["offset"] = moved(block, shape, points(spec) * (factor - 1))
    grown = [(lo, hi + (factor - 1) * (k - 1)) for (lo, hi), k in zip(spec.padding, spec.kernel_size, strict=True)]
    assert torch.equal(compute(spec, tensors), plain(spec, tensors, dilation=factor, padding=grown))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("text, shape, plane", [
    ("deform(ic3oc4k3x3p1, og1)", (2, 3, 7, 6), (0, 1)),
    ("deform(ic4oc4k5x5s2p2g2, og2)", (1, 4, 9, 8), (0, 1)),
    ("deform(ic2oc3k2x2x2, og1)", (1, 2, 3, 5, 4), (0, 2)),
])  # fmt: skip
def test_a_turned_kernel_is_a_special_offset(turns, text, shape, plane):
    block = parse(text)
    spec, tensors = block.conv, operands(block, shape)
    grid = points(spec).reshape(*spec.kernel_size, -1)
    tensors["offset"] = moved(block, shape, grid.rot90(turns, plane) - grid)
    turned = tensors["weight"].rot90(-turns, [axis + 2 for axis in plane])
    assert torch.equal(compute(spec, tensors), plain(spec, tensors | {"weight": turned}))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_interpolation_is_exact_on_linear_maps(dims):
    grid = torch.stack(torch.meshgrid(*[torch.arange(9.0, dtype=torch.float64)] * dims, indexing="ij"))
    slope = torch.tensor([3.0, -2, 5])[:dims].double().reshape(dims, *[1] * dims)
    at = quarters((dims, *[9] * dims), 1).clamp(-4, 4).abs() + 4  # positions inside of the map
    offset = (at.clamp(max=8) - grid)[None]
    linear = (slope * grid).sum(0)[None, None]
    weight = torch.full((1, 1, *[1] * dims), 7.0).double()
    output = getattr(functional, f"deform_conv{dims}d")(linear, offset, weight)
    assert torch.equal(output, 7 * (slope * at.clamp(max=8)).sum(0)[None, None])
