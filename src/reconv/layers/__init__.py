"""nn.Modules built from blocks. `reconv.nn` is this package."""

from reconv.layers.asymmetric import AsymmetricConv1d, AsymmetricConv2d, AsymmetricConv3d
from reconv.layers.compose import ChainLayer, ConcatLayer, SumLayer, block_of, build
from reconv.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from reconv.layers.deform import DeformConv1d, DeformConv2d, DeformConv3d
from reconv.layers.depthwise import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)
from reconv.layers.mixing import (
    ChannelPermute,
    ChannelShuffle,
    SqueezeExcite,
    SqueezeExcite1d,
    SqueezeExcite2d,
    SqueezeExcite3d,
)
from reconv.layers.multi_size import MultiSizeConv1d, MultiSizeConv2d, MultiSizeConv3d
from reconv.layers.pixel_shuffle import PixelShuffleLayer
from reconv.layers.separable import SeparableConv1d, SeparableConv2d, SeparableConv3d
from reconv.layers.sequence import Absorbed, QuickSequential
from reconv.layers.shuffled_group import ShuffledGroupConv1d, ShuffledGroupConv2d, ShuffledGroupConv3d
from reconv.layers.split import split_groups
from reconv.layers.stacked import StackedConv1d, StackedConv2d, StackedConv3d

__all__ = [
    "Absorbed",
    "AsymmetricConv1d",
    "AsymmetricConv2d",
    "AsymmetricConv3d",
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
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv3d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "MultiSizeConv1d",
    "MultiSizeConv2d",
    "MultiSizeConv3d",
    "PixelShuffleLayer",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "QuickSequential",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "ShuffledGroupConv1d",
    "ShuffledGroupConv2d",
    "ShuffledGroupConv3d",
    "SqueezeExcite",
    "SqueezeExcite1d",
    "SqueezeExcite2d",
    "SqueezeExcite3d",
    "StackedConv1d",
    "StackedConv2d",
    "StackedConv3d",
    "SumLayer",
    "block_of",
    "build",
    "split_groups",
]
