"""A task as an ONNX model of one operator (of two where it is separable), with its weights as constants."""

from __future__ import annotations

from typing import Any

from reconv.benching.operands import Operands
from reconv.benching.task import Task, specs_of
from reconv.spec import Deform

OPSET, IR = 19, 9  # the first with DeformConv, and the first format version that holds it


def model_of(task: Task, given: Operands) -> bytes:
    """Its inputs are those of the task: the map, then offsets and mask of a deformable convolution."""
    from onnx import TensorProto, checker, helper, numpy_helper

    specs, nodes = specs_of(task.block), []
    inputs = {"x": given.input, "offset": given.offset, "mask": given.mask}
    held = {f"w{i}": weight for i, weight in enumerate(given.weights)} | {"b": given.bias}
    constants = [numpy_helper.from_array(t.contiguous().numpy(), name) for name, t in held.items() if t is not None]
    for i, spec in enumerate(specs):
        settings: dict[str, Any] = {
            "kernel_shape": spec.kernel_size, "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
            "pads": [lo for lo, _ in spec.padding] + [hi for _, hi in spec.padding],
        }  # fmt: skip
        kind, names = "Conv", [f"y{i - 1}" if i else "x", f"w{i}", *(["b"] if spec.bias else [])]
        if spec.transposed:
            kind, settings["output_padding"] = "ConvTranspose", spec.output_padding
        elif isinstance(task.block, Deform):
            kind, settings["offset_group"] = "DeformConv", task.block.offset_groups
            names = ["x", "w0", "offset", "b" if spec.bias else "", "mask" if task.block.modulated else ""]
        nodes.append(helper.make_node(kind, names, ["y" if spec is specs[-1] else f"y{i}"], **settings))
    real = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, real, list(t.shape)) for name, t in inputs.items() if t is not None]
    output = helper.make_tensor_value_info("y", real, list(task.output_shape))
    graph = helper.make_graph(nodes, "task", values, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    checker.check_model(model)
    return model.SerializeToString()
