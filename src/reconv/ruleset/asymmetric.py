"""`asymmetric`: k×1 then 1×k through a rank; in 3D, some axes and then the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import prod

from reconv.ruleset.canonical import chained, dense, low_rank, once, pack, thin_basis
from reconv.ruleset.offers import cheaper, foreign, must_serve, ranks, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site

MACS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of the site's
MOST = 12  # proposals a site


class Asymmetric:
    """A convolution as one along some axes, then one along the rest, R channels a group between them.

        w[o, c, ky, kx] ≈ Σ_{r ≤ R} b[o, r, kx] · a[r, c, ky]        a truncated SVD of (c·ky) × (o·kx)

    Exact at R = min(in / groups · k_first, out / groups · k_rest). Stride, padding, dilation and output padding go
    with their axis. Depthwise kernels are the case of one channel a group.

    Source:  Jaderberg et al. 2014, arXiv:1405.3866; Tai et al. 2015, arXiv:1511.06067
    """

    name = "asymmetric"
    group = "smaller"
    source = "Jaderberg et al. 2014, arXiv:1405.3866; Tai et al. 2015, arXiv:1511.06067"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.spatial_dims == 1:
            return "1D: there is one axis only"
        if len(_wide(site.spec)) < 2:
            return "its kernel is wider than 1 along fewer than two axes"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        spec, firsts = site.spec, orders(site.spec)
        fractions = MACS[:: -(-len(firsts) * len(MACS) // MOST)]
        blocks = [
            self.at(site, first, rank).block
            for first in firsts
            for rank in ranks([f * _even_rank(spec, first) for f in fractions], full_rank(spec, first))
        ]
        return cheaper(self.name, site, blocks)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Every order of the axes at the rank that loses nothing."""
        return tuple(self.at(site, first, full_rank(site.spec, first)) for first in orders(site.spec))

    def at(self, site: Site, first: tuple[int, ...], rank: int) -> Proposal:
        """The proposal that does the axes `first` first, through `rank` channels a group."""
        spec, mid = site.spec, site.spec.groups * rank
        early, late = spec.along(first), spec.along(_rest(spec, first))
        return Proposal(self.name, Chain(early.replace(out_channels=mid, bias=False), late.replace(in_channels=mid)))

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = _form(site.spec, proposal.block)
        if form is None or self.at(site, *form) != proposal or form[1] > full_rank(site.spec, form[0]):
            raise foreign(self, site, proposal)
        first, rank = form
        rest = _rest(site.spec, first)
        weight = dense(site)
        g, o, i, *size = weight.shape
        matrix = weight.permute(0, 1, *(3 + axis for axis in rest), 2, *(3 + axis for axis in first))
        matrix = matrix.reshape(g, o * prod(size[axis] for axis in rest), -1)
        basis = once(site, (self.name, first), lambda: thin_basis(matrix))
        left, right = low_rank(matrix, basis, rank)
        left = left.reshape(g, o, -1, rank).mT
        early, late = (_with_all_axes(size, axes) for axes in (first, rest))
        parts = right.reshape(g, rank, i, *early), left.reshape(g, o, rank, *late)
        return pack(site, proposal.block, parts, chained)


def full_rank(spec: ConvSpec, first: Sequence[int]) -> int:
    """Channels a group at which nothing is lost."""
    k_first = prod(spec.kernel_size[axis] for axis in first)
    k_rest = prod(spec.kernel_size) // k_first
    return min(spec.in_channels // spec.groups * k_first, spec.out_channels // spec.groups * k_rest)


def _even_rank(spec: ConvSpec, first: Sequence[int]) -> float:
    """Channels a group at which, at stride 1, the MACs are those of the site."""
    i, o = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    k_first = prod(spec.kernel_size[axis] for axis in first)
    k_rest = prod(spec.kernel_size) // k_first
    return i * o * k_first * k_rest / (i * k_first + o * k_rest)


def _wide(spec: ConvSpec) -> list[int]:
    """Axes along which the kernel has more than one tap."""
    return [axis for axis, k in enumerate(spec.kernel_size) if k > 1]


def orders(spec: ConvSpec) -> list[tuple[int, ...]]:
    """Every choice of the axes that go first. One-tap axes go where their stride leaves the least to compute."""
    wide = _wide(spec)
    narrow = [] if spec.transposed else [axis for axis in range(spec.spatial_dims) if axis not in wide]
    return [tuple(sorted((*some, *narrow))) for n in range(1, len(wide)) for some in combinations(wide, n)]


def _rest(spec: ConvSpec, first: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(spec.spatial_dims) if axis not in first)


def _form(spec: ConvSpec, block: Block) -> tuple[tuple[int, ...], int] | None:
    """`first` and `rank` of a block of this rule's making."""
    match block:
        case Chain(blocks=(ConvSpec() as early, ConvSpec())):
            for first in orders(spec):
                if spec.along(first).kernel_size == early.kernel_size:
                    return first, max(1, early.out_channels // spec.groups)
    return None


def _with_all_axes(size: Sequence[int], axes: Sequence[int]) -> list[int]:
    """A kernel size with one tap along the axes that are not named."""
    return [k if axis in axes else 1 for axis, k in enumerate(size)]
