"""`multi_size`: beside the kernel, kernels of several sizes behind a 1×1 and a ReLU."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reconv.ruleset.additions import Addition, Tensors, beside, fits, kept, mirrored, wider, zeros
from reconv.spec import Activation, Block, Branches, Chain, ConvSpec
from reconv.surgery.sites import Site

FRACTIONS = (1 / 8, 1 / 4)  # of the narrower side's channels, between 1×1 and kernel
LEAST = 4  # channels there


class MultiSize(Addition):
    """The convolution plus branches 1×1 → ReLU → kernel, one of the same size and one of two more taps an axis.

        y = w * x + b + Σ_j v_j * relu(u_j * x + c_j),    v_j = 0 at first

    Exact to the bit, at first. The ReLU makes the branches more than a part of the kernel. Stride, padding and dilation
    are in the branches' kernels, which see all groups.

    Source:  Szegedy et al. 2014, arXiv:1409.4842
    """

    name = "multi_size"
    source = "Szegedy et al. 2014, arXiv:1409.4842"

    def blocks(self, site: Site) -> Iterable[Block]:
        spec = site.spec
        sizes = [each for each in (spec, wider(spec, 1)) if fits(site, each)]
        narrow = min(spec.in_channels, spec.out_channels)
        for middle in sorted({max(LEAST, round(fraction * narrow)) for fraction in FRACTIONS}):
            for count in range(1, len(sizes) + 1):
                yield beside(site, *(_branch(each, middle) for each in sizes[-count:]))

    def start(self, site: Site, block: Block) -> Tensors:
        tensors = kept(site, "0.")
        branches = block.blocks[1:] if isinstance(block, Branches) else ()
        for position, branch in enumerate(branches, 1):
            match branch:
                case Chain(blocks=(ConvSpec() as first, Activation(), ConvSpec() as last)):
                    seed = (site.name, self.name, position)
                    tensors[f"{position}.0.weight"] = mirrored(first.weight_shape, seed)
                    tensors[f"{position}.0.bias"] = torch.zeros(first.out_channels, dtype=torch.float64)
                    tensors[f"{position}.2.weight"] = zeros(last)
        return tensors


def _branch(spec: ConvSpec, middle: int) -> Block:
    first = ConvSpec(in_channels=spec.in_channels, out_channels=middle, kernel_size=(1,) * spec.spatial_dims)
    return Chain(first, Activation("relu"), spec.replace(in_channels=middle, groups=1, bias=False))
