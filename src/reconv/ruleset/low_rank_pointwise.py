"""`low_rank_pointwise`: a 1×1 as two thin ones."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.canonical import chained, dense, low_rank, once, pack, thin_basis
from reconv.ruleset.offers import cheaper, foreign, must_serve, pointwise, ranks, unfit
from reconv.ruleset.refine import metric
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site

FRACTIONS = (1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 2)  # of the full rank


class LowRankPointwise:
    """A 1×1 convolution as two, R channels a group between them.

        w[o, c] ≈ Σ_{r ≤ R} b[o, r] · a[r, c]        a truncated SVD, the closest there is
        … or, where responses are known, of w · (their input's covariance)^½

    Exact at R = min(in / groups, out / groups). Stride and padding stand in the part that leaves the other one the
    fewest positions: the first, transposed the last.

    Source:  Denil et al. 2013, arXiv:1306.0543; Sainath et al. 2013, low-rank matrix factorization for deep neural
             network training with high-dimensional output targets, ICASSP
    """

    name = "low_rank_pointwise"
    group = "smaller"
    source = "Denil et al. 2013, arXiv:1306.0543; Sainath et al. 2013, ICASSP"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if not site.spec.pointwise:
            return "it is no 1×1: see bottleneck"
        if site.spec.in_channels == site.spec.out_channels == site.spec.groups:
            return "one input and one output channel a group: its rank is one already"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        most = full_rank(site.spec)
        return cheaper(self.name, site, (self.at(site, r).block for r in ranks([f * most for f in FRACTIONS], most)))

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The rank that loses nothing."""
        return (self.at(site, full_rank(site.spec)),)

    def at(self, site: Site, rank: int) -> Proposal:
        """The proposal with so many inner channels a group."""
        spec, mid = site.spec, site.spec.groups * rank
        if spec.transposed:
            return Proposal(self.name, Chain(pointwise(spec, spec.in_channels, mid), spec.replace(in_channels=mid)))
        return Proposal(self.name, Chain(spec.replace(out_channels=mid, bias=False),
                                         pointwise(spec, mid, spec.out_channels, spec.bias)))  # fmt: skip

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        rank = _rank(site.spec, proposal.block)
        if rank is None or rank > full_rank(site.spec) or self.at(site, rank) != proposal:
            raise foreign(self, site, proposal)
        matrix = dense(site).flatten(2)
        if activations is not None:
            back, front = metric(site, activations).low_rank(rank)
        else:
            basis = once(site, (self.name,), lambda: thin_basis(matrix))
            back, front = low_rank(matrix, basis, rank)
        ones = [1] * site.spec.spatial_dims
        return pack(site, proposal.block, [part.reshape(*part.shape, *ones) for part in (front, back)], chained)


def full_rank(spec: ConvSpec) -> int:
    """Channels a group at which nothing is lost."""
    return min(spec.in_channels, spec.out_channels) // spec.groups


def _rank(spec: ConvSpec, block: Block) -> int | None:
    """Inner channels a group of a block of this rule's making."""
    match block:
        case Chain(blocks=(ConvSpec(), ConvSpec() as second)):
            return max(1, second.in_channels // spec.groups)
    return None
