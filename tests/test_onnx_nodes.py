"""ONNX's own tests of Conv and ConvTranspose, run by its reference evaluator with reconv's convolutions in it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case import node as onnx_nodes
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from reconv import functional

OPERATORS = {"Conv", "ConvTranspose"}
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


# -- ONNX's words for reconv's --------------------------------------------------------------------
def same_pads(total: Sequence[int], extra_at_end: bool) -> list[tuple[int, int]]:
    """The padding split in halves, an odd one more at the end (SAME_UPPER) or at the start."""
    halves = [(max(t, 0) // 2, max(t, 0) - max(t, 0) // 2) for t in total]
    return halves if extra_at_end else [(hi, lo) for lo, hi in halves]


def explicit(pads: Sequence[int] | None, dims: int) -> list[tuple[int, int]]:
    """All begins, then all ends."""
    return [(0, 0)] * dims if pads is None else list(zip(pads[:dims], pads[dims:], strict=True))


class Conv(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None,
             strides=None):  # fmt: skip
        dims = x.ndim - 2
        stride, dilation = (list(value or [1] * dims) for value in (strides, dilations))
        padding = explicit(pads, dims)
        if auto_pad.startswith("SAME"):
            sizes = zip(x.shape[2:], w.shape[2:], stride, dilation, strict=True)
            padding = same_pads([(-(-n // s) - 1) * s + d * (k - 1) + 1 - n for n, k, s, d in sizes],
                                auto_pad == "SAME_UPPER")  # fmt: skip
        convolve = getattr(functional, f"conv{dims}d")
        return (convolve(*tensors(x, w, b), stride, padding, dilation, int(group)).numpy(),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None,
             output_shape=None, pads=None, strides=None):  # fmt: skip
        dims = x.ndim - 2
        stride, dilation = (list(value or [1] * dims) for value in (strides, dilations))
        extra, padding = list(output_padding or [0] * dims), explicit(pads, dims)
        if auto_pad.startswith("SAME"):
            output_shape = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        if output_shape:
            sizes = zip(x.shape[2:], w.shape[2:], stride, dilation, extra, strict=True)
            uncut = [(n - 1) * s + d * (k - 1) + 1 + e for n, k, s, d, e in sizes]
            total = [whole - wanted for whole, wanted in zip(uncut, output_shape[-dims:], strict=True)]
            padding = same_pads(total, auto_pad == "SAME_UPPER")
            extra = [e + max(-t, 0) for e, t in zip(extra, total, strict=True)]
        convolve = getattr(functional, f"conv_transpose{dims}d")
        return (convolve(*tensors(x, w, b), stride, padding, extra, int(group), dilation).numpy(),)


def tensors(*arrays: Any) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(np.array(array)) for array in arrays]


# -- its cases ------------------------------------------------------------------------------------
class Example(NamedTuple):
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]  # inputs and outputs
    rtol: float
    atol: float


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@functools.cache
def node_examples() -> dict[str, Example]:
    """Every node test with a convolution in it; a test is made where its module is imported."""
    for module in pkgutil.iter_modules(onnx_nodes.__path__):
        if "conv" in module.name:  # all the others take 20 s
            importlib.import_module(f"{onnx_nodes.__name__}.{module.name}")
    return {
        case.name: Example(case.model, case.data_sets, case.rtol, case.atol)
        for case in onnx_nodes._NodeTestCases if OPERATORS & operators(case.model)
    }  # fmt: skip


def stored_example(name: str) -> Example:
    folder = DATA / name
    model = onnx.load(folder / "model.onnx")

    def read(side: str) -> list[Any]:
        files = sorted((folder / "test_data_set_0").glob(f"{side}_*.pb"), key=lambda path: path.name)
        return [numpy_helper.to_array(onnx.load_tensor(path)) for path in files]

    return Example(model, [(read("input"), read("output"))], 1e-3, 1e-7)


def check(example: Example) -> None:
    assert OPERATORS & operators(example.model)
    evaluator = ReferenceEvaluator(example.model, new_ops=[Conv, ConvTranspose])
    graph = example.model.graph
    known = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in known]
    for inputs, wanted in example.data:
        given = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
        outputs = evaluator.run(None, given)
        assert len(outputs) == len(wanted)
        for ours, theirs in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=example.rtol, atol=example.atol, strict=True)


PLAIN = """
basic_conv_with_padding basic_conv_without_padding conv_with_autopad_same conv_with_strides_and_asymmetric_padding
conv_with_strides_no_padding conv_with_strides_padding
convtranspose convtranspose_1d convtranspose_3d convtranspose_autopad_same convtranspose_dilations
convtranspose_group_2 convtranspose_group_2_image_3 convtranspose_kernel_shape convtranspose_output_shape
convtranspose_pad convtranspose_pads
"""
CAUSAL = """
b1_c1_degenerate basic decode_step fp16 kernel_size_one short_input_no_past_state silu silu_fp16 silu_with_past_state
swish_alias with_bias with_bias_and_past_state with_past_state
"""
CONVERTED = """
Conv1d Conv1d_dilated Conv1d_groups Conv1d_pad1 Conv1d_pad1size1 Conv1d_pad2 Conv1d_pad2size1 Conv1d_stride
Conv2d Conv2d_depthwise Conv2d_depthwise_padded Conv2d_depthwise_strided Conv2d_depthwise_with_multiplier
Conv2d_dilated Conv2d_groups Conv2d_groups_thnn Conv2d_no_bias Conv2d_padding Conv2d_strided
Conv3d Conv3d_dilated Conv3d_dilated_strided Conv3d_groups Conv3d_no_bias Conv3d_stride Conv3d_stride_padding
ConvTranspose2d ConvTranspose2d_no_bias
"""
NODES = PLAIN.split() + [f"causal_conv_with_state_{name}_expanded" for name in CAUSAL.split()]
STORED = [f"pytorch-converted/test_{name}" for name in CONVERTED.split()]
STORED += [f"pytorch-operator/test_operator_{name}" for name in ("conv", "convtranspose")]


def test_every_node_test_of_a_convolution_is_listed():
    assert set(node_examples()) == {f"test_{name}" for name in NODES}
    assert len(NODES) == 30


def test_every_stored_model_of_a_convolution_is_listed():
    paths = DATA.glob("*/*/model.onnx")
    found = {path.parent.relative_to(DATA).as_posix() for path in paths if OPERATORS & operators(onnx.load(path))}
    assert found == set(STORED)
    assert len(STORED) == 30


@pytest.mark.parametrize("name", NODES)
def test_node(name):
    check(node_examples()[f"test_{name}"])


@pytest.mark.parametrize("name", STORED)
def test_stored_model(name):
    check(stored_example(name))
