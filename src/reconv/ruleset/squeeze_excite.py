"""`squeeze_excite`: the convolution, then a weight for each channel that depends on the whole map."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reconv.ruleset.additions import Addition, Tensors, kept, mirrored
from reconv.spec import Block, Chain, Gate
from reconv.surgery.sites import Site

REDUCTIONS = (16, 8, 4)
HIDDEN = 4  # channels that the gate squeezes to, at least


class SqueezeExcite(Addition):
    """The convolution, each of its channels times a weight that a small network learns from the channels' means.

        y = σ(E·relu(R·mean(z) + r) + e) · z,    z = 2·w * x + 2·b,    E = 0, e = 0 at first: σ(0) = ½

    Exact to the bit, at first: both factors are powers of two.

    Source:  Hu et al. 2017, arXiv:1709.01507
    """

    name = "squeeze_excite"
    source = "Hu et al. 2017, arXiv:1709.01507"

    def blocks(self, site: Site) -> Iterable[Block]:
        return (Chain(site.spec, Gate(reduction)) for reduction in _reductions(site.spec.out_channels))

    def start(self, site: Site, block: Block) -> Tensors:
        match block:
            case Chain(blocks=(_, Gate() as gate)):
                channels = site.spec.out_channels
                hidden = max(1, channels // gate.reduction)
                # an expand of zeros: the reduce learns from the second step on
                return {
                    **kept(site, "0.", 2.0),
                    "1.reduce.weight": mirrored((hidden, channels), (site.name, self.name)),
                    "1.reduce.bias": torch.zeros(hidden, dtype=torch.float64),
                    "1.expand.weight": torch.zeros(channels, hidden, dtype=torch.float64),
                    "1.expand.bias": torch.zeros(channels, dtype=torch.float64),
                }
        raise AssertionError(block)


def _reductions(channels: int) -> list[int]:
    """From small gates to large ones; where there are few channels, one that squeezes to HIDDEN or stays as wide."""
    useful = [r for r in REDUCTIONS if channels // r >= HIDDEN]
    return useful or [max(1, channels // HIDDEN)]
