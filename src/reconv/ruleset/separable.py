"""`separable`: the spatial part apart from the mixing of channels, as a sum of T terms."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.canonical import dense, low_rank, once, pack, thin_basis
from reconv.ruleset.offers import cheaper, foreign, must_serve, pointwise, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site

TERMS = (1, 2, 3, 4, 6)


class Separable:
    """A convolution as depthwise → pointwise, or as pointwise → depthwise, in T terms.

        w[o, c, k] ≈ Σ_{t ≤ T} p[o, c, t] · d[c, t, k]        one truncated SVD per input channel c
        w[o, c, k] ≈ Σ_{t ≤ T} d[o, t, k] · p[o, t, c]        one truncated SVD per output channel o

    Exact at T = min(out / groups, ∏k), and at T = min(in / groups, ∏k). Groups stay in the pointwise part.

    Source:  Guo et al. 2018, arXiv:1808.05517; Sifre 2014; Chollet 2016, arXiv:1610.02357
    """

    name = "separable"
    group = "smaller"
    source = "Guo et al. 2018, arXiv:1808.05517; Chollet 2016, arXiv:1610.02357"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.pointwise:
            return "1×1: it has no spatial part to separate"
        if site.spec.depthwise and site.spec.out_channels == site.spec.groups:
            return "depthwise: it mixes no channels, nothing to separate"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        orders = ("depthwise", "pointwise")
        blocks = (self.at(site, first, t).block for first in orders for t in TERMS if t <= full_terms(site.spec, first))
        return cheaper(self.name, site, blocks)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Both orders with as many terms as lose nothing."""
        return tuple(self.at(site, first, full_terms(site.spec, first)) for first in ("depthwise", "pointwise"))

    def at(self, site: Site, first: str, terms: int) -> Proposal:
        """The proposal of `terms` terms whose first part is "depthwise" or "pointwise"."""
        spec = site.spec
        if first == "depthwise":
            mid = spec.in_channels * terms
            spatial = spec.replace(out_channels=mid, groups=spec.in_channels, bias=False)
            block = Chain(spatial, pointwise(spec, mid, spec.out_channels, bias=spec.bias))
        else:
            mid = spec.out_channels * terms
            block = Chain(pointwise(spec, spec.in_channels, mid),
                          spec.replace(in_channels=mid, groups=spec.out_channels))  # fmt: skip
        return Proposal(self.name, block)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = _form(site.spec, proposal.block)
        if form is None or self.at(site, *form) != proposal or form[1] > full_terms(site.spec, form[0]):
            raise foreign(self, site, proposal)
        first, terms = form
        weight = dense(site)
        g, o, i, *k = weight.shape
        matrix = weight.flatten(3)  # (g, o, i, K): one o's, and below one i's, channel × tap matrices
        if first == "depthwise":
            matrix = matrix.transpose(1, 2)
        basis = once(site, (self.name, first), lambda: thin_basis(matrix))
        mix, taps = low_rank(matrix, basis, terms)
        if first == "depthwise":
            parts = taps.reshape(g * i, terms, 1, *k), mix.transpose(1, 2).reshape(g, o, i * terms, *[1] * len(k))
        else:
            parts = mix.mT.reshape(g, o * terms, i, *[1] * len(k)), taps.reshape(g * o, 1, terms, *k)

        def compose(a: Tensor, b: Tensor) -> Tensor:
            if first == "depthwise":
                kernel = torch.einsum("goit,gitk->goik", b.reshape(g, o, i, terms), a.reshape(g, i, terms, -1))
            else:
                kernel = torch.einsum("goti,gotk->goik", a.reshape(g, o, terms, i), b.reshape(g, o, terms, -1))
            return kernel.reshape(weight.shape)

        return pack(site, proposal.block, parts, compose)


def full_terms(spec: ConvSpec, first: str) -> int:
    """Terms at which nothing is lost."""
    channels = spec.out_channels if first == "depthwise" else spec.in_channels
    return min(channels // spec.groups, prod(spec.kernel_size))


def _form(spec: ConvSpec, block: Block) -> tuple[str, int] | None:
    """`first` and `terms` of a block of this rule's making."""
    match block:
        case Chain(blocks=(ConvSpec() as a, ConvSpec() as b)):
            if a.pointwise:
                return "pointwise", max(1, b.in_channels // spec.out_channels)
            return "depthwise", max(1, a.out_channels // spec.in_channels)
    return None
