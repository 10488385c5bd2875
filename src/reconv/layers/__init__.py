"""nn.Modules built from blocks. `reconv.nn` is this package."""

from reconv.layers.compose import Absorbed, ChainLayer, ConcatLayer, SumLayer, block_of, build
from reconv.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from reconv.layers.mixing import ChannelPermute, ChannelShuffle, SqueezeExcite

__all__ = [
    "Absorbed",
    "ChainLayer",
    "ChannelPermute",
    "ChannelShuffle",
    "ConcatLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "SqueezeExcite",
    "SumLayer",
    "block_of",
    "build",
]
