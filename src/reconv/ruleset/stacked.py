"""`stacked`: a large kernel as small ones, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import product
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from reconv.layers.stacked import stacked_kernels
from reconv.ruleset.canonical import dense, left_basis, pack, relative_error
from reconv.ruleset.offers import cheaper, foreign, must_serve, ranks, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec
from reconv.surgery.sites import Site

MACS = (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)  # of the site's
WORK = 1_000_000_000  # multiply-accumulates that the sweeps of a fit may take, beyond the first few
SWEEPS_LEAST, SWEEPS_FIRST, SWEEPS_MOST = 2, 10, 160
ENOUGH = 0.998  # of the error before SWEEPS_FIRST more sweeps; what gains less is left
EXACT = 1e-12  # relative; what is nearer needs no sweeps
SMALL = 512  # rows of a matrix that is decomposed as a whole
STEPS = 6  # of conjugate gradients, for a part between two others
RIDGE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
}  # of the largest diagonal entry: it may be singular
Kernels = tuple[tuple[int, ...], ...]  # the sizes of the small kernels, from first to last


class Stacked:
    """A large kernel as a chain of small ones, m channels a group between them and no activation.

        w[o, c, :] ≈ Σ_m b[o, m, :] ∗ a[m, c, :]        full convolution; 5 = 3 ∘ 3, 7 = 3 ∘ 3 ∘ 3 = 5 ∘ 3

    All padding stands in the first part, the stride in the last (transposed: the other way round), so the chain is
    one kernel at the borders, too. Alternating least squares, from the principal patches of the kernel. Exact for two
    parts at m = min(in / groups · ∏⌈k / k_last⌉, out / groups · ∏⌈k / k_first⌉): one part shifts, the other weighs.

    Source:  Simonyan & Zisserman 2014, arXiv:1409.1556; Szegedy et al. 2015, arXiv:1512.00567
    """

    name = "stacked"
    group = "smaller"
    source = "Simonyan & Zisserman 2014, arXiv:1409.1556; Szegedy et al. 2015, arXiv:1512.00567"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if max(site.spec.kernel_size) < 3:
            return "its kernel has fewer than 3 taps along every axis: no two smaller ones make it"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        spec = site.spec
        blocks = [
            self.at(site, kernels, mid).block
            for kernels in dict.fromkeys((small_kernels(spec), two_kernels(spec)))
            for mid in ranks([_mid_for(spec, kernels, f) for f in MACS], _most(spec, kernels))
        ]
        return cheaper(self.name, site, blocks)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Two kernels with as many channels between as lose nothing."""
        kernels = two_kernels(site.spec)
        return (self.at(site, kernels, full_mid(site.spec, kernels)),)

    def at(self, site: Site, kernels: Kernels, mid: int) -> Proposal:
        """The proposal of kernels of these sizes, with `mid` channels a group between them."""
        spec = site.spec
        channels = [spec.in_channels, *[spec.groups * mid] * (len(kernels) - 1), spec.out_channels]
        parts = [
            spec.replace(in_channels=channels[i], out_channels=channels[i + 1], kernel_size=kernel, stride=1, padding=0,
                         output_padding=0, bias=False)
            for i, kernel in enumerate(kernels)
        ]  # fmt: skip
        pads, strides = (-1, 0) if spec.transposed else (0, -1)  # a transposed one crops what all of them gave
        parts[strides] = parts[strides].replace(stride=spec.stride, output_padding=spec.output_padding)
        parts[pads] = parts[pads].replace(padding=spec.padding)
        parts[-1] = parts[-1].replace(bias=spec.bias)
        return Proposal(self.name, Chain(*parts))

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = _form(site.spec, proposal.block)
        if form is None or form[1] > _most(site.spec, form[0]) or self.at(site, *form) != proposal:
            raise foreign(self, site, proposal)
        kernels, mid = form
        return pack(site, proposal.block, fit(dense(site), kernels, mid), convolved)


# -- which kernels ------------------------------------------------------------------------------------
def small_kernels(spec: ConvSpec) -> Kernels:
    """Kernels of 3 taps (2, where the large one has 3) that make up the large one; each adds its size − 1."""
    small = 3 if max(spec.kernel_size) > 3 else 2
    return stacked_kernels(spec.kernel_size, small)


def two_kernels(spec: ConvSpec) -> Kernels:
    """Two kernels of like size that make up the large one, of odd sizes where they can be."""
    firsts = [k // 2 + 1 + (k > 3 and k % 4 == 3) for k in spec.kernel_size]
    small = 3 if max(spec.kernel_size) > 3 else 2
    firsts = [k if k <= small else first for k, first in zip(spec.kernel_size, firsts, strict=True)]
    return tuple(firsts), tuple(k - first + 1 for k, first in zip(spec.kernel_size, firsts, strict=True))


def full_mid(spec: ConvSpec, kernels: Kernels) -> int:
    """Channels a group between two kernels at which nothing is lost: the first one only shifts, or the last one."""
    first, last = kernels
    return min(
        spec.in_channels // spec.groups * _shifts(spec.kernel_size, last),
        spec.out_channels // spec.groups * _shifts(spec.kernel_size, first),
    )


def _shifts(size: Sequence[int], small: Sequence[int]) -> int:
    """Copies of a small kernel that cover a large one."""
    return prod(-(-k // each) for k, each in zip(size, small, strict=True))


def _most(spec: ConvSpec, kernels: Kernels) -> int:
    """Channels a group beyond which there is nothing to gain."""
    if len(kernels) == 2:
        return full_mid(spec, kernels)
    return max(spec.in_channels, spec.out_channels) // spec.groups * prod(spec.kernel_size)


def _mid_for(spec: ConvSpec, kernels: Kernels, fraction: float) -> float:
    """Channels a group at which, at stride 1, the MACs are this fraction of the site's."""
    o, i = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    first, *middle, last = map(prod, kernels)
    square, linear, wanted = sum(middle), i * first + o * last, fraction * o * i * prod(spec.kernel_size)
    if not square:
        return wanted / linear
    return (sqrt(linear * linear + 4 * square * wanted) - linear) / (2 * square)


def _form(spec: ConvSpec, block: Block) -> tuple[Kernels, int] | None:
    """The kernels and the channels between them of a block of this rule's making."""
    match block:
        case Chain(blocks=parts):
            kernels = tuple(part.kernel_size for part in parts if isinstance(part, ConvSpec))
            if len(kernels) == len(parts) and kernels in (small_kernels(spec), two_kernels(spec)):
                return kernels, max(1, parts[0].out_channels // spec.groups)  # type: ignore[union-attr]
    return None


# -- the algebra, on dense weights (g, o, i, *k) -------------------------------------------------------
def convolved(*weights: Tensor) -> Tensor:
    """The dense kernel of convolutions one after the other: channels multiplied, taps convolved in full."""
    return reduce(_convolved, weights)


def _convolved(first: Tensor, then: Tensor) -> Tensor:
    size = [a + b - 1 for a, b in zip(first.shape[3:], then.shape[3:], strict=True)]
    result = first.new_zeros(first.shape[0], then.shape[1], first.shape[2], *size)
    one = [1] * len(size)
    for tap in product(*map(range, then.shape[3:])):
        result[_window(tap, first.shape[3:])] += torch.einsum("gmi...,gom...->goi...", first, then[_window(tap, one)])
    return result


def _window(start: Sequence[int], size: Sequence[int]) -> Any:
    """Where a kernel of this size lies in a larger one, from a tap on."""
    return (..., *(slice(s, s + k) for s, k in zip(start, size, strict=True)))


def fit(weight: Tensor, kernels: Kernels, mid: int) -> list[Tensor]:
    """Small kernels that compose to nearly the weight."""
    largest = weight.abs().max()
    scale = torch.where(largest > 0, largest, 1.0)
    scaled = weight / scale
    if mid < _enough(weight, kernels[0], kernels[-1]) and 8 * _work(weight, kernels[0], kernels[-1], mid) > WORK:
        scaled = scaled.float()  # it takes long, and is far from exact
    parts = [part.to(weight.dtype) for part in _fit(scaled, kernels, mid)]
    return _balanced(parts, scale)


def _fit(weight: Tensor, kernels: Kernels, mid: int) -> list[Tensor]:
    *early, last = kernels
    merged = tuple(k - b + 1 for k, b in zip(weight.shape[3:], last, strict=True))
    first, then = _fit_two(weight, merged, last, mid)
    if len(early) == 1:
        return [first, then]
    parts = _fit(first, tuple(early), mid)
    parts.append(_last_for(weight, convolved(*parts), then))
    return _refined(weight, parts, max(1, min(SWEEPS_FIRST, WORK // (4 * STEPS * _work(weight, merged, last, mid)))))


def _fit_two(weight: Tensor, first: Sequence[int], last: Sequence[int], mid: int) -> tuple[Tensor, Tensor]:
    """The best of a few starts, each improved by alternating least squares, then improved as long as that pays."""
    sweeps = max(SWEEPS_LEAST, min(SWEEPS_MOST, WORK // _work(weight, first, last, mid)))
    enough = _enough(weight, first, last)
    starts = [(_from_patches if mid < enough else _from_shifts)(weight, first, last, mid)]
    if mid < enough and sweeps > SWEEPS_FIRST:
        swapped = _from_patches(weight.transpose(1, 2), last, first, mid)
        starts += [_from_shifts(weight, first, last, mid), (swapped[1].transpose(1, 2), swapped[0].transpose(1, 2))]
    tried = [_improved(weight, *start, min(SWEEPS_FIRST, sweeps)) for start in starts]
    errors = [relative_error(weight, _convolved(*found)) for found in tried]
    best, error = tried[errors.index(min(errors))], min(errors)
    for _ in range(sweeps // SWEEPS_FIRST):
        if error < EXACT:
            break
        best = _improved(weight, *best, SWEEPS_FIRST)
        before, error = error, relative_error(weight, _convolved(*best))
        if error > ENOUGH * before:
            break
    return best


def _enough(weight: Tensor, first: Sequence[int], last: Sequence[int]) -> int:
    """Channels a group at which one of two kernels may only shift."""
    _, o, i, *size = weight.shape
    return min(i * _shifts(size, last), o * _shifts(size, first))


def _work(weight: Tensor, first: Sequence[int], last: Sequence[int], mid: int) -> int:
    """Multiply-accumulates of one sweep, about."""
    g, o, i, *_ = weight.shape

    def side(outputs: int, inputs: int, fixed: int, free: int) -> int:
        unknown = free * mid  # of each output
        return mid * fixed * free * inputs * (outputs + 2 * mid) + unknown**3 // 3 + 4 * outputs * unknown**2

    return g * (side(o, i, prod(first), prod(last)) + side(i, o, prod(last), prod(first)))


def _from_patches(weight: Tensor, first: Sequence[int], last: Sequence[int], mid: int) -> tuple[Tensor, Tensor]:
    """First kernels that span what the weight's windows hold most of, as many as there are; the rest at random."""
    g, o, i, *_ = weight.shape
    windows = [weight[_window(tap, first)] for tap in product(*map(range, last))]
    basis = _strongest(torch.stack(windows, 1).reshape(g, -1, i * prod(first)).mT, mid).mT
    if basis.shape[1] < mid:
        basis = torch.cat([basis, _some((g, mid - basis.shape[1], i * prod(first)), weight)], 1)
    kernels = basis.reshape(g, mid, i, *first)
    return kernels, _last_for(weight, kernels, weight.new_zeros(g, o, mid, *last))


def _strongest(matrix: Tensor, count: int) -> Tensor:
    """About the strongest left singular vectors: of large matrices by a few steps of subspace iteration.

    Source:  Halko et al. 2011, arXiv:0909.4061
    """
    rows = matrix.shape[-2]
    if rows <= SMALL or 4 * count > rows:
        return left_basis(matrix)[..., :count]
    gram = (matrix @ matrix.mT).float()
    found = _some((len(matrix), rows, count), gram)
    for _ in range(3):
        found = torch.linalg.qr(gram @ found).Q
    return found.to(matrix.dtype)


def _from_shifts(weight: Tensor, first: Sequence[int], last: Sequence[int], mid: int) -> tuple[Tensor, Tensor]:
    """First kernels, or last ones, that shift their channel: as many as cover the weight, where there are enough."""
    g, o, i, *size = weight.shape
    if o * _shifts(size, first) <= mid < i * _shifts(size, last):
        swapped = _from_shifts(weight.transpose(1, 2), last, first, mid)
        return swapped[1].transpose(1, 2), swapped[0].transpose(1, 2)
    kernels = _some((g, mid, i, *first), weight) * 0.1
    starts = product(*(sorted({min(s, a - 1) for s in range(0, k, b)})
                       for k, a, b in zip(size, first, last, strict=True)))  # fmt: skip
    for place, (start, channel) in enumerate(product(list(starts), range(i))):
        if place < mid:
            kernels[:, place] = 0.0
            kernels[:, place, channel][_window(start, [1] * len(size))] = 1.0
    return kernels, _last_for(weight, kernels, weight.new_zeros(g, o, mid, *last))


def _some(shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers that look random and are always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)


def _improved(weight: Tensor, first: Tensor, then: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Each side in turn the best for the other."""
    for _ in range(sweeps):
        first = _first_for(weight, then, first)
        then = _last_for(weight, first, then)
    return first, then


def _first_for(weight: Tensor, then: Tensor, now: Tensor) -> Tensor:
    return _last_for(weight.transpose(1, 2), then.transpose(1, 2), now.transpose(1, 2)).transpose(1, 2)


def _last_for(weight: Tensor, first: Tensor, now: Tensor) -> Tensor:
    """The last kernels that compose with the first ones to the closest there is to the weight, starting from `now`."""
    g, o, *_ = weight.shape
    mid, last = first.shape[1], now.shape[3:]
    gram = _overlaps(first, last)
    windows = [weight[_window(tap, first.shape[3:])].flatten(2) for tap in product(*map(range, last))]
    flat = first.flatten(2).mT
    wanted = torch.cat([window @ flat for window in windows], -1)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE[gram.dtype] * diagonal.amax(-1, keepdim=True)
    ridge = torch.where(ridge > 0, ridge, 1.0)
    factor = torch.linalg.cholesky(gram + torch.diag_embed(ridge.expand_as(diagonal)))
    found = now.flatten(3).transpose(2, 3).reshape(g, o, -1)
    for _ in range(2):  # the second time takes away what the ridge has changed
        found = found + torch.cholesky_solve((wanted - found @ gram).mT, factor).mT
    return found.reshape(g, o, prod(last), mid).transpose(2, 3).reshape(g, o, mid, *last)


def _overlaps(first: Tensor, last: Sequence[int]) -> Tensor:
    """Inner products of all kernels shifted to all taps of the last one: those of a shift between two hold for all.

    G[(t, m), (u, n)] = Σ_{c, q} a[m, c, q] · a[n, c, q + t − u]
    """
    g, mid, *_ = first.shape
    size, taps = first.shape[3:], list(product(*map(range, last)))
    gram = first.new_zeros(g, len(taps), mid, len(taps), mid)
    known: dict[tuple[int, ...], Tensor] = {}
    for (i, t), (j, u) in product(enumerate(taps), repeat=2):
        shift = tuple(b - a for a, b in zip(t, u, strict=True))
        common = [k - abs(d) for k, d in zip(size, shift, strict=True)]
        if j < i or min(common) < 1:
            continue
        if shift not in known:
            here, there = ([max(0, sign * d) for d in shift] for sign in (1, -1))
            known[shift] = first[_window(here, common)].flatten(2) @ first[_window(there, common)].flatten(2).mT
        gram[:, i, :, j], gram[:, j, :, i] = known[shift], known[shift].mT
    return gram.reshape(g, len(taps) * mid, -1)


def _refined(weight: Tensor, parts: Sequence[Tensor], sweeps: int) -> list[Tensor]:
    """Each part in turn nearer to the best for the others, as long as that pays."""
    best, error = list(parts), relative_error(weight, convolved(*parts))
    for _ in range(sweeps):
        tried = list(best)
        for at in range(len(tried)):
            before, after = tried[:at], tried[at + 1 :]
            if not before:
                tried[at] = _first_for(weight, convolved(*after), tried[at])
            elif not after:
                tried[at] = _last_for(weight, convolved(*before), tried[at])
            else:
                tried[at] = _middle_for(weight, convolved(*before), tried[at], convolved(*after))
        now = relative_error(weight, convolved(*tried))
        if not now < error:
            break
        best, gained, error = tried, now <= ENOUGH * error, now
        if error < EXACT or not gained:
            break
    return best


def _middle_for(weight: Tensor, before: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """A part between two others, nearer to the best for them: a few steps of conjugate gradients from `now`."""

    def residual(part: Tensor) -> Tensor:
        """−½ of the gradient of ‖weight − convolved(before, part, after)‖²."""
        with torch.enable_grad():
            free = part.detach().requires_grad_()
            loss = (weight - convolved(before, free, after)).square().sum()
            return -0.5 * torch.autograd.grad(loss, free)[0]

    down = residual(now)
    way, size, zero = down, down.square().sum(), residual(torch.zeros_like(now))
    least = torch.finfo(size.dtype).eps ** 2 * size  # below it all is rounding
    for _ in range(STEPS):
        curved = zero - residual(way)  # the normal equations' matrix times the way
        curvature = (way * curved).sum()
        if not (size > least and curvature > 0):
            break
        step = size / curvature
        now, down = now + step * way, down - step * curved
        size, last = down.square().sum(), size
        way = down + size / last * way
    return now.detach()


def _balanced(parts: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """The same product in parts of like size, channel by channel, the scale spread over all of them."""
    parts = [part * scale ** (1 / len(parts)) for part in parts]
    for at in range(len(parts) - 1):
        before = parts[at].flatten(2).norm(dim=2)
        after = parts[at + 1].transpose(1, 2).flatten(2).norm(dim=2)
        ratio = torch.where((before > 0) & (after > 0), (after / before).sqrt(), 1.0)
        ones = [1] * (parts[at].ndim - 3)
        parts[at] = parts[at] * ratio.reshape(*ratio.shape, 1, *ones)
        parts[at + 1] = parts[at + 1] / ratio.reshape(len(ratio), 1, -1, *ones)
    return parts
