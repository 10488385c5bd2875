"""`expand_branches`: linear branches with batch norms for the training, which `fold_branches` takes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import torch
from torch import Tensor

from reconv.ruleset.additions import Addition, Tensors, as_of, centre, fresh, identity, zeros
from reconv.ruleset.canonical import dense, float64, relative_error, torch_weight
from reconv.ruleset.linear import EPS, linear
from reconv.ruleset.offers import pointwise
from reconv.spec import BatchNorm, Block, Branches, Chain, ConvSpec
from reconv.surgery.sites import Site

PART = 1 / 2  # root mean square of a new branch's weights, over that of the kernel


class ExpandBranches(Addition):
    """The convolution as a sum of branches, each with a batch norm, that together are still one linear map.

        y = bn_0((w − Σ_j w_j) * x) + Σ_j bn_j(w_j * x),    w_j at random, bn = 1 in evaluation, the bias in bn_0

    acnet:   the kernel, and for each axis the kernel along that axis alone (k×k + k×1 + 1×k)
    repvgg:  the kernel, its centre (1×1), and the input itself where the map and its channels stay
    dbb:     the kernel, its centre, 1×1 → kernel, and 1×1 → depthwise kernel that starts as the average

    Exact, up to rounding, in evaluation. Where the padding is too small for a smaller kernel, the branch has as many
    taps as it needs. No batch norm stands inside a branch: its shift would meet the padding. In training each batch
    norm uses the statistics of the batch, as everywhere.

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
        size = PART * float(weight.square().mean().sqrt()) or PART / prod(spec.weight_shape[1:]) ** 0.5
        tensors: dict[str, Tensor] = {}
        for i, branch in enumerate(block.blocks):
            convs = list(_parts(branch))
            for j, conv in enumerate(convs):
                key = f"{i}.{j}.weight"
                tensors[key] = zeros(conv) if i == 0 else _first(conv, j, len(convs), size, (site.name, i))
            norm = f"{i}.{len(convs)}." if convs else f"{i}."
            shift = site.bias if i == 0 else None
            tensors |= _norm(norm, spec.out_channels, 1.0 if convs else size, shift)
        tensors = {name: float64(t) if t.is_floating_point() else t for name, t in as_of(site, tensors).items()}
        others = linear(block, tensors).kernel()  # as rounded: the first branch makes up for that
        return tensors | {"0.0.weight": torch_weight(spec, weight - others)}

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


def _first(conv: ConvSpec, position: int, count: int, size: float, seed: object) -> Tensor:
    """The starting weight of one convolution of a new branch."""
    if count == 2 and position == 1 and conv.depthwise and conv.in_channels == conv.out_channels:
        return torch.full(conv.weight_shape, 1 / prod(conv.kernel_size), dtype=torch.float64)
    if count == 2 and position == 0 and conv.in_channels == conv.out_channels:
        inputs = conv.in_channels // conv.groups
        return identity(inputs, conv.spatial_dims).repeat(conv.groups, *[1] * (conv.spatial_dims + 1))
    weight = fresh(conv.weight_shape, (seed, position))
    return size * weight / weight.square().mean().sqrt()


def _norm(prefix: str, channels: int, scale: float, shift: Tensor | None) -> dict[str, Tensor]:
    """A batch norm that in evaluation multiplies by `scale` and adds `shift`."""
    ones = torch.ones(channels, dtype=torch.float64)
    return {
        f"{prefix}weight": ones * scale * (1 + EPS) ** 0.5,
        f"{prefix}bias": 0 * ones if shift is None else float64(shift),
        f"{prefix}running_mean": 0 * ones,
        f"{prefix}running_var": ones,
        f"{prefix}num_batches_tracked": torch.tensor(0),
    }
