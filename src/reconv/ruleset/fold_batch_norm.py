"""`fold_batch_norm`: the batch norm after a convolution, taken into the convolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import assert_never, cast

import torch
from torch import Tensor

from reconv.errors import conv_error
from reconv.ruleset.canonical import dense_weight, float64, relative_error, rounded, torch_weight
from reconv.ruleset.linear import inside
from reconv.ruleset.offers import bad_tensors, foreign, must_serve
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    out_channels,
)
from reconv.surgery.sites import Norm, Site

Tensors = Mapping[str, Tensor]


class FoldBatchNorm:
    """The block that computes scale · block(x) + shift: the batch norm's work at no cost.

        scale[o] = γ[o] / √(σ²[o] + ε)        w'[o] = scale[o] · w[o]
        shift[o] = β[o] − scale[o] · μ[o]     b'[o] = scale[o] · b[o] + shift[o]

    Exact, up to rounding, in evaluation; any padding, transposed ones as well. In a composite block it goes into those
    convolutions that give the output, or into the block's own batch norms there.

    Source:  Jacob et al. 2017, arXiv:1712.05877, section 3.2
    """

    name = "fold_batch_norm"
    group = "exact"
    source = "Jacob et al. 2017, arXiv:1712.05877"

    def refuse(self, site: Site) -> str | None:
        if site.refusal or site.norm is None:
            return site.refusal or site.norm_refusal or "no batch norm follows"
        if reason := bad_tensors(site):
            return reason
        if not bool(torch.isfinite(site.norm.scale).all() & torch.isfinite(site.norm.shift).all()):
            return f"the batch norm {site.norm.name} holds NaN or Inf"
        return None if _folds(site.block) else f"what gives its output cannot be scaled: {site.block}"

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        return (self._folded(site)[0],)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        mine, exact = self._folded(site)
        if proposal != mine:
            raise foreign(self, site, proposal)
        learned = [name for name, tensor in exact.items() if tensor.is_floating_point()]
        tensors = {**exact, **{name: rounded(exact[name], site) for name in learned}}
        before, after = (torch.cat([float64(t[name]).flatten() for name in learned]) for t in (exact, tensors))
        return Weights(tensors, relative_error(before, after))

    def _folded(self, site: Site) -> tuple[Proposal, Tensors]:
        must_serve(self, site)
        norm = cast(Norm, site.norm)  # a site without is refused
        scale, shift = (float64(t.to(site.device)) for t in (norm.scale, norm.shift))
        block, tensors = scale_output(site.block, site.tensors, scale, shift)
        return Proposal(self.name, block, absorbs=(norm.name,)), tensors


def scale_output(block: Block, tensors: Tensors, scale: Tensor, shift: Tensor | None) -> tuple[Block, Tensors]:
    """The block, and its tensors in float64, that compute scale · block(x) + shift, channel by channel.

    Args:    tensors: the state dict of the block's layer.
             scale, shift: (channels of the output,), float64; no shift: nothing is added.
    Raises:  ConvError: when the output does not come from convolutions and batch norms alone.
    """
    match block:
        case ConvSpec():
            return _scale_conv(block, tensors, scale, shift)
        case Chain():
            return _scale_chain(block, tensors, scale, shift)
        case Branches():
            return _scale_branches(block, tensors, scale, shift)
        case BatchNorm():
            return block, _scale_norm(tensors, scale, shift)
        case Shuffle() | Permute() | PixelShuffle() | Gate() | Deform() | Activation():
            raise conv_error("scale_output", "the output must come from convolutions or batch norms", spec=block,
                             also=ValueError)  # fmt: skip
        case _:
            assert_never(block)


def _scale_conv(spec: ConvSpec, tensors: Tensors, scale: Tensor, shift: Tensor | None) -> tuple[Block, Tensors]:
    per_group = scale.reshape(spec.groups, -1, 1, *[1] * spec.spatial_dims)
    result = {"weight": torch_weight(spec, dense_weight(spec, tensors["weight"]) * per_group)}
    if spec.bias:
        result["bias"] = float64(tensors["bias"]) * scale
    if shift is not None:
        result["bias"] = result["bias"] + shift if spec.bias else shift.clone()
    return spec.replace(bias="bias" in result), result


def _scale_norm(tensors: Tensors, scale: Tensor, shift: Tensor | None) -> Tensors:
    """Its own γ and β, times the scale."""
    bias = float64(tensors["bias"]) * scale
    return {**tensors, "weight": float64(tensors["weight"]) * scale, "bias": bias if shift is None else bias + shift}


def _scale_chain(chain: Chain, tensors: Tensors, scale: Tensor, shift: Tensor | None) -> tuple[Block, Tensors]:
    """Into the last part that is not a mere reordering; what comes after it reorders scale and shift."""
    parts = list(chain.blocks)
    last = _last_computing(chain)
    for position in range(len(parts) - 1, last, -1):
        places = _places(parts[position], inside(tensors, position), len(scale)).to(scale.device)
        scale, shift = scale[places], None if shift is None else shift[places]
    parts[last], changed = scale_output(parts[last], inside(tensors, last), scale, shift)
    return Chain(*parts), {**tensors, **_under(changed, last)}


def _scale_branches(block: Branches, tensors: Tensors, scale: Tensor, shift: Tensor | None) -> tuple[Block, Tensors]:
    """Concatenated: to each branch its channels. Added: the scale to all, the shift to the first."""
    count = len(block.blocks)
    scales: Sequence[Tensor] = [scale] * count
    shifts: Sequence[Tensor | None] = [shift] + [None] * (count - 1)
    if block.join == "concat":
        sizes = [out_channels(branch, 0) for branch in block.blocks]
        scales = scale.split(sizes)
        shifts = [None] * count if shift is None else shift.split(sizes)
    branches, result = [], dict[str, Tensor]()
    for position, branch in enumerate(block.blocks):
        branch, changed = scale_output(branch, inside(tensors, position), scales[position], shifts[position])
        branches.append(branch)
        result |= _under(changed, position)
    return Branches(*branches, join=block.join), result


def _folds(block: Block) -> bool:
    match block:
        case ConvSpec() | BatchNorm():
            return True
        case Chain():
            return _folds(block.blocks[_last_computing(block)])
        case Branches():
            return all(_folds(branch) for branch in block.blocks)
        case Shuffle() | Permute() | PixelShuffle() | Gate() | Deform() | Activation():
            return False
        case _:
            assert_never(block)


def _last_computing(chain: Chain) -> int:
    """The position of the last part that does more than reorder channels (the first, where none does)."""
    moving = (Shuffle, Permute, PixelShuffle)
    return max((i for i, part in enumerate(chain.blocks) if not isinstance(part, moving)), default=0)


def _places(part: Block, tensors: Tensors, channels: int) -> Tensor:
    """Where each channel goes that the part takes, if it gives so many."""
    match part:
        case PixelShuffle():
            return torch.arange(channels).repeat_interleave(prod(part.factors))
        case Shuffle():
            return torch.arange(channels).reshape(part.groups, -1).T.flatten().argsort()
    return tensors["index"].argsort()


def _under(tensors: Tensors, position: int) -> dict[str, Tensor]:
    return {f"{position}.{name}": tensor for name, tensor in tensors.items()}
