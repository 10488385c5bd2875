"""Batch-norm statistics of a rewritten network, taken from the original's by what the rewriting moved."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.data import Batch
from reconv.surgery.clone import fresh
from reconv.surgery.norms import Moments, evaluating, moments_of, statistics_kept, update


class Following:
    """The batch norms of a rewritten network hold the original's statistics, moved as the values that they meet did.

        σ'² + ε = (σ² + ε) · (v + ε) / (v₀ + ε),    μ' = m + (μ − m₀) · √(σ'² + ε) / √(σ² + ε)

    μ, σ²: the original's;    m₀, v₀ and m, v: mean and variance that both norms meet on the same batches

    So where nothing changed, nothing moves, however few or unlike the training data the batches are. A norm with fewer
    channels is known by the statistics that it still holds; one that the original does not have takes those of what it
    meets.

    Source:  after Jordan et al. 2022 (REPAIR), arXiv:2211.08403
    """

    def __init__(self, original: nn.Module) -> None:
        self.original = original
        self.held = {name: _statistics(norm) for name, norm in norms_of(original).items()}
        self.before: defaultdict[str, Moments] = defaultdict(Moments)
        self.after: defaultdict[str, Moments] = defaultdict(Moments)
        self.ahead: defaultdict[str, deque[tuple[int, Tensor, Tensor]]] = defaultdict(deque)  # of this batch
        self.kept: dict[str, Tensor | None] = {}  # which of the original's channels a norm has; None: unknown

    @contextmanager
    def listening(self, names: Collection[str] | None = None) -> Iterator[None]:
        """The original runs on a batch, meanwhile its norms (of these names; None: all) are looked at."""
        self.ahead.clear()

        def look(name: str, norm: _BatchNorm, x: Tensor) -> None:
            if found := moments_of(x):
                self.ahead[name].append(found)

        with _watched(self.original, names, look):
            yield

    @contextmanager
    def leading(self, student: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
        """The student runs on the same batch; each norm is moved by all that was seen until then, before it runs."""

        def lead(name: str, norm: _BatchNorm, x: Tensor) -> None:
            found = moments_of(x)
            if found is None:
                return
            self.after[name].add(*found)
            if (kept := self._channels(name, norm)) is not None and self.ahead[name]:
                count, mean, deviations = self.ahead[name].popleft()
                self.before[name].add(count, mean[kept], deviations[kept])
            self.move(name, norm)

        with _watched(student, names, lead):
            yield

    def _channels(self, name: str, norm: _BatchNorm) -> Tensor | None:
        """Asked first while the norm holds what it held in the original."""
        if name not in self.kept:
            self.kept[name] = _same(self.held[name], norm) if name in self.held else None
        return self.kept[name]

    @torch.no_grad()
    def move(self, name: str, norm: _BatchNorm) -> bool:
        """Sets a norm's statistics by what was seen; False where that was nothing."""
        now, then = self.after[name], self.before[name]
        if not now.count or norm.running_mean is None or norm.running_var is None:
            return False
        kept = self.kept.get(name)
        if kept is None or not then.count:
            return update(norm, now)
        (mean, var), eps = self.held[name][:, kept], norm.eps
        ratio = (now.deviations / now.count + eps) / (then.deviations / then.count + eps)
        norm.running_mean.copy_(now.mean + (mean - then.mean) * ratio.sqrt())
        norm.running_var.copy_(((var + eps) * ratio - eps).clamp(min=0))
        return True


def follow(student: nn.Module, original: nn.Module, batches: Iterable[Batch]) -> int:
    """Sets the statistics of every batch norm of a rewritten network, as `Following` says.

    Both run on each batch in evaluation mode, the student with its norms moved already. Modes are as before
    afterwards; when an error is raised, the old statistics are.

    Args:    student: changed in place (its statistics only).
    Returns: how many batch norms were set.
    """
    following = Following(original)
    norms = norms_of(student)
    with torch.no_grad(), evaluating(student), evaluating(original), statistics_kept(norms.values()):
        for batch in batches if norms else ():
            with following.listening():
                original(*fresh(batch.inputs))
            with following.leading(student):
                student(*fresh(batch.inputs))
    return sum(following.move(name, norm) for name, norm in norms.items())


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms with running statistics, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _statistics(norm: _BatchNorm) -> Tensor:
    """Mean and variance, (2, channels)."""
    return torch.stack([norm.running_mean, norm.running_var]).double()  # type: ignore[list-item]


def _same(held: Tensor, norm: _BatchNorm) -> Tensor | None:
    """Which of the channels of these statistics a norm has; None where that is not sure."""
    now = _statistics(norm)
    if now.shape == held.shape:
        return torch.arange(held.shape[1], device=held.device)
    alike = (now[:, :, None] == held[:, None]).all(0)
    return alike.int().argmax(1) if bool((alike.sum(1) == 1).all()) else None


@contextmanager
def _watched(model: nn.Module, names: Collection[str] | None, see: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for name, norm in norms_of(model).items():
            if names is None or name in names:

                def hook(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                    see(name, module, args[0])

                stack.callback(norm.register_forward_pre_hook(hook).remove)
        yield
