"""`deform`: the convolution with sampling points that learn to move."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reconv.ruleset.additions import Addition, Tensors, kept, zeros
from reconv.ruleset.canonical import float64
from reconv.spec import Block, Deform
from reconv.surgery.sites import Site


class Deformable(Addition):
    """A deformable convolution whose offsets are 0 at first, with and without a mask.

        y[o, p] = b[o] + Σ_{c,k} w'[o, c, k] · m[k, p] · x[c, s·p + d·k − lo + Δ[k, p]]

    Exact, at first: Δ = 0, and with a mask m = σ(0) = ½, w' = 2·w.

    Source:  Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2018, arXiv:1811.11168
    """

    name = "deform"
    source = "Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2018, arXiv:1811.11168"

    def hindered(self, site: Site) -> str | None:
        if site.spec.transposed:
            return "transposed: it spreads each input value, it has no points to sample at"
        return None

    def blocks(self, site: Site) -> Iterable[Block]:
        return (Deform(site.spec, modulated=modulated) for modulated in (False, True))

    def start(self, site: Site, block: Block) -> Tensors:
        match block:
            case Deform(modulated=modulated, offset_conv=moves):
                weight = float64(site.weight) * (2.0 if modulated else 1.0)
                return {
                    **kept(site, ""),
                    "weight": weight,
                    "offset_conv.weight": zeros(moves),
                    "offset_conv.bias": torch.zeros(moves.out_channels, dtype=torch.float64),
                }
        raise AssertionError(block)
