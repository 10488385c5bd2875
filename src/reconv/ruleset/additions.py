"""What the rules of the group "stronger" share: convolutions beside another one, and parts that start by adding 0."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.canonical import float64, rounded
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Branches, ConvSpec
from reconv.surgery.sites import Site

Tensors = Mapping[str, Tensor]


class Addition(ABC):
    """A rule of the group "stronger": the same function at first, and more that can be learned."""

    name: str
    source: str
    group = "stronger"

    @abstractmethod
    def blocks(self, site: Site) -> Iterable[Block]:
        """Blocks that can stand in the place of the site's convolution, from small to large."""

    @abstractmethod
    def start(self, site: Site, block: Block) -> Tensors:
        """The block's state dict with which it computes what the site does, in float64."""

    def refuse(self, site: Site) -> str | None:
        return unfit(site) or self.hindered(site)

    def hindered(self, site: Site) -> str | None:
        """Why this rule cannot serve the convolution; None where it can."""
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """All proposals: none loses anything."""
        must_serve(self, site)
        return tuple(Proposal(self.name, block) for block in dict.fromkeys(self.blocks(site)))

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        tensors = as_of(site, self.start(site, proposal.block))
        return Weights(tensors, self.error(site, proposal.block, tensors))

    def error(self, site: Site, block: Block, tensors: Tensors) -> float:
        """0 where the trained weight is kept, up to rounding."""
        return 0.0


def as_of(site: Site, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors in the site's dtype, on its device; indices and counts stay what they are."""
    return {name: rounded(t, site) if t.is_floating_point() else t.to(site.device) for name, t in tensors.items()}


def kept(site: Site, prefix: str, factor: float = 1.0) -> dict[str, Tensor]:
    """The site's own tensors under a prefix, all of them times a factor."""
    return {prefix + name: factor * float64(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in site.tensors.items()}  # fmt: skip


def beside(site: Site, *others: Block) -> Block:
    """The site's convolution and others on the same input, added."""
    return Branches(site.spec, *others, join="sum")


def zeros(spec: ConvSpec) -> Tensor:
    return torch.zeros(spec.weight_shape, dtype=torch.float64)


def identity(channels: int, spatial_dims: int) -> Tensor:
    """The weight of a 1×1 convolution that gives what it takes."""
    return torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * spatial_dims)


def fresh(shape: Sequence[int], seed: object) -> Tensor:
    """Random weights (outputs, inputs, …) as He et al. 2015 (arXiv:1502.01852) have them; the seed fixes them."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(seed).encode()))
    scale = (2 / prod(shape[1:])) ** 0.5
    return scale * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def mirrored(shape: Sequence[int], seed: object) -> Tensor:
    """`fresh` weights, each second output the negative of the one before: behind a ReLU one of the two is alive."""
    weight = fresh(shape, seed)
    pairs = shape[0] // 2
    weight[1 : 2 * pairs : 2] = -weight[0 : 2 * pairs : 2]
    return weight


# -- other kernels at the same points ---------------------------------------------------------------------
def cut(spec: ConvSpec, low: Sequence[int], high: Sequence[int]) -> ConvSpec:
    """The convolution without so many taps at both ends of each axis (negative: with more), the others where they were.

        offset of tap t:  d·t − lo        so k' = k − low − high, lo' = lo − d·low, hi' = hi − d·high

    This holds for every padding mode, and for transposed convolutions, whose padding is cut off the output. Its weight
    is the same as one with zeros in place of the taps.

    Example:
             >>> str(cut(ConvSpec.parse("ic4oc4k3x5p1x2"), (1, 0), (1, -1)))
             'ic4oc4k1x6p0x2:3'
    """
    axes = list(zip(spec.kernel_size, spec.padding, spec.dilation, low, high, strict=True))
    return spec.replace(kernel_size=tuple(k - a - b for k, _, _, a, b in axes),
                        padding=tuple((lo - d * a, hi - d * b) for _, (lo, hi), d, a, b in axes))  # fmt: skip


def around_centre(spec: ConvSpec, axes: Iterable[int] | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many taps may go at the low and at the high end of some axes (all), so that what is left is one tap.

    As far as there is padding that can go with them: without padding all taps stay. The one tap is that which reads
    the input at the place of the output.
    """
    chosen = set(range(spec.spatial_dims) if axes is None else axes)
    low, high = [], []
    for axis, (k, (lo, hi), d) in enumerate(zip(spec.kernel_size, spec.padding, spec.dilation, strict=True)):
        low.append(min(k - 1, lo // d) if axis in chosen else 0)
        high.append(min(k - 1 - low[-1], hi // d) if axis in chosen else 0)
    return tuple(low), tuple(high)


def centre(spec: ConvSpec, axes: Iterable[int] | None = None) -> ConvSpec:
    """The smallest kernel around the same points along some axes (all): one tap wherever the padding allows it.

    Example:
             >>> str(centre(ConvSpec.parse("ic4oc6k3x3s2p1x0")))
             'ic4oc6k1x3s2'
    """
    return cut(spec, *around_centre(spec, axes))


def wider(spec: ConvSpec, by: int) -> ConvSpec:
    """The kernel with `by` more taps at both ends of the axes that it extends along; a 1×1 along all."""
    more = [-by if k > 1 or spec.pointwise else 0 for k in spec.kernel_size]
    return cut(spec, more, more)


def spread(spec: ConvSpec, factor: int) -> ConvSpec:
    """The kernel with a dilation so many times as large, around the same points."""
    pads = []
    for k, (lo, hi), d in zip(spec.kernel_size, spec.padding, spec.dilation, strict=True):
        more = (factor - 1) * d * (k - 1)
        pads.append((lo + more // 2, hi + more - more // 2))
    dilation = [factor * d if k > 1 else d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    return spec.replace(dilation=dilation, padding=pads)


def fits(site: Site, spec: ConvSpec) -> bool:
    """Whether the maps of the site's known runs are large enough to be padded as `spec` does."""
    least = {"reflect": lambda pad: pad + 1, "circular": lambda pad: pad}.get(spec.padding_mode)
    return least is None or all(
        length >= least(max(pads))
        for call in site.calls
        for length, pads in zip(call.input_shape[-spec.spatial_dims :], spec.padding, strict=True)
    )  # fmt: skip


def fitting(site: Site, change: Callable[[ConvSpec, int], ConvSpec], sizes: Iterable[int]) -> list[ConvSpec]:
    """The site's convolution changed by each of the sizes, where its maps are large enough."""
    return [spec for spec in (change(site.spec, size) for size in sizes) if fits(site, spec)]


def too_small(site: Site) -> str:
    return f"its maps are too small for more {site.spec.padding_mode} padding"
