"""An engine without a clock, so that what a plan chooses depends on the network alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from reconv.targets import Timing

MS_PER_OPERATOR = 1e-3


@dataclass(frozen=True)
class FakeTarget:
    """Latency = so much a multiply-accumulate of a convolution + so much an operator of any kind.

    Args:    mac: milliseconds of a multiply-accumulate; grouped: how much dearer it is where there are groups;
             channels_last: the same in that layout.
             refuses: networks that it raises a ValueError for.
             seen: how many networks each call of `measure` was given.
    """

    mac: float = 1e-6
    grouped: float = 1.0
    channels_last: float = 1.0
    name: str = "fake"
    refuses: Callable[[nn.Module], bool] | None = field(default=None, repr=False)
    seen: list[int] = field(default_factory=list, repr=False, compare=False)

    def fingerprint(self) -> str:
        return f"{self!r} {self.refuses and self.refuses.__qualname__}"

    def measure(self, jobs: Sequence[tuple[nn.Module, tuple[Any, ...]]], seconds: float,
                burst: int = 1) -> list[Timing]:  # fmt: skip
        self.seen.append(len(jobs))
        return [Timing(self._latency_ms(*job), 0.0, 5) for job in jobs]

    def _latency_ms(self, model: nn.Module, inputs: tuple[Any, ...]) -> float:
        if self.refuses and self.refuses(model):
            raise ValueError("no kernel for this")
        assert not any(module.training for module in model.modules()), "an engine is given networks in evaluation mode"
        with torch.no_grad(), _Work(self) as work:
            model(*inputs)
        return work.ms


class _Work(TorchDispatchMode):
    def __init__(self, target: FakeTarget) -> None:
        super().__init__()
        self.target, self.ms = target, 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the compiler would be imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.ms += MS_PER_OPERATOR
        if "convolution" in func._schema.name:
            macs = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
            self.ms += self.target.mac * macs * self._dearness(args[1], groups=args[8])
        return out

    def _dearness(self, weight: Tensor, groups: int) -> float:
        last = weight.dim() == 4 and not weight.is_contiguous()
        return (self.target.grouped if groups > 1 else 1.0) * (self.target.channels_last if last else 1.0)


def whole_numbers(*shape: int, low: int = -4, high: int = 5, seed: int = 0) -> Tensor:
    """Integers as float64: sums of products of these are exact."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def grid(*shape: int) -> Tensor:
    """Inputs that differ everywhere, the same on every run."""
    return torch.linspace(-1, 1, math.prod(shape)).sin().reshape(shape)
