"""One batch, out of whatever form a user has it in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reconv.errors import ConvError, conv_error

FORMS = "Give a tensor, a Dataset, or batches (a list or DataLoader) of inputs or (inputs, targets)."


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, and targets where there are any (those that are no tensor are left out).

    Inputs after the first may be plain numbers, the same for every sample.
    """

    inputs: tuple[Any, ...]
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def rows(self, index: slice) -> Batch:
        """Some of its samples."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.detach().to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = tuple(change(x) if isinstance(x, Tensor) else x for x in self.inputs)
        return Batch(inputs, None if self.targets is None else change(self.targets))

    def digest(self) -> bytes:
        """Equal for equal inputs."""
        seen = hashlib.blake2b(digest_size=16)
        for x in filter(torch.is_tensor, self.inputs):
            seen.update(repr((x.dtype, tuple(x.shape))).encode())
            seen.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return seen.digest()


def first(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """The first of these batches, with so many samples in all, or as many as there are."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch.rows(slice(samples)))
        samples -= len(found[-1])
        if samples <= 0:
            break
    return found


def parsed(raw: Any, arity: int | None) -> Batch:
    """A batch or a sample in a user's form."""
    if isinstance(raw, Batch):
        return replace(raw, inputs=tuple(x for x in raw.inputs if isinstance(x, Tensor)))
    inputs, rest = _members(raw, arity)
    if not inputs or len(inputs) != (arity or len(inputs)) or len(rest) > 1:
        raise conv_error("data", "each batch must be inputs or (inputs, targets)",
                         got={"members": len(inputs) + len(rest), "inputs of the network": arity or 1},
                         do="Several inputs with targets are ((x1, x2), targets).", also=ValueError)  # fmt: skip
    return Batch(tuple(_tensor(x) for x in inputs), _targets(rest[0]) if rest else None)


def _members(raw: Any, arity: int | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    if not isinstance(raw, tuple | list):
        return (raw,), ()
    members = tuple(raw)
    if members and isinstance(members[0], tuple | list):
        return tuple(members[0]), members[1:]
    return (members[:1], members[1:]) if arity in (1, None) else (members, ())


def _tensor(x: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise conv_error("data", "inputs must be tensors", got={"input": type(x).__name__}, do=FORMS, also=TypeError)
    return x


def _targets(y: Any) -> Tensor | None:
    try:
        return torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        return None


def stacked(samples: list[Batch]) -> Batch:
    try:
        inputs = tuple(torch.stack(column) for column in zip(*(s.inputs for s in samples), strict=True))
    except (RuntimeError, ValueError) as error:
        raise conv_error("data", "samples of one batch must have the same shape", got={"error": str(error)},
                         do="Give batches of your own, each of one shape.", also=ValueError) from error  # fmt: skip
    targets = [s.targets for s in samples if s.targets is not None]
    complete = len(targets) == len(samples) and len({t.shape for t in targets}) == 1
    return Batch(inputs, torch.stack(targets) if complete else None)


def no_samples() -> ConvError:
    return conv_error("data", "data must hold at least one sample", got={"samples": 0}, also=ValueError)
