"""Inputs that are correlated, as inside of a network, and what a convolution sees of them."""

import torch
from handmade import randn, random, run

from reconv.ruleset import RULES
from reconv.ruleset.responses import Responses
from reconv.spec import ConvSpec

SPECS = ["ic6oc8k3x3p1", "ic4oc6k7p3nb", "ic8oc12k3s2g2top1", "ic8oc12k5x5p2g4", "ic4oc6k5x5s2p2top1nb",
         "ic3oc4k3x5x3p2x1x2", "ic12oc8k1x1s2p1", "ic4oc6k6x4p3x1:2mcircular", "ic4oc6k5x3s2x1p3x2d2x1mreflect",
         "ic8oc8k3x3p1g8", "ic6oc4k3p2d2mreplicate", "ic4oc6k3x2s3x2p1t", "ic12oc16k1g2nb"]  # fmt: skip
SMALLER = [rule for rule in RULES if rule.group == "smaller"]


def correlated(spec: ConvSpec, seed: int = 0) -> torch.Tensor:
    """Inputs as inside of a network: positive, alike from place to place and from channel to channel."""
    sizes = (9, 11, 7)[: spec.spatial_dims] if spec.spatial_dims > 1 else (40,)
    x = randn((3, spec.in_channels, *sizes), random((spec, seed)))
    x = x + 0.9 * x.roll(1, -1) + 2.0 * x.mean(1, keepdim=True) * torch.linspace(0.2, 2, spec.in_channels).reshape(
        -1, *[1] * spec.spatial_dims)  # fmt: skip
    return x.clamp(min=-0.5)


def seen_of(site, *inputs: torch.Tensor) -> Responses:
    seen = Responses(site.spec)
    for x in inputs:
        seen.add(x)
    return seen


def patches_by_hand(spec: ConvSpec, x: torch.Tensor) -> torch.Tensor:
    """(positions, groups, D): what depthwise kernels of a single one give, tap by tap."""
    channels, taps = spec.in_channels, torch.tensor(spec.kernel_size).prod()
    one = spec.replace(out_channels=channels, groups=channels, bias=False)
    found = []
    for tap in range(int(taps)):
        weight = torch.zeros(channels, 1, int(taps), dtype=torch.float64)
        weight[:, :, tap] = 1.0
        y = run(one, {"weight": weight.reshape(one.weight_shape)}, x)
        found.append(y.movedim(1, -1).flatten(0, -2))
    return torch.stack(found, -1).reshape(len(found[0]), spec.groups, -1)
