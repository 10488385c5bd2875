"""`expand_branches`: linear branches with batch norms for the training, which `fold_branches` takes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.additions import Addition, Tensors, as_of, centre, fresh, identity, zeros
from reconv.ruleset.canonical import dense, dense_weight, float64, relative_error, torch_weight
from reconv.ruleset.linear import EPS, linear
from reconv.ruleset.offers import pointwise
from reconv.spec import BatchNorm, Block, Branches, Chain, ConvSpec
from reconv.surgery.sites import Site

PART = 1 / 2  # what a new branch gives at first, over what the kernel gave (root mean square, for white inputs)


class ExpandBranches(Addition):
    """The convolution as a sum of branches, each with a batch norm, that together are still one linear map.

        y = bn_0((w − Σ_j w_j) * x) + Σ_j bn_j(w_j * x),    w_j at random, bn = 1 in evaluation, the bias in bn_0
        bn_j:  σ²[o] = Σ_{c,k} w_j[o, c, k]²,  γ = σ        what white inputs give, so that training starts near there

    acnet:   the kernel, and for each axis the kernel along that axis alone (k×k + k×1 + 1×k)
    repvgg:  the kernel, its centre (1×1), and the input itself where the map and its channels stay
    dbb:     the kernel, its centre, 1×1 → kernel, and 1×1 → depthwise kernel that starts as the average

    Exact, up to rounding, in evaluation. Where the padding is too small for a smaller kernel, the branch has as many
    taps as it needs. No batch norm stands inside a branch: its shift would meet the padding. In training each batch
    norm uses the statistics of the batch; with data, `reconv.apply` gives it those of the data, and the same function.

    Source:  Ding et al. 2019 (ACNet), arXiv:1908.03930; 2021 (RepVGG), arXiv:2101.03697; 2021 (DBB), arXiv:2103.13425
    """

    name = "expand_branches"
    source = "Ding et al. 2019, arXiv:1908.03930; 2021, arXiv:2101.03697; 2021, arXiv:2103.13425"

    def blocks(self, site: Site) -> Iterable[Block]:
        kernel = site.spec.replace(bias=False)
        return (Branches(*form, join="sum") for form in (_repvgg(kernel), _acnet(kernel), _dbb(kernel)) if form)

    def start(self, site: Site, block: Block) -> Tensors:
        assert isinstance(block, Branches)
        spec, weight = site.spec, dense(site)
        size = PART * float(_squares(weight).mean().sqrt()) or PART
        tensors: dict[str, Tensor] = {"0.0.weight": zeros(spec)} | _norm("0.1.", torch.ones(spec.out_channels))
        for i, branch in enumerate(block.blocks[1:], 1):
            convs = list(_parts(branch))
            if not convs:
                tensors |= _norm(f"{i}.", torch.ones(spec.out_channels), size)
                continue
            weights = [_first(conv, j, len(convs), (site.name, i)) for j, conv in enumerate(convs)]
            variance = _variance(convs, weights)
            gain = size / float(variance.mean().sqrt())
            weights[-1] *= gain
            tensors |= {f"{i}.{j}.weight": each for j, each in enumerate(weights)}
            tensors |= _norm(f"{i}.{len(convs)}.", gain**2 * variance)
        rest = weight - linear(block, _as_stored(site, tensors)).kernel()
        tensors |= _norm("0.1.", _squares(rest), shift=site.bias)
        stored = _as_stored(site, tensors)  # what was rounded there, the first kernel makes up for
        scale = stored["0.1.weight"] / (stored["0.1.running_var"] + EPS).sqrt()
        first = (weight - linear(block, stored).kernel()) / scale.reshape(spec.groups, -1, *[1] * (weight.ndim - 2))
        return stored | {"0.0.weight": torch_weight(spec, first)}

    def error(self, site: Site, block: Block, tensors: Tensors) -> float:
        return relative_error(dense(site), linear(block, tensors).kernel())


def _normed(*parts: Block) -> Block:
    return Chain(*parts, BatchNorm())


def _acnet(kernel: ConvSpec) -> list[Block]:
    wide = [axis for axis, k in enumerate(kernel.kernel_size) if k > 1]
    if len(wide) < 2:
        return []
    return [_normed(kernel), *(_normed(centre(kernel, [a for a in wide if a != axis])) for axis in wide)]


def _repvgg(kernel: ConvSpec) -> list[Block]:
    return [_normed(kernel), _normed(centre(kernel)), *([BatchNorm()] if _holds_identity(kernel) else [])]


def _dbb(kernel: ConvSpec) -> list[Block]:
    if kernel.pointwise:
        return []
    before = pointwise(kernel, kernel.in_channels, kernel.in_channels)
    mixed = pointwise(kernel, kernel.in_channels, kernel.out_channels)
    average = kernel.replace(in_channels=kernel.out_channels, groups=kernel.out_channels)
    return [_normed(kernel), _normed(centre(kernel)), _normed(before, kernel), _normed(mixed, average)]


def _holds_identity(spec: ConvSpec) -> bool:
    """Whether one of its taps reads, at every output, the input at the same place."""
    return spec.in_channels == spec.out_channels and all(
        s == 1 and lo % d == 0 and lo + hi - extra == d * (k - 1)
        for s, d, k, (lo, hi), extra in zip(spec.stride, spec.dilation, spec.kernel_size, spec.padding,
                                            spec.output_padding, strict=True)
    )  # fmt: skip


def _parts(branch: Block) -> Iterator[ConvSpec]:
    """The convolutions of a branch; the batch norm that ends it is not one."""
    if isinstance(branch, Chain):
        yield from (part for part in branch.blocks if isinstance(part, ConvSpec))


def _first(conv: ConvSpec, position: int, count: int, seed: object) -> Tensor:
    """The starting weight of one convolution of a new branch, but for its scale."""
    if count == 2 and position == 1 and conv.depthwise and conv.in_channels == conv.out_channels:
        return torch.full(conv.weight_shape, 1 / prod(conv.kernel_size), dtype=torch.float64)
    if count == 2 and position == 0 and conv.in_channels == conv.out_channels:
        inputs = conv.in_channels // conv.groups
        return identity(inputs, conv.spatial_dims).repeat(conv.groups, *[1] * (conv.spatial_dims + 1))
    return fresh(conv.weight_shape, (seed, position))


def _variance(convs: Sequence[ConvSpec], weights: Sequence[Tensor]) -> Tensor:
    """Of each output channel of one convolution, or of several one after the other, where their inputs are white."""
    if len(convs) == 1:
        return _squares(dense_weight(convs[0], weights[0]))
    return _squares(linear(Chain(*convs), {f"{j}.weight": each for j, each in enumerate(weights)}).kernel())


def _squares(kernel: Tensor) -> Tensor:
    """Sum of squares for each output channel of a dense kernel."""
    return kernel.flatten(2).square().sum(-1).flatten()


def _norm(prefix: str, variance: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> dict[str, Tensor]:
    """A batch norm with this variance that in evaluation multiplies by `scale` and adds `shift`."""
    variance = torch.where(variance > 0, variance, 1.0).double()
    return {
        f"{prefix}weight": scale * (variance + EPS).sqrt(),
        f"{prefix}bias": torch.zeros_like(variance) if shift is None else float64(shift),
        f"{prefix}running_mean": torch.zeros_like(variance),
        f"{prefix}running_var": variance,
        f"{prefix}num_batches_tracked": torch.tensor(0),
    }


def _as_stored(site: Site, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors as the site's dtype rounds them, in float64."""
    return {name: float64(t) if t.is_floating_point() else t for name, t in as_of(site, tensors).items()}
