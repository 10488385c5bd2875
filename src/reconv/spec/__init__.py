"""What a convolution is: `ConvSpec`, `Block` and their folds. Free of torch."""

from reconv.spec.block import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    convs,
)
from reconv.spec.conv import ConvSpec
from reconv.spec.cost import activation_bytes, macs, params, peak_bytes, weight_bytes
from reconv.spec.describe import Description, describe
from reconv.spec.geometry import in_channels, out_channels, output_shape, receptive_field
from reconv.spec.text import parse

__all__ = [
    "Activation",
    "BatchNorm",
    "Block",
    "Branches",
    "Chain",
    "ConvSpec",
    "Deform",
    "Description",
    "Gate",
    "Permute",
    "PixelShuffle",
    "Shuffle",
    "activation_bytes",
    "convs",
    "describe",
    "in_channels",
    "macs",
    "out_channels",
    "output_shape",
    "params",
    "parse",
    "peak_bytes",
    "receptive_field",
    "weight_bytes",
]
