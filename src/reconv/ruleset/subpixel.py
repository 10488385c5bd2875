"""`subpixel`: a transposed convolution as a plain one whose channels are spread over space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

from torch import Tensor

from reconv.ruleset.additions import as_of
from reconv.ruleset.canonical import dense_weight, float64
from reconv.ruleset.linear import inside
from reconv.ruleset.offers import bad_tensors, foreign, must_serve
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Branches, Chain, ConvSpec, PixelShuffle, convs
from reconv.surgery.sites import Site

Tensors = Mapping[str, Tensor]
MOST = 8.0  # times the multiply-accumulates: beyond it nearly all new weights are zeros


class Subpixel:
    """A transposed convolution of stride s as a plain one with ∏s times the outputs, and a pixel shuffle by s.

        y[o, s·m + r] = Σ_{t: d·t − lo ≡ r mod s} w[c, o, t] · x[c, m − ⌊(d·t − lo) / s⌋]

    Exact to the bit in its weights. Each residue r is an output channel of its own, with those taps that meet it. Where
    it makes the kernel smaller, more is computed and the ends are cut off. With stride 1 a plain convolution is all.
    In a composite block every transposed part is replaced.

    Source:  Shi et al. 2016, arXiv:1609.05158; Shi et al. 2016, arXiv:1609.07009
    """

    name = "subpixel"
    group = "exact"
    source = "Shi et al. 2016, arXiv:1609.05158; arXiv:1609.07009"
    where_faster = True  # it may as well be slower: kept for those sites at which it measured faster

    def refuse(self, site: Site) -> str | None:
        if reason := site.refusal or bad_tensors(site):
            return reason
        wide = [_growth(spec) for spec in _transposed(site.block)]
        if not wide:
            return "it is not transposed"
        if max(wide) > MOST:
            return f"its strides are wide for its kernel: {max(wide):.3g} times the multiply-accumulates, most by zeros"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        return (Proposal(self.name, _replaced(site.block)),)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        return Weights(as_of(site, _moved(site.block, site.tensors)), error=0.0)


class _Axis(NamedTuple):
    """One axis of the plain convolution: which tap, of which residue, each transposed tap becomes."""

    kernel_size: int
    padding: tuple[int, int]
    dilation: int
    crop: tuple[int, int]
    places: tuple[tuple[int, int], ...]  # (residue, tap) for each transposed tap


def _axis(spec: ConvSpec, axis: int) -> _Axis:
    """The form with the fewest taps; among these the one that cuts off the least."""
    k, s, d, lo = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis], spec.padding[axis][0]
    starts = {(lo - d * t) % s for t in range(k)} | {0}
    beyond = lo - d * (k - 1)  # positions of the output that no tap reaches from inside the map
    starts |= {a + s * -(-(beyond - a) // s) for a in starts if a < beyond}
    return min((_starting(spec, axis, a) for a in sorted(starts)), key=lambda form: (form.kernel_size, sum(form.crop)))


def _starting(spec: ConvSpec, axis: int, a: int) -> _Axis:
    """The form that computes `a` positions more in front, q' = q + a = s·m + r, to be cut off."""
    k, s, d, (lo, hi) = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis], spec.padding[axis]
    reached = [divmod(d * t - lo + a, s) for t in range(k)]  # (m − p, r): the tap reads x[p] for y[s·m + r]
    low, high = min(0, *(-m for m, _ in reached)), max(-m for m, _ in reached)
    high = max(low, high)
    more = d * (k - 1) + spec.output_padding[axis] + 1 - s - lo - hi  # L' = s·L + more
    n = max(-(-(more + a) // s), -high)  # the plain output has L + n positions
    step = gcd(*(-m - low for m, _ in reached), high - low) or 1
    places = tuple((r, (-m - low) // step) for m, r in reached)
    return _Axis((high - low) // step + 1, (-low, n + high), step, (a, s * n - more - a), places)


def _growth(spec: ConvSpec) -> float:
    """The multiply-accumulates of the plain convolution over those of the transposed one."""
    return prod(s * _axis(spec, i).kernel_size / k for i, (s, k) in
                enumerate(zip(spec.stride, spec.kernel_size, strict=True)))  # fmt: skip


def _transposed(block: Block) -> Iterator[ConvSpec]:
    return (spec for spec in convs(block) if spec.transposed)


# -- blocks and their tensors -----------------------------------------------------------------------------
def _replaced(block: Block) -> Block:
    match block:
        case ConvSpec(transposed=True):
            return _plain(block)
        case Chain():
            return Chain(*map(_replaced, block.blocks))
        case Branches():
            return Branches(*map(_replaced, block.blocks), join=block.join)
    return block


def _plain(spec: ConvSpec) -> Block:
    axes = [_axis(spec, i) for i in range(spec.spatial_dims)]
    conv = ConvSpec(in_channels=spec.in_channels, out_channels=spec.out_channels * prod(spec.stride),
                    kernel_size=tuple(a.kernel_size for a in axes), padding=tuple(a.padding for a in axes),
                    dilation=tuple(a.dilation for a in axes), groups=spec.groups, bias=spec.bias)  # fmt: skip
    shuffle = PixelShuffle(spec.stride, tuple(a.crop for a in axes))
    return conv if prod(spec.stride) == 1 and not any(map(any, shuffle.crop)) else Chain(conv, shuffle)


def _moved(block: Block, tensors: Tensors) -> dict[str, Tensor]:
    """The state dict of `_replaced(block)`."""
    match block:
        case ConvSpec(transposed=True):
            prefix = "0." if isinstance(_plain(block), Chain) else ""
            return {prefix + name: tensor for name, tensor in _spread(block, tensors).items()}
        case Chain() | Branches():
            result, at = dict[str, Tensor](), 0
            for i, part in enumerate(block.blocks):
                moved = _moved(part, inside(tensors, i))
                inner = isinstance(block, Chain) and isinstance(_replaced(part), Chain)  # a chain in a chain is one
                for name, tensor in moved.items():
                    first, _, rest = name.partition(".")
                    result[f"{at + int(first)}.{rest}" if inner else f"{at}.{name}"] = tensor
                at += len(_parts(_replaced(part))) if inner else 1
            return result
    return dict(tensors)


def _parts(block: Block) -> tuple[Block, ...]:
    return block.blocks if isinstance(block, Chain) else (block,)


def _spread(spec: ConvSpec, tensors: Tensors) -> dict[str, Tensor]:
    """The weight with each tap in the channel of its residue; the bias in every one of them."""
    weight = dense_weight(spec, tensors["weight"])
    axes = [_axis(spec, i) for i in range(spec.spatial_dims)]
    g, o, i, *k = weight.shape
    new = weight.new_zeros(g, o, *spec.stride, i, *(a.kernel_size for a in axes))
    for tap in product(*map(range, k)):
        places = [axis.places[t] for axis, t in zip(axes, tap, strict=True)]
        here: Any = (..., *tap)
        there: Any = (slice(None), slice(None), *(r for r, _ in places), slice(None), *(t for _, t in places))
        new[there] = weight[here]
    result = {"weight": new.flatten(1, 1 + len(k)).flatten(0, 1)}  # torch's layout: (out, in / groups, *kernel)
    return result | ({"bias": float64(tensors["bias"]).repeat_interleave(prod(spec.stride))} if spec.bias else {})
