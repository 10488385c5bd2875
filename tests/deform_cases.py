"""The table of deformable convolutions, and what each is computed on."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from cases import BLOCKS, fill, whole_numbers
from torch import Tensor, nn

from reconv import functional
from reconv.ops import reference
from reconv.spec import ConvSpec, Deform, output_shape, parse

ROWS = {
    "1d": ("deform(ic3oc5k3, og1)", (2, 3, 11)),
    "2d": ("deform(ic3oc5k3x3p1, og1)", (2, 3, 7, 6)),
    "3d": ("deform(ic2oc3k3x2x1p1x0x0, og1)", (1, 2, 4, 3, 5)),
    "mask 1d": ("deform(ic4oc6k4s2p2:1g2, og4, mask)", (2, 4, 9)),
    "mask": ("deform(ic4oc6k3x3p1nb, og2, mask)", (2, 4, 5, 6)),
    "mask 3d": ("deform(ic4oc2k2x1x3p0x0:1x2g2nb, og2, mask)", (1, 4, 3, 3, 4)),
    "pointwise": ("deform(ic5oc4k1x1, og5, mask)", (2, 5, 5, 3)),
    "kernel per axis": ("deform(ic3oc4k1x4p0x2, og3)", (2, 3, 4, 7)),
    "stride": ("deform(ic3oc4k3x3s2x3p1x0, og1)", (2, 3, 9, 8)),
    "stride above kernel": ("deform(ic3oc4k2x2s5, og1, mask)", (2, 3, 13, 12)),
    "dilation": ("deform(ic3oc4k3x2p3x0d3x4, og1)", (2, 3, 7, 9)),
    "dilation above map": ("deform(ic3oc4k2x2p5d7, og1, mask)", (2, 3, 3, 2)),
    "groups": ("deform(ic6oc4k3x3p1g2, og3)", (2, 6, 5, 4)),
    "groups across offset groups": ("deform(ic6oc3k2x2g3, og2, mask)", (2, 6, 4, 4)),
    "depthwise": ("deform(ic5oc10k3x3p1g5nb, og1)", (2, 5, 5, 4)),
    "uneven": ("deform(ic3oc4k3x3s2p0:1x2:0, og1)", (2, 3, 8, 7)),
    "one-wide map": ("deform(ic3oc4k3x3p1, og1, mask)", (2, 3, 1, 1)),
    "as large as the map": ("deform(ic3oc4k5x3, og1)", (2, 3, 5, 3)),
}
CASES = {name: (parse(text), shape) for name, (text, shape) in ROWS.items()}
LAYERS = {name: case for name, case in BLOCKS.items() if isinstance(case.block, Deform)}
each_case = pytest.mark.parametrize("block, shape", CASES.values(), ids=CASES.keys())
each_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())


def some(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block, shape", [CASES[name] for name in names], ids=names)


def operands(block: Deform, shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Whole numbers; offsets and masks are quarters, so that products are still exact in float64."""
    spec, out = block.conv, output_shape(block, shape)
    points = (shape[0], block.offset_groups * prod(spec.kernel_size))
    tensors = {
        "input": whole_numbers(shape, seed + 1),
        "offset": quarters((points[0], points[1] * spec.spatial_dims, *out[2:]), seed + 2),
        "weight": whole_numbers(spec.weight_shape, seed + 3),
    }
    if spec.bias:
        tensors["bias"] = whole_numbers((spec.out_channels,), seed + 4)
    return tensors | ({"mask": quarters((*points, *out[2:]), seed + 5)} if block.modulated else {})


def quarters(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-11, 12, shape, generator=torch.Generator().manual_seed(seed)).double() / 4


def window(spec: ConvSpec) -> dict[str, object]:
    return {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation}


def compute(spec: ConvSpec, tensors: dict[str, Tensor], **changes: object) -> Tensor:
    entrance = getattr(functional, f"deform_conv{spec.spatial_dims}d")
    return entrance(**tensors, **window(spec) | changes)


def true_value(spec: ConvSpec, tensors: dict[str, Tensor]) -> np.ndarray:
    arrays = {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}
    bias = arrays.get("bias", np.zeros(spec.out_channels))
    return reference.deform_conv(spec, arrays["input"], arrays["offset"], arrays["weight"], bias, arrays.get("mask"))


def small_offsets(layer: nn.Module) -> nn.Module:
    """Whole weights, and offsets between positions that stay near: what is seen is the map, not its surroundings."""
    fill(layer)
    for parameter in layer.offset_conv.parameters():
        parameter.data.div_(64)
    return layer
