"""The networks of the comparison: how each is built, what it sees, how long it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reconv.demo.network import digits_vgg

from .data import PHOTOS, TEST, TRAIN, crops, digits, seeded, solids

CALIBRATION_SEED, TEST_SEED = 1, 2  # those of training epochs begin at 100


@dataclass(frozen=True)
class Network:
    """A network of the comparison.

    draw: (side, count, generator) → samples. trained: it comes with its weights.
    tested: samples that judge. calibration: those that every method may see. epochs: of recovery, for all alike.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, int, torch.Generator], TensorDataset]
    tested: int
    trained: bool = False
    training_epochs: int = 0
    peak_lr: float = 3e-3
    calibration: int = 1000
    epochs: int = 3

    def calibration_data(self) -> TensorDataset:
        return self.draw(TRAIN, self.calibration, seeded(CALIBRATION_SEED))

    def test_data(self) -> TensorDataset:
        return self.draw(TEST, self.tested, seeded(TEST_SEED))

    def example(self) -> Tensor:
        """One sample."""
        return self.draw(TRAIN, 1, seeded(CALIBRATION_SEED)).tensors[0][:1]


# -- a ResNet ----------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """Two 3×3 beside an identity, or beside a 1×1 where the shape changes (He et al. 2015)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        changes = stride != 1 or before != width
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)) \
            if changes else nn.Identity()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def resnet() -> nn.Module:
    """32, 64 and 128 channels, two blocks each."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    before = 32
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers.append(Residual(before, width, stride))
        before = width
    return nn.Sequential(*layers, *head(nn.AdaptiveAvgPool2d(1), before, len(PHOTOS)))


# -- a MobileNetV2 -----------------------------------------------------------------------------------------
class Inverted(nn.Module):
    """1×1 up, depthwise 3×3, 1×1 down, beside an identity where the shape stays (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inside = before * expansion
        self.body = nn.Sequential(
            nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU6(),
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False), nn.BatchNorm2d(inside), nn.ReLU6(),
            nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet() -> nn.Module:
    """Seven inverted residuals of 24 to 80 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6()]
    before = 24
    for after, stride in ((24, 1), (40, 2), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1)):
        layers.append(Inverted(before, after, stride))
        before = after
    last = [nn.Conv2d(before, 320, 1, bias=False), nn.BatchNorm2d(320), nn.ReLU6()]
    return nn.Sequential(*layers, *last, *head(nn.AdaptiveAvgPool2d(1), 320, len(PHOTOS)))


# -- a 3D network ------------------------------------------------------------------------------------------
def solid_net() -> nn.Module:
    """Seven 3×3×3 of 16 to 64 channels."""
    layers: list[nn.Module] = []
    before = 1
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1)):
        layers += [nn.Conv3d(before, width, 3, stride, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, *head(nn.AdaptiveAvgPool3d(1), before, 10))


def head(pool: nn.Module, channels: int, classes: int) -> tuple[nn.Module, ...]:
    return pool, nn.Flatten(), nn.Linear(channels, classes)


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg", "the demo's VGG on digits", digits_vgg, digits, 1000, trained=True),
        Network("resnet", "a ResNet on crops of photos", resnet, crops, 4004, training_epochs=10),
        Network("mobilenet", "a MobileNetV2 on crops of photos", mobilenet, crops, 4004, training_epochs=14),
        Network("solids", "a 3D network on digits as solids", solid_net, solids, 3000, training_epochs=10),
    )
}  # fmt: skip
