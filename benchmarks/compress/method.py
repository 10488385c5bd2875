"""A way to make a trained network smaller, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

Setting = Mapping[str, Any]


class Refused(Exception):  # noqa: N818
    """The method cannot serve this network; says why."""


@dataclass(frozen=True)
class Subject:
    """A trained network, one sample, the data that every method may see, and a folder to keep what is dear."""

    model: nn.Module
    example: Tensor
    calibration: TensorDataset
    folder: Path

    def loss(self, model: nn.Module, samples: int) -> Tensor:
        """Cross entropy on the first of the calibration data."""
        inputs, labels = (part[:samples] for part in self.calibration.tensors)
        return nn.functional.cross_entropy(model(inputs), labels)

    @torch.no_grad()
    def score(self, model: nn.Module, samples: int) -> float:
        """Accuracy on the first of the calibration data."""
        inputs, labels = (part[:samples] for part in self.calibration.tensors)
        guesses = torch.cat([model(some).argmax(1) for some in inputs.split(100)])
        return float((guesses == labels).float().mean())


@dataclass(frozen=True)
class Method:
    """settings: the sweep, of which its best counts."""

    name: str
    make: Callable[[Subject, Setting], nn.Module]
    settings: tuple[Setting, ...]


def said(setting: Setting) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def first_conv(model: nn.Module) -> nn.Module:
    return next(m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
