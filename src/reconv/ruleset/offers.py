"""What every rule checks before it offers anything, and how its offers are kept few and useful."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from reconv.errors import ConvError, conv_error
from reconv.ruleset.rule import Proposal, Rule
from reconv.spec import Block, ConvSpec, macs, params
from reconv.surgery.sites import Site


def unfit(site: Site) -> str | None:
    """Why no rule that starts from a single convolution's weight can serve the site; None where one may."""
    if site.refusal:
        return site.refusal
    if not isinstance(site.block, ConvSpec):
        return f"already rewritten: {site.block}"
    return bad_tensors(site)


def bad_tensors(site: Site) -> str | None:
    """Why the site's numbers cannot be computed with."""
    for name, tensor in site.tensors.items():
        if tensor.is_meta:
            return f"its {name} is on the meta device, it has no values"
        if name.endswith(("index", "num_batches_tracked")):
            continue
        if not tensor.is_floating_point():
            return f"its {name} is {str(tensor.dtype).removeprefix('torch.')}, not a real floating dtype"
        if not _finite(tensor):
            return f"its {name} holds NaN or Inf"
    return None


_known: deque[tuple[weakref.ref[Tensor], int, bool]] = deque(maxlen=256)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; known for the last few tensors, as every rule asks."""
    if tensor.is_inference():  # it does not say when it changes
        return _all_finite(tensor)
    for owner, version, verdict in tuple(_known):
        if owner() is tensor and version == tensor._version:
            return verdict
    result = _all_finite(tensor)
    _known.append((weakref.ref(tensor), tensor._version, result))
    return result


def _all_finite(tensor: Tensor) -> bool:
    each = tensor[tuple(slice(None if step else 1) for step in tensor.stride())]  # what is expanded, once
    return bool(torch.isfinite(each).all())


def cheaper(rule: str, site: Site, blocks: Iterable[Block]) -> list[Proposal]:
    """The blocks that cost fewer MACs than the site, each once, from small to large."""
    shape = cost_shape(site)
    now = macs(site.spec, shape)
    cost = {block: (macs(block, shape), params(block, site.spec.in_channels), str(block)) for block in blocks}
    return [Proposal(rule, block) for block in sorted(cost, key=lambda block: cost[block]) if cost[block][0] < now]


def ranks(wanted: Iterable[float], full: int) -> list[int]:
    """Ranks near the wanted ones, below the full one, ascending; multiples of 8 (CPUs prefer them) where large.

    Example:
             >>> ranks([1.3, 9.1, 50, 51, 90], full=64)
             [1, 8, 48]
    """
    near = {max(1, round(r) if r < 8 else 8 * round(r / 8)) for r in wanted}
    return sorted(r for r in near if r < full)


def pointwise(spec: ConvSpec, in_channels: int, out_channels: int, bias: bool = False) -> ConvSpec:
    """A 1×1 convolution beside `spec`: as many dimensions, the same groups."""
    return ConvSpec(in_channels=in_channels, out_channels=out_channels, kernel_size=(1,) * spec.spatial_dims,
                    groups=spec.groups, bias=bias)  # fmt: skip


def must_serve(rule: Rule, site: Site) -> None:
    """Raises where the rule refuses the site."""
    reason = rule.refuse(site)
    if reason:
        raise conv_error(rule.name, "the rule must be able to serve the site", got={"site": site.name},
                         do=f"It cannot: {reason}.", spec=site.block, also=ValueError)  # fmt: skip


def foreign(rule: Rule, site: Site, proposal: Proposal) -> ConvError:
    """The error for a proposal that the rule never makes for the site."""
    return conv_error(rule.name, "the proposal must be one that the rule makes for the site",
                      got={"site": site.name, "rule": proposal.rule, "block": proposal.block},
                      do="Take it from propose(site).", spec=site.block, also=ValueError)  # fmt: skip


def cost_shape(site: Site, spec: ConvSpec | None = None) -> tuple[int, ...]:
    """The input to compare costs on: that of the site's run; where none is known a likely one of the convolution."""
    if site.calls:
        return site.input_shape
    spec = spec or site.spec
    extents = (d * (k - 1) + 1 for k, d in zip(spec.kernel_size, spec.dilation, strict=True))
    return (1, spec.in_channels, *(32 + extent for extent in extents))
