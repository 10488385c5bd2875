"""`bottleneck`: 1×1 to fewer channels, the kernel there, 1×1 back (Tucker-2)."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.canonical import chained, dense, left_basis, low_rank, once, pack, thin_basis
from reconv.ruleset.offers import cheaper, foreign, must_serve, pointwise, ranks, unfit
from reconv.ruleset.refine import metric
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site

FRACTIONS = (1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 2)  # of the channels, where both sides are reduced
ONE_SIDED = (1 / 8, 1 / 4, 1 / 2)
SWEEPS = 1  # of alternation; on trained weights the next ones lower the error by less than 0.2 %
Sides = tuple[int | None, int | None]  # inner channels a group: outputs, inputs; None leaves a side as it is
Factors = tuple[Tensor | None, Tensor, Tensor | None]  # back, core, front


class Bottleneck:
    """A convolution in a subspace of its input channels, of its output channels, or of both.

        w[o, c, k] ≈ Σ_{a, b} u[o, a] · s[a, b, k] · v[b, c]

    Each group has its own subspaces. Both sides: a higher-order SVD, then sweeps that improve each side in turn; one
    side: a truncated SVD, the closest there is. Exact when no channels are dropped.

    Source:  Kim et al. 2015, arXiv:1511.06530; De Lathauwer et al. 2000 (HOSVD, HOOI)
    """

    name = "bottleneck"
    group = "smaller"
    source = "Kim et al. 2015, arXiv:1511.06530"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.pointwise:
            return "1×1: see low_rank_pointwise"
        if site.spec.in_channels == site.spec.out_channels == site.spec.groups:
            if site.spec.groups == 1:
                return "one input and one output channel: none to reduce"
            return "depthwise: each group has one channel, none to reduce"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        return cheaper(self.name, site, (self.at(site, *sides).block for sides in _offered(site.spec)))

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Each form at the ranks that lose nothing."""
        spec = site.spec
        o, i = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        thin_o, thin_i = thin_ranks(spec)
        return self.at(site, o, i), self.at(site, thin_o, None), self.at(site, None, thin_i)

    def at(self, site: Site, outputs: int | None, inputs: int | None) -> Proposal:
        """The proposal with so many inner channels a group; None leaves a side as it is."""
        spec = site.spec
        mid_in = spec.in_channels if inputs is None else inputs * spec.groups
        mid_out = spec.out_channels if outputs is None else outputs * spec.groups
        core = spec.replace(in_channels=mid_in, out_channels=mid_out, bias=spec.bias and outputs is None)
        parts: list[Block] = [core]
        if inputs is not None:
            parts.insert(0, pointwise(spec, spec.in_channels, mid_in))
        if outputs is not None:
            parts.append(pointwise(spec, mid_out, spec.out_channels, bias=spec.bias))
        return Proposal(self.name, Chain(*parts))

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = _form(site.spec, proposal.block)
        if form is None or self.at(site, *form) != proposal or not _within(site.spec, *form):
            raise foreign(self, site, proposal)
        ones = [1] * site.spec.spatial_dims
        if activations is not None and form[0] is not None and form[1] is None:  # in closed form on responses, too
            left, right = metric(site, activations).low_rank(form[0])
            factors: Factors = left, right.reshape(*right.shape[:2], -1, *site.spec.kernel_size), None
        else:
            factors = _factors(site, dense(site), *form)
        back, core, front = factors
        thin = [None if part is None else part.reshape(*part.shape, *ones) for part in (front, back)]
        return pack(site, proposal.block, [part for part in (thin[0], core, thin[1]) if part is not None], chained)


def _offered(spec: ConvSpec) -> list[Sides]:
    o, i = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    thin_o, thin_i = thin_ranks(spec)
    both = [(a, b) for f in FRACTIONS for a in ranks([f * o], thin_o) for b in ranks([f * i], thin_i)]
    outputs = [(a, None) for a in ranks([f * o for f in ONE_SIDED], thin_o)]
    inputs = [(None, b) for b in ranks([f * i for f in ONE_SIDED], thin_i)]
    return [*both, *outputs, *inputs]


def thin_ranks(spec: ConvSpec) -> tuple[int, int]:
    """Inner channels a group, (outputs, inputs), at which reducing one side alone loses nothing."""
    o, i, taps = spec.out_channels // spec.groups, spec.in_channels // spec.groups, prod(spec.kernel_size)
    return min(o, i * taps), min(i, o * taps)


def _within(spec: ConvSpec, outputs: int | None, inputs: int | None) -> bool:
    """Whether no side has more inner channels than there are directions."""
    most_outputs, most_inputs = thin_ranks(spec)
    if outputs and inputs:
        most_outputs, most_inputs = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    return (outputs or 0) <= most_outputs and (inputs or 0) <= most_inputs


def _form(spec: ConvSpec, block: Block) -> Sides | None:
    """Inner channels a group, (outputs, inputs), of a block of this rule's making."""
    match block:
        case Chain(blocks=(ConvSpec() as front, ConvSpec(), ConvSpec() as back)):
            return max(1, back.in_channels // spec.groups), max(1, front.out_channels // spec.groups)
        case Chain(blocks=(ConvSpec() as first, ConvSpec() as second)):
            rank = max(1, second.in_channels // spec.groups)
            return (None, rank) if first.pointwise else (rank, None)
    return None


# -- the algebra, on dense weights (g, o, i, *k) -------------------------------------------------------
def _factors(site: Site, weight: Tensor, outputs: int | None, inputs: int | None) -> Factors:
    """back (g, o, a), core (g, a, b, *k) and front (g, b, i); None on a side that stays as it is."""
    by_output, by_input = weight.flatten(2), weight.transpose(1, 2).flatten(2)
    if inputs is None and outputs is not None:
        basis = once(site, ("thin outputs",), lambda: thin_basis(by_output))
        back, core = low_rank(by_output, basis, outputs)
        return back, core.reshape(*core.shape[:2], *weight.shape[2:]), None
    if outputs is None and inputs is not None:
        basis = once(site, ("thin inputs",), lambda: thin_basis(by_input))
        front, core = low_rank(by_input, basis, inputs)
        shape = (*core.shape[:2], weight.shape[1], *weight.shape[3:])
        return None, core.reshape(shape).transpose(1, 2), front.mT
    u = once(site, ("outputs",), lambda: left_basis(by_output))[..., :outputs]
    v = once(site, ("inputs",), lambda: left_basis(by_input))[..., :inputs]
    for _ in range(SWEEPS if u.shape[1] > u.shape[2] or v.shape[1] > v.shape[2] else 0):
        v = left_basis(_reduce_outputs(weight, u).transpose(1, 2).flatten(2))[..., :inputs]
        u = left_basis(_reduce_inputs(weight, v).flatten(2))[..., :outputs]
    return u, _reduce_inputs(_reduce_outputs(weight, u), v), v.mT


def _reduce_outputs(weight: Tensor, u: Tensor) -> Tensor:
    return torch.einsum("goi...,goa->gai...", weight, u)


def _reduce_inputs(weight: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("goi...,gib->gob...", weight, v)
