"""Random blocks as layers, and what rules offer for random convolutions, against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import fill
from fuzzed import Call
from fuzzed_bounds import Wrong, differing, laid, numbers
from handmade import distance, make_site, run
from test_rules_random import check as stand_in
from torch import nn

from reconv.layers import build
from reconv.ops import reference
from reconv.ruleset import RULES, Rule
from reconv.spec import ConvSpec, convs, output_shape, parse


# -- layers of all kinds of block -----------------------------------------------------------------
@torch.no_grad()
def layered(call: Call) -> Iterator[str]:
    """What `build` makes of a block, in evaluation mode, against the reference."""
    block = parse(call.block)
    if str(block) != call.block:
        raise Wrong(f"its text must be {block}: {call}")
    layer = fill_small(build(block, dtype=torch.float64), call)
    input = laid(call, numbers(call, call.shape, 0), 0)
    truth = torch.from_numpy(reference.run(block, layer.state_dict(), input))
    layer = layer.to(input.dtype)
    if call.views[1] == "channels_last" and next(convs(block)).spatial_dims == 2:
        layer = layer.to(memory_format=torch.channels_last)
    output = layer(input)
    if tuple(output.shape) != output_shape(block, call.shape) or output.shape != truth.shape:
        raise Wrong(f"shape {tuple(output.shape)}: {call}")
    largest = max(1.0, float(truth.abs().max()))
    if not float((output.double() - truth).abs().max()) <= 2e3 * torch.finfo(output.dtype).eps * largest:
        raise Wrong(f"output {differing(output.double(), truth)}: {call}")
    if not torch.equal(layer(input), output):
        raise Wrong(f"the same bits again: {call}")
    yield "output"


def fill_small(layer: nn.Module, call: Call) -> nn.Module:
    """Whole numbers, so small that nothing grows much through some layers."""
    fill(layer)
    for name, tensor in layer.state_dict().items():
        if not name.endswith(("index", "running_var")):
            tensor.clamp_(-1, 1)
    return layer.eval()


# -- rules ----------------------------------------------------------------------------------------
RULES_TRIED = [rule for rule in RULES if rule.group != "denser"]


def ruled(call: Call) -> Iterator[str]:
    """Each of some rules refuses with a reason, or offers what stands in the place, as near as it says."""
    spec = ConvSpec.parse(call.block)
    for step in (0, 9, 17):
        rule = RULES_TRIED[(call.seed + step) % len(RULES_TRIED)]
        stand_in(rule, spec)
        yield rule.name
        if rule.group == "smaller" and rule.name != "prune_channels":  # that needs a network
            yield from _as_near_as_it_says(call, rule, spec)


def _as_near_as_it_says(call: Call, rule: Rule, spec: ConvSpec) -> Iterator[str]:
    """The response to one-hot inputs holds every weight once, so its relative error is that of the weights; that to
    zeros is the bias.
    """
    pads = [(d * (k - 1),) * 2 for d, k in zip(spec.dilation, spec.kernel_size, strict=True)]
    once = spec.replace(padding=0) if spec.transposed else spec.replace(padding=pads, stride=1, padding_mode="zeros")
    site = make_site(once)
    if rule.refuse(site):
        return
    channels = once.in_channels
    one_hot = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * once.spatial_dims)
    nothing = torch.zeros_like(one_hot)
    offered = list(rule.propose(site))
    for proposal in offered[:: max(1, len(offered) // 4)]:
        weights = rule.init(site, proposal)
        was, now = (run(block, tensors, one_hot) - run(block, tensors, nothing) for block, tensors in
                    ((site.block, site.tensors), (proposal.block, weights.tensors)))  # fmt: skip
        if abs(distance(was, now) - weights.error) > 1e-8:
            raise Wrong(f"{proposal.block} is {distance(was, now)} apart, said to be {weights.error}: {call}")
        if not torch.allclose(run(proposal.block, weights.tensors, nothing), run(site.block, site.tensors, nothing)):
            raise Wrong(f"{proposal.block} has another bias: {call}")
        yield f"{rule.name} as near as it says"
