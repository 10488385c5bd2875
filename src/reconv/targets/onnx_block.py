"""A block as an ONNX model, node by node: a fold over what it is, hundreds of times quicker than tracing its layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from torch import Tensor, nn

from reconv.errors import ConvError
from reconv.layers import block_of
from reconv.layers.described import Described
from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    output_shape,
)

OPSET, IR = 20, 10  # those of torch's exporter
PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}), "leaky_relu": ("LeakyRelu", {"alpha": 0.01}), "elu": ("Elu", {}), "gelu": ("Gelu", {}),
    "hardswish": ("HardSwish", {}), "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6}), "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}), "identity": ("Identity", {}),
}  # fmt: skip


class Untold(Exception):  # noqa: N818 (nothing went wrong)
    """A part that is left to torch's exporter."""


def onnx_of(layer: nn.Module, inputs: tuple[Any, ...]) -> bytes | None:
    """The model of a convolution or of one of reconv's layers, for inputs of just this shape; None for others."""
    if not isinstance(layer, Described | nn.modules.conv._ConvNd) or len(inputs) != 1:
        return None
    x = inputs[0]
    try:
        block = block_of(layer)
        graph = _Graph({name: t.detach().cpu() for name, t in layer.state_dict().items()})
        made = output_shape(block, tuple(x.shape))
        return graph.model(x, graph.block(block, "x", tuple(x.shape), ""), made)
    except (ConvError, Untold, TypeError):
        return None


class _Graph:
    """Nodes and constants so far. A block takes the name of its input, and gives that of its output."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.nodes, self.constants, self.count = tensors, list[Any](), dict[str, Any](), 0

    def block(self, block: Block, x: str, shape: tuple[int, ...], prefix: str) -> str:
        match block:
            case ConvSpec():
                return self.conv(block, x, prefix)
            case Chain():
                for i, part in enumerate(block.blocks):
                    x = self.block(part, x, shape, f"{prefix}{i}.")
                    shape = output_shape(part, shape)
                return x
            case Branches():
                ends = [self.block(part, x, shape, f"{prefix}{i}.") for i, part in enumerate(block.blocks)]
                return self.joined(ends, block.join)
            case Gate():
                return self.gate(x, shape, prefix)
            case Shuffle():
                apart = (shape[0], block.groups, shape[1] // block.groups, *shape[2:])
                x = self.node("Reshape", [x, self.numbers(apart)])
                x = self.node("Transpose", [x], perm=[0, 2, 1, *range(3, len(apart))])
                return self.node("Reshape", [x, self.numbers(shape)])
            case Permute():
                return self.node("Gather", [x, self.tensor(f"{prefix}index")], axis=1)
            case Activation():
                return self.function(block.name, x)
            case BatchNorm():
                names = [self.tensor(prefix + n) for n in ("weight", "bias", "running_mean", "running_var")]
                return self.node("BatchNormalization", [x, *names], epsilon=1e-5)
            case PixelShuffle() | Deform():
                raise Untold
            case _:
                assert_never(block)

    def conv(self, spec: ConvSpec, x: str, prefix: str) -> str:
        ends = [lo for lo, _ in spec.padding], [hi for _, hi in spec.padding]
        pads = [*ends[0], *ends[1]]
        if spec.padding_mode != "zeros" and any(pads):
            around = self.numbers((0, 0, *ends[0], 0, 0, *ends[1]))
            x, pads = self.node("Pad", [x, around], mode=PAD_MODES[spec.padding_mode]), [0] * len(pads)
        names = [self.tensor(f"{prefix}{n}") for n in ("weight", "bias")[: 1 + spec.bias]]
        settings: dict[str, Any] = {"kernel_shape": spec.kernel_size, "strides": spec.stride, "pads": pads,
                                    "dilations": spec.dilation, "group": spec.groups}  # fmt: skip
        if spec.transposed and any(op >= s for op, s in zip(spec.output_padding, spec.stride, strict=True)):
            raise Untold
        if spec.transposed:
            return self.node("ConvTranspose", [x, *names], output_padding=spec.output_padding, **settings)
        return self.node("Conv", [x, *names], **settings)

    def joined(self, ends: list[str], join: str) -> str:
        if join == "concat":
            return self.node("Concat", ends, axis=1)
        total, *others = ends
        for other in others:
            total = self.node("Add", [total, other])
        return total

    def gate(self, x: str, shape: tuple[int, ...], prefix: str) -> str:
        """As torch exports it: means over space, two products of matrices, a scale for each channel."""
        flat = self.node("Reshape", [x, self.numbers((*shape[:2], -1))]) if len(shape) > 3 else x
        mean = self.node("ReduceMean", [flat, self.numbers((-1,))], keepdims=0)
        for name, function in (("reduce", "relu"), ("expand", "sigmoid")):
            held = [self.tensor(f"{prefix}{name}.{n}") for n in ("weight", "bias")]
            mean = self.function(function, self.node("Gemm", [mean, *held], transB=1))
        scale = self.node("Reshape", [mean, self.numbers((*shape[:2], *[1] * (len(shape) - 2)))])
        return self.node("Mul", [x, scale])

    def function(self, name: str, x: str) -> str:
        if name == "relu6":
            return self.node("Clip", [x, self.scalar(0.0), self.scalar(6.0)])
        if name == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        kind, settings = FUNCTIONS[name]
        return self.node(kind, [x], **settings)

    def node(self, kind: str, inputs: list[str], **settings: Any) -> str:
        from onnx import helper

        name = self._name()
        self.nodes.append(helper.make_node(kind, inputs, [name], **settings))
        return name

    def tensor(self, name: str) -> str:
        return self._held(self.tensors[name].contiguous().numpy())

    def numbers(self, values: tuple[int, ...]) -> str:
        import numpy as np

        return self._held(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        import numpy as np

        like = next(t for t in self.tensors.values() if t.is_floating_point())
        return self._held(np.array(value, like.numpy().dtype))

    def model(self, x: Tensor, output: str, shape: tuple[int, ...]) -> bytes:
        from onnx import helper, numpy_helper

        kind = helper.np_dtype_to_tensor_dtype(x.detach().cpu().numpy().dtype)
        held = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        given = helper.make_tensor_value_info("x", kind, list(x.shape))
        made = helper.make_tensor_value_info(output, kind, shape)
        graph = helper.make_graph(self.nodes, "block", [given], [made], held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        return model.SerializeToString()

    def _held(self, array: Any) -> str:
        name = self._name()
        self.constants[name] = array
        return name

    def _name(self) -> str:
        self.count += 1
        return f"v{self.count}"
