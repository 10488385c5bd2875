"""Sites made by hand, with random weights that follow from their text, and what they compute."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reconv.layers import build
from reconv.ruleset import Proposal, Rule
from reconv.ruleset.additions import wider
from reconv.ruleset.expand_branches import ExpandBranches
from reconv.ruleset.offers import pointwise
from reconv.spec import Block, Chain, ConvSpec, convs, output_shape, parse
from reconv.surgery.sites import ConvCall, Norm, Site
from reconv.surgery.surroundings import Surroundings


def random(seed: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(str(seed).encode()))


def make_site(block: Block | str, dtype: torch.dtype = torch.float64, norm: bool = False, **changes: object) -> Site:
    """A site with weights that follow from its text, of a network that there is not."""
    block = parse(block) if isinstance(block, str) else block
    layer, generator = build(block, dtype=dtype), random(block)
    tensors = layer.state_dict()
    for name, tensor in tensors.items():
        index = name.endswith("index")
        new = torch.randperm(len(tensor), generator=generator) if index else randn(tensor.shape, generator)
        tensors[name] = (new.abs() + 0.5 if name.endswith("running_var") else new).to(tensor.dtype)
    channels = layer(input_of(block, dtype)).shape[1]
    affine = Norm("norm", 1 + 0.3 * randn([channels], generator), randn([channels], generator)) if norm else None
    return Site(**{"name": "conv", "block": block, "tensors": tensors, "norm": affine} | changes)


FOLLOWED = {  # what must follow a site for these rules
    "fold_batch_norm": {"norm": True},
    "fuse_activation": {"activation": "relu", "activation_kind": "relu"},
}
# what a rule is tried on where it refuses the usual convolution
TEXTS = {"low_rank_pointwise": "ic6oc8k1x1s2", "subpixel": "ic6oc8k3x3s2p1top1",
         "atrous": "ic6oc8k3x3s2p1"}  # fmt: skip
SHAPES = {"kernel": (2, 7, 9, 8)}  # and of these rules a run: its batch, and as many lengths as it has dimensions


def site_for(rule: Rule, block: Block | str, dtype: torch.dtype = torch.float64, **changes: object) -> Site:
    """A site with the neighbours that the rule asks for."""
    if rule.name in MADE:
        return MADE[rule.name](block, dtype, **changes)
    known = FOLLOWED.get(rule.name, {})
    if rule.name in SHAPES:
        known = {"calls": (_call(next(convs(parse(block) if isinstance(block, str) else block), None), dtype),)}
    return make_site(block, dtype, **known | changes)


def _expanded(block: Block | str, dtype: torch.dtype, **changes: object) -> Site:
    """Branches that are the convolution, the most of them that there are."""
    return make_site(ExpandBranches().full(make_site(block))[-1].block, dtype, **changes)


def _bordered(block: Block | str, dtype: torch.dtype, **changes: object) -> Site:
    """The convolution in a larger kernel, with zeros around it."""
    inner = parse(block) if isinstance(block, str) else block
    site = make_site(wider(inner, 1), dtype, **changes)
    for axis, (k, now) in enumerate(zip(inner.kernel_size, site.spec.kernel_size, strict=True), 2):
        if k < now:
            site.weight.index_fill_(axis, torch.tensor([0, now - 1]), 0)
    return site


def _mixed_after(block: Block | str, dtype: torch.dtype, **changes: object) -> Site:
    """The convolution with a 1×1 after it, in its groups."""
    spec = parse(block) if isinstance(block, str) else block
    after = pointwise(spec, spec.out_channels, spec.out_channels, bias=True)
    return make_site(Chain(spec, after), dtype, **changes)


def _in_a_network(block: Block | str, dtype: torch.dtype, **changes: object) -> Site:
    """The convolution with one behind it that takes its channels."""
    alone = make_site(block, dtype, **changes)
    if alone.refusal or not isinstance(alone.block, ConvSpec):
        return alone
    net = torch.nn.Sequential()
    net.add_module("conv", build(alone.block, dtype=dtype))
    net.add_module("next", build(pointwise(alone.spec.replace(groups=1), alone.spec.out_channels, 2), dtype=dtype))
    net.conv.load_state_dict(alone.tensors)
    around = Surroundings(net.eval(), (input_of(alone.block, dtype),))
    return replace(alone, around=around)


MADE = {  # these rules ask for a certain block
    "fold_branches": _expanded,
    "merge_linear": _mixed_after,
    "trim": _bordered,
    "prune_channels": _in_a_network,
    "atrous": _in_a_network,
}


def _call(spec: ConvSpec | None, dtype: torch.dtype) -> ConvCall:
    spec = spec or ConvSpec.parse("ic1oc1k1")
    batch, *lengths = SHAPES["kernel"]
    shape = (batch, spec.in_channels, *lengths[: spec.spatial_dims])
    return ConvCall("conv", "Conv", spec, shape, spec.weight_shape, output_shape(spec, shape), dtype, 1)


def followed(site: Site, output: Tensor) -> Tensor:
    """What the neighbours of a site make of its output."""
    output = affine(site.norm, output) if site.norm else output
    return output.relu() if site.activation_kind == "relu" else output


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def input_of(block: Block, dtype: torch.dtype = torch.float64) -> Tensor:
    spec = next(convs(block))
    return randn((2, spec.in_channels, *(7, 9, 8)[: spec.spatial_dims]), random("input")).to(dtype)


def run(block: Block, tensors: dict[str, Tensor], input: Tensor) -> Tensor:
    layer = build(block, dtype=input.dtype)
    layer.load_state_dict(tensors)
    with torch.no_grad():
        return layer.eval()(input)


def rewritten(rule: Rule, site: Site, proposal: Proposal, input: Tensor) -> Tensor:
    return run(proposal.block, rule.init(site, proposal).tensors, input)


def distance(exact: Tensor, near: Tensor) -> float:
    return float((exact - near).norm() / exact.norm())


def affine(norm: Norm, input: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (input.ndim - 2))
    return norm.scale.reshape(shape) * input + norm.shift.reshape(shape)
