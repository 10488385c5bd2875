"""Keras' initialisers: functions of a shape (in TensorFlow's layout) and a dtype that give a tensor.

Random ones draw from PyTorch's generator, or from one of their own where a seed is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from reconv.errors import conv_error
from reconv.tensorflow.arguments import by_name

MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at ±2


@dataclass(frozen=True)
class Constant:
    """Every value is the same."""

    value: float = 0.0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return torch.full(tuple(shape), self.value, dtype=dtype or torch.get_default_dtype())


@dataclass(frozen=True)
class RandomNormal:
    """Normal with a mean and a standard deviation."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return nn.init.normal_(torch.empty(tuple(shape), dtype=dtype), self.mean, self.stddev, _generator(self.seed))


@dataclass(frozen=True)
class RandomUniform:
    """Uniform between two values."""

    minval: float = -0.05
    maxval: float = 0.05
    seed: int | None = None

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return nn.init.uniform_(torch.empty(tuple(shape), dtype=dtype), self.minval, self.maxval,
                                _generator(self.seed))  # fmt: skip


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal, drawn anew beyond two standard deviations."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        least, most = self.mean - 2 * self.stddev, self.mean + 2 * self.stddev
        return nn.init.trunc_normal_(torch.empty(tuple(shape), dtype=dtype), self.mean, self.stddev, least, most,
                                     _generator(self.seed))  # fmt: skip


@dataclass(frozen=True)
class VarianceScaling:
    """A variance of scale / fan, so that signals keep their size.

    Args:    mode: "fan_in", "fan_out" or "fan_avg". distribution: "truncated_normal", "untruncated_normal", "uniform".
    Raises:  ConvError (a ValueError): when an argument is not one of these.
    Example:
             >>> kernel = VarianceScaling(2.0, "fan_in", "uniform")((3, 3, 6, 8))  # fan in 54, ±√(3·2/54)
             >>> bool(kernel.abs().max() <= 1 / 3)
             True
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.mode not in MODES or self.distribution not in DISTRIBUTIONS:
            raise conv_error("VarianceScaling", f"scale must be > 0, mode one of {', '.join(MODES)} and distribution "
                             f"one of {', '.join(DISTRIBUTIONS)}",
                             got={"scale": self.scale, "mode": self.mode, "distribution": self.distribution},
                             also=ValueError)  # fmt: skip

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        stddev = sqrt(self.scale / max(1.0, fan))
        if self.distribution == "uniform":
            limit = sqrt(3) * stddev
            return RandomUniform(-limit, limit, self.seed)(shape, dtype)
        if self.distribution == "untruncated_normal":
            return RandomNormal(0.0, stddev, self.seed)(shape, dtype)
        return TruncatedNormal(0.0, stddev / TRUNCATED_STD, self.seed)(shape, dtype)


@dataclass(frozen=True)
class Orthogonal:
    """Orthonormal columns (or rows), each a filter, times gain."""

    gain: float = 1.0
    seed: int | None = None

    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        matrix = torch.empty(prod(shape[:-1]), shape[-1], dtype=torch.float64)
        filled = nn.init.orthogonal_(matrix, self.gain, _generator(self.seed))
        return filled.reshape(tuple(shape)).to(dtype or torch.get_default_dtype())


class Zeros(Constant):
    """Every value is 0."""

    def __init__(self) -> None:
        super().__init__(0.0)


class Ones(Constant):
    """Every value is 1."""

    def __init__(self) -> None:
        super().__init__(1.0)


class GlorotUniform(VarianceScaling):
    """Uniform, of variance 1 over the mean of both fans."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "uniform", seed)


class GlorotNormal(VarianceScaling):
    """Normal, drawn anew beyond two deviations, of variance 1 over the mean of both fans."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "truncated_normal", seed)


class HeUniform(VarianceScaling):
    """Uniform, of variance 2 over the fan in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "uniform", seed)


class HeNormal(VarianceScaling):
    """Normal, drawn anew beyond two deviations, of variance 2 over the fan in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "truncated_normal", seed)


class LecunUniform(VarianceScaling):
    """Uniform, of variance 1 over the fan in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "uniform", seed)


class LecunNormal(VarianceScaling):
    """Normal, drawn anew beyond two deviations, of variance 1 over the fan in."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "truncated_normal", seed)


INITIALIZERS: dict[str, Callable[..., Tensor]] = {
    "zeros": Zeros(), "ones": Ones(), "constant": Constant(), "zero": Zeros(), "one": Ones(),
    "randomnormal": RandomNormal(), "randomuniform": RandomUniform(), "truncatednormal": TruncatedNormal(),
    "normal": RandomNormal(), "uniform": RandomUniform(),
    "variancescaling": VarianceScaling(), "orthogonal": Orthogonal(),
    "glorotuniform": GlorotUniform(), "glorotnormal": GlorotNormal(), "heuniform": HeUniform(),
    "henormal": HeNormal(), "lecununiform": LecunUniform(), "lecunnormal": LecunNormal(),
}  # fmt: skip


def get(initializer: Any) -> Any:
    """An initialiser by its name (`glorot_uniform` or `GlorotUniform`); functions are given back."""
    return by_name("initializer", initializer, INITIALIZERS)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many values a position of the output is made from, and one of the input goes into."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    taps = prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)
