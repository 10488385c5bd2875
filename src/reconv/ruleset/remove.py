"""`remove`: a 1×1 where a larger kernel was."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from reconv.ruleset.canonical import dense, pack
from reconv.ruleset.comb import Comb
from reconv.ruleset.offers import cheaper, foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.spec.conv import Ints
from reconv.surgery.sites import Site


class Remove:
    """The spatial part of a convolution left out: a 1×1 with its stride, which mixes the channels as it did.

        ŵ[o, c] = Σ_k w[o, c, k]        what it does to inputs that do not change from place to place
        ŵ[o, c] = w[o, c, k₀]           for outputs o to which the sum is farther from w than nothing at all

    k₀ is the tap in the middle, or the nearest to it that the padding lets stand alone. Exact only where all other
    taps are zero. Batch norm and activation behind it stay; a second proposal takes the activation away, so that what
    follows may be folded with it. The error is the kernel's; it says nothing of a lost activation.

    Source:  Dror et al. 2021 (Layer Folding), arXiv:2106.09309; Kim et al. 2023, arXiv:2301.12187
    """

    name = "remove"
    group = "smaller"
    source = "Dror et al. 2021, arXiv:2106.09309; Kim et al. 2023, arXiv:2301.12187"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.pointwise:
            return "1×1: it has no spatial part to remove"
        if _middle(site.spec) is None:
            return "its padding is less than its kernel: no 1×1 gives its output's size"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        offers = cheaper(self.name, site, [self.at(site).block])
        return offers if site.activation_kind is None else [*offers, *(self.at(site, linear=True) for _ in offers)]

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The 1×1, where no other tap holds anything."""
        must_serve(self, site)
        weight, (tap, _) = dense(site), _spot(site.spec)
        alone = int((weight[tap.window] != 0).sum()) == int((weight != 0).sum())
        return (self.at(site),) if alone else ()

    def at(self, site: Site, linear: bool = False) -> Proposal:
        """The 1×1; `linear`: the activation that follows goes as well."""
        activation = (site.activation,) if linear and site.activation and site.activation_kind else ()
        return Proposal(self.name, _spot(site.spec)[1], absorbs=activation)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        if proposal not in (self.at(site), self.at(site, linear=True)):
            raise foreign(self, site, proposal)
        weight, (tap, _) = dense(site), _spot(site.spec)
        middle, total = weight[tap.window], weight.sum(tuple(range(3, weight.ndim)), keepdim=True)
        nothing = weight.flatten(2).square().sum(2)
        lost = nothing - middle.flatten(2).square().sum(2) + (total - middle).flatten(2).square().sum(2)
        far = (lost >= nothing).reshape(*nothing.shape, *[1] * (weight.ndim - 2))

        def compose(part: Tensor) -> Tensor:
            kernel = torch.zeros_like(weight)
            kernel[tap.window] = part
            return kernel

        return pack(site, proposal.block, [torch.where(far, middle, total)], compose)


def _spot(spec: ConvSpec) -> tuple[Comb, ConvSpec]:
    """The tap that stays, and the convolution of it alone, for a spec that is not refused."""
    found = _middle(spec)
    if found is None:
        raise ValueError(f"no tap of {spec} can stand alone")  # refused before
    return found


def _middle(spec: ConvSpec) -> tuple[Comb, ConvSpec] | None:
    """The tap nearest to the middle that can stand alone, and the 1×1 of it."""
    ones = (1,) * spec.spatial_dims

    def distance(tap: Ints) -> float:
        return sum((t - (k - 1) / 2) ** 2 for t, k in zip(tap, spec.kernel_size, strict=True))

    # the dilation of a single tap means nothing, but that it allows an output padding below it
    steps = tuple(k + extra for k, extra in zip(spec.kernel_size, spec.output_padding, strict=True))
    for tap in sorted(product(*map(range, spec.kernel_size)), key=distance):
        comb = Comb(tap, steps, ones)
        if (part := comb.of(spec)) is not None:
            ends = zip(part.output_padding, part.stride, strict=True)
            return comb, part.replace(dilation=tuple(1 if extra < stride else extra + 1 for extra, stride in ends))
    return None
