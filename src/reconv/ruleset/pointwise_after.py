"""`pointwise_after`: the convolution, then a 1×1 that starts as the identity."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.additions import Addition, Tensors, identity, kept
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site


class PointwiseAfter(Addition):
    """The convolution, its output channels mixed by a 1×1 across all groups.

        y[o] = Σ_m p[o, m] · (w * x + b)[m],    p = 1 at first

    Exact to the bit, at first. The bias stays in the convolution.

    Source:  Lin et al. 2013 (Network in Network), arXiv:1312.4400
    """

    name = "pointwise_after"
    source = "Lin et al. 2013, arXiv:1312.4400"

    def blocks(self, site: Site) -> Iterable[Block]:
        channels, dims = site.spec.out_channels, site.spec.spatial_dims
        yield Chain(site.spec, ConvSpec(in_channels=channels, out_channels=channels, kernel_size=(1,) * dims,
                                        bias=False))  # fmt: skip

    def start(self, site: Site, block: Block) -> Tensors:
        return {**kept(site, "0."), "1.weight": identity(site.spec.out_channels, site.spec.spatial_dims)}
