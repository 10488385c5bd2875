"""A network to plan, small enough that it takes a second, and inputs for it."""

from __future__ import annotations

import torch
from fakes import grid
from torch import nn


def network(seed: int = 0) -> nn.Module:
    """Wide enough that the rules have something to offer, small enough to be planned at once."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


IMAGE = torch.linspace(-2, 2, 3 * 11 * 13).sin().reshape(1, 3, 11, 13)
DATA = grid(40, 3, 11, 13)
