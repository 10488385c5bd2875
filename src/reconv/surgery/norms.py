"""Running statistics of batch norms, re-estimated after the layers before them have changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.data import Batch
from reconv.surgery.clone import fresh


def normalises(norm: nn.Module) -> bool:
    """Whether a batch norm's forward pass is torch's, or is followed by what `after_normalising` gives."""
    return type(norm).forward is _BatchNorm.forward or _with_activation(norm)


def after_normalising(norm: nn.Module) -> nn.Module | None:
    """What the layer does once it has normalised: timm's BatchNormAct2d has dropout and activation; None: nothing."""
    if not _with_activation(norm):
        return None
    parts = [part for part in norm.children() if type(part) is not nn.Identity]  # in their order: drop, act
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else None


def _with_activation(norm: nn.Module) -> bool:
    kind = type(norm)
    return (kind.__module__, kind.__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d")


def reestimate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Sets running mean and variance of every batch norm of `model` to those of its inputs over all batches.

        mean, var of {x[n, c, p] | every batch, n, p}, with each norm scaling by the batch's own statistics meanwhile

    Everything but the batch norms is in evaluation mode meanwhile; modes are as before afterwards. A norm that never
    sees two values per channel keeps its old statistics, as all do when an error is raised.

    Args:    model: changed in place (its statistics only).
    Returns: how many batch norms were re-estimated.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    seen = {norm: Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(moments.watch) for norm, moments in seen.items()]
    try:
        with torch.no_grad(), evaluating(model), statistics_kept(norms):
            for batch in batches:
                model(*fresh(batch.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return sum(update(norm, moments) for norm, moments in seen.items())


def settle(model: nn.Module, within: Iterable[str], batches: Iterable[Batch]) -> int:
    """Gives the batch norms inside some modules the statistics of the data, each computing what it did before.

        μ', σ'² of the data;    γ' = γ · √(σ'² + ε) / √(σ² + ε),    β' = β + γ / √(σ² + ε) · (μ' − μ)

    So training, which normalises by the statistics of each batch, starts from the function that evaluation computes.

    Args:    model: changed in place (those norms only); within: qualified names of modules.
    Returns: how many batch norms were settled.
    """
    inside = {m for name in within for m in model.get_submodule(name).modules()}
    norms = [m for m in inside if isinstance(m, _BatchNorm) and m.affine and m.running_mean is not None]
    seen = {norm: Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(moments.look) for norm, moments in seen.items()]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches if norms else ():
                model(*fresh(batch.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return sum(_rebase(norm, moments) for norm, moments in seen.items())


@torch.no_grad()
def _rebase(norm: _BatchNorm, moments: Moments) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or moments.count < 2:
        return False
    old_mean = mean.double().clone()  # in float64 it would be the buffer that changes
    old_scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
    update(norm, moments)
    norm.weight.copy_(old_scale * (var.double() + norm.eps).sqrt())
    norm.bias.add_(old_scale * (mean.double() - old_mean))
    return True


def _count(x: Tensor) -> int:
    """Values per channel."""
    return math.prod(x.shape) // x.shape[1]


def moments_of(x: Tensor) -> tuple[int, Tensor, Tensor] | None:
    """Count, mean and sum of squared deviations per channel; None where there is no variance."""
    if (count := _count(x)) < 2:
        return None
    var, mean = torch.var_mean(x.detach(), [d for d in range(x.ndim) if d != 1], correction=0)
    return count, mean.double(), var.double() * count


@dataclass
class Moments:
    """Count, mean and sum of squared deviations per channel, pooled over batches in double precision."""

    batches: int = 0
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviations: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def watch(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook: adds what comes in; lets the norm use it, where it has a variance at all."""
        norm.training = _count(args[0]) > 1  # not norm.train(): a dropout in a subclass stays off
        self.look(norm, args)

    def look(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook: adds what comes in, and leaves the norm as it is."""
        if found := moments_of(args[0]):
            self.add(*found)

    def add(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Source: Chan, Golub, LeVeque 1979, the pairwise update."""
        total = self.count + count
        shift = mean - self.mean
        self.deviations = self.deviations + deviations + shift * shift * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count, self.batches = total, self.batches + 1


def update(norm: _BatchNorm, moments: Moments) -> bool:
    """Sets a norm's statistics to these; False where there are none."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or not moments.count:
        return False
    mean.copy_(moments.mean)
    var.copy_(moments.deviations / (moments.count - 1))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(moments.batches)
    return True


@contextmanager
def statistics_kept(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """The statistics of these batch norms are as before afterwards."""
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in kept:
                buffer.copy_(old)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
