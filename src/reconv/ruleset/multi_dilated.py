"""`multi_dilated`: a large kernel as a sum of small ones, each dilated by another rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.canonical import dense, pack
from reconv.ruleset.comb import Comb
from reconv.ruleset.offers import cheaper, foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Branches, ConvSpec
from reconv.surgery.sites import Site

MOST = 8  # proposals a site
TOGETHER = 3  # branches of an offer, at most
GAIN = 1e-9  # relative; less is rounding
Combs = tuple[Comb, ...]


class MultiDilated:
    """A kernel as a sum of dilated ones with few taps, whose taps are the kernel's own.

        w[o, c, k] ≈ Σ_j a_j[o, c, (k − f_j) / e_j]        where e_j divides k − f_j; f: the first tap, e: the dilation

    Covered taps are copied, those that several branches cover are shared: the least-squares fit. What no branch
    covers is lost; exact where all taps are covered. Padding follows each branch; one without enough of it is widened.

    Source:  Yu & Koltun 2015, arXiv:1511.07122; Ding et al. 2022, arXiv:2203.06717; Ding et al. 2023, arXiv:2311.15599
    """

    name = "multi_dilated"
    group = "smaller"
    source = "Yu & Koltun 2015, arXiv:1511.07122; Ding et al. 2023, arXiv:2311.15599"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if max(site.spec.kernel_size) < 3:
            return "its kernel has fewer than 3 taps along every axis: none lies between others"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        front = _front(dense(site).square().sum((0, 1, 2)), _offered(site.spec))
        step = max(1, -(-len(front) // MOST))
        return cheaper(self.name, site, (self.at(site, combs).block for combs in front[::-1][::step]))

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Every other tap, from each start that the padding lets: they cover the kernel."""
        return (self.at(site, _covering(site.spec)),)

    def at(self, site: Site, combs: Combs) -> Proposal:
        """The proposal whose branches have these taps; the bias goes to the first."""
        parts = [comb.of(site.spec) for comb in combs]
        if not parts or None in parts:
            raise foreign(self, site, Proposal(self.name, site.block))
        first, *others = (part for part in parts if part is not None)
        rest = [part.replace(bias=False) for part in others]
        return Proposal(self.name, Branches(first, *rest, join="sum") if rest else first)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        combs = _form(site.spec, proposal.block)
        if combs is None or self.at(site, combs) != proposal:
            raise foreign(self, site, proposal)
        weight = dense(site)
        times = torch.zeros_like(weight)
        for comb in combs:
            times[comb.window] += 1.0
        shares = weight / times.clamp(min=1.0)

        def compose(*parts: Tensor) -> Tensor:
            kernel = torch.zeros_like(weight)
            for comb, part in zip(combs, parts, strict=True):
                kernel[comb.window] += part
            return kernel

        return pack(site, proposal.block, [shares[comb.window] for comb in combs], compose)


def _offered(spec: ConvSpec) -> Iterator[Combs]:
    """Sets of branches: a core of neighbours, and rings of 3 taps a side (2 where there is no room) around it."""
    cores = [_centred(spec, 1, taps) for taps in (1, 3, 5)]
    rings = [_centred(spec, rate, 3) for rate in range(2, max(spec.kernel_size))]
    useful = dict.fromkeys(comb for comb in (*cores, *rings) if comb is not None and comb.taps != spec.kernel_size)
    for count in range(1, TOGETHER + 1):
        for combs in combinations(useful, count):
            if len({comb.step for comb in combs}) == count and (count > 1 or max(combs[0].step) > 1):
                yield combs


def _front(energy: Tensor, offered: Iterable[Combs]) -> list[Combs]:
    """Of the offered sets those that keep more of the kernel's energy than any with fewer taps, from small to large."""
    kept: dict[Combs, float] = {}
    for combs in offered:
        covered = torch.zeros_like(energy)
        for comb in combs:
            covered[comb.window] = 1.0
        kept[combs] = float((energy * covered).sum())
    front: list[Combs] = []
    for combs in sorted(kept, key=lambda each: (sum(prod(comb.taps) for comb in each), -kept[each])):
        if not front or kept[combs] > kept[front[-1]] * (1 + GAIN):
            front.append(combs)
    return front


def _centred(spec: ConvSpec, rate: int, taps: int) -> Comb | None:
    """`taps` taps `rate` apart around the middle of each long axis; short axes as they are."""
    first, step, count = [], [], []
    for k in spec.kernel_size:
        room = (k - 1) // rate + 1  # taps that there are
        whole = k < 3
        n = k if whole else min(taps, room)
        step.append(1 if whole or n == 1 else rate)
        first.append(0 if whole else (k - 1 - step[-1] * (n - 1)) // 2)
        count.append(n)
    if rate > 1 and max(step) == 1:
        return None
    return Comb(tuple(first), tuple(step), tuple(count)).reaching(spec)


def _covering(spec: ConvSpec) -> Combs:
    """Combs that share no tap and leave out none; where the padding lets none apart, the kernel and one of them."""
    sides = [_halves(spec, axis) for axis in range(spec.spatial_dims)]
    combs = [Comb(*zip(*axes, strict=True)) for axes in product(*sides)]
    if len(combs) > 1:
        return tuple(combs)
    whole = [(0, 1, k) for k in spec.kernel_size]
    axis = max(range(len(whole)), key=lambda a: spec.kernel_size[a])
    k = spec.kernel_size[axis]
    ends = [(0, k - 1, 2) if a == axis else side for a, side in enumerate(whole)]
    return Comb(*zip(*whole, strict=True)), Comb(*zip(*ends, strict=True))


def _halves(spec: ConvSpec, axis: int) -> Sequence[tuple[int, int, int]]:
    """First tap, step and taps of the even and of the odd ones along an axis; all of them where they cannot part."""
    k = spec.kernel_size[axis]
    halves = [(0, 2, (k + 1) // 2), (1, 2, k // 2)]
    others = [(0, 1, 1)] * spec.spatial_dims
    alone = [Comb(*zip(*[*others[:axis], half, *others[axis + 1 :]], strict=True)) for half in halves]
    if k >= 3 and all(comb.of(spec.along((axis,))) for comb in alone):
        return halves
    return [(0, 1, k)]


def _form(spec: ConvSpec, block: Block) -> Combs | None:
    """The combs of a block of this rule's making."""
    parts = block.blocks if isinstance(block, Branches) and block.join == "sum" else (block,)
    combs = tuple(Comb.found(spec, part) if isinstance(part, ConvSpec) else None for part in parts)
    return tuple(comb for comb in combs if comb is not None) if None not in combs else None
