"""`squeeze_excite`: the convolution, then a weight for each channel that depends on the whole map."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

import torch
from torch import Tensor

from reconv.ruleset.additions import Addition, Tensors, kept, mirrored
from reconv.spec import Block, Chain, Gate
from reconv.surgery.sites import Site

REDUCTIONS = (16, 8, 4)
HIDDEN = 4  # channels that the gate squeezes to, at least
OPEN = 2.0  # what goes into the gate's sigmoid at first: it lets 88 % through


class SqueezeExcite(Addition):
    """The convolution, each of its channels times a weight that a small network learns from the channels' means.

        y = σ(E·relu(R·mean(z) + r) + e) · z,    z = (w * x + b) / σ(2),    E = 0, e = 2 at first

    Exact, up to rounding, at first. Open at 2, the gate is still in the range where it learns (σ' is 0.1), and the
    weights stay nearly as large as they were trained: twice as large, optimizers would change them more slowly. Where a
    batch norm follows, R and r start from random weights on the means that it would give.

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
                reduce = mirrored((hidden, channels), (site.name, self.name))
                scale, shift = _normalising(site)
                # an expand of zeros: the reduce learns from the second step on
                return {
                    **kept(site, "0.", 1 + exp(-OPEN)),
                    "1.reduce.weight": reduce * scale / (1 + exp(-OPEN)),
                    "1.reduce.bias": reduce @ shift,
                    "1.expand.weight": torch.zeros(channels, hidden, dtype=torch.float64),
                    "1.expand.bias": torch.full((channels,), OPEN, dtype=torch.float64),
                }
        raise AssertionError(block)


def _normalising(site: Site) -> tuple[Tensor, Tensor]:
    """Scale and shift of the channels: the batch norm's that follows, so that the gate sees means of like size."""
    channels = site.spec.out_channels
    if site.norm is None or not bool((site.norm.scale.isfinite() & site.norm.shift.isfinite()).all()):
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return site.norm.scale.detach().cpu().double(), site.norm.shift.detach().cpu().double()


def _reductions(channels: int) -> list[int]:
    """From small gates to large ones; where there are few channels, one that squeezes to HIDDEN or stays as wide."""
    useful = [r for r in REDUCTIONS if channels // r >= HIDDEN]
    return useful or [max(1, channels // HIDDEN)]
