"""`dense`: what comes in, concatenated to what comes out."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reconv.ruleset.additions import Addition, Tensors, centre, identity, kept
from reconv.ruleset.canonical import torch_weight
from reconv.ruleset.stages import no_stage
from reconv.spec import Activation, Block, Branches, Chain, ConvSpec, out_channels
from reconv.surgery.sites import Site

IDENTITY = Activation("identity")


class Dense(Addition):
    """The map that comes in beside the one that comes out, mixed by a 1×1 that begins with the latter alone.

        y = p * [x, f(x)],    p = [0, I] at first

    Exact, at first. f is a whole module whose maps keep their size, or a convolution; where the convolution changes the
    size of the map, x passes a depthwise convolution of its stride that begins with ones.

    Source:  Huang et al. 2016, arXiv:1608.06993
    """

    name = "dense"
    source = "Huang et al. 2016, arXiv:1608.06993"
    whole = True  # it serves whole modules, too

    def refuse(self, site: Site) -> str | None:
        return no_stage(site) if site.modules else super().refuse(site)

    def blocks(self, site: Site) -> Iterable[Block]:
        yield Chain(Branches(_passed(site), site.block), _mixing(site))

    def start(self, site: Site, block: Block) -> Tensors:
        mixing, passed = _mixing(site), _passed(site)
        old = mixing.in_channels - mixing.out_channels
        eye = identity(mixing.out_channels, mixing.spatial_dims)
        nothing = eye.new_zeros(mixing.out_channels, old, *[1] * mixing.spatial_dims)
        tensors = kept(site, "0.1.") | {"1.weight": torch.cat([nothing, eye], 1)}
        if isinstance(passed, ConvSpec):
            ones = torch.ones(old, 1, 1, *passed.kernel_size, dtype=torch.float64)
            tensors["0.0.weight"] = torch_weight(passed, ones)
        return tensors


def _passed(site: Site) -> Block:
    """What gives the map that comes in, in the size of the one that comes out."""
    if site.modules:
        return IDENTITY
    point = centre(site.spec).replace(out_channels=site.spec.in_channels, groups=site.spec.in_channels, bias=False)
    same = point.pointwise and set(point.stride) == {1} and not any(map(any, point.padding))
    return IDENTITY if same and not any(point.output_padding) else point


def _mixing(site: Site) -> ConvSpec:
    into = site.input_shape[1] if site.modules else site.spec.in_channels
    dims = len(site.input_shape) - 2 if site.modules else site.spec.spatial_dims
    out = out_channels(site.block, into)
    return ConvSpec(in_channels=into + out, out_channels=out, kernel_size=(1,) * dims, bias=False)
