"""Where batches come from: samples by index, a DataLoader, or a user's own batches; each can be split in two."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from reconv.data.batch import FORMS, Batch, no_samples, parsed, stacked
from reconv.data.chance import seeded
from reconv.errors import conv_error


class Source(Protocol):
    """Where unchecked batches come from."""

    def batches(self, batch_size: int, shuffle: torch.Generator | None) -> Iterator[Batch]: ...
    def count(self, batch_size: int) -> int: ...
    def split(self, holdout: float, seed: int) -> tuple[Source, Source]: ...


@dataclass(frozen=True)
class Items:
    """Samples of a tensor or a map-style dataset, by index."""

    items: Any  # has __getitem__
    arity: int | None  # number of inputs, where it is known
    indices: tuple[int, ...]

    def batches(self, batch_size: int, shuffle: torch.Generator | None) -> Iterator[Batch]:
        n = len(self.indices)
        order = list(range(n)) if shuffle is None else torch.randperm(n, generator=shuffle).tolist()
        for start in range(0, n, batch_size):
            chosen = [self.indices[i] for i in order[start : start + batch_size]]
            yield stacked([parsed(self.items[i], self.arity) for i in chosen])

    def count(self, batch_size: int) -> int:
        return math.ceil(len(self.indices) / batch_size)

    def split(self, holdout: float, seed: int) -> tuple[Source, Source]:
        train, held = _parted(self.indices, holdout, seed)
        return replace(self, indices=train), replace(self, indices=held)

    def drawn(self, samples: int, seed: int) -> Items:
        return self if samples >= len(self.indices) else replace(self, indices=_drawn(self.indices, samples, seed))


@dataclass(frozen=True)
class Loader:
    """A DataLoader over a map-style dataset, which may shuffle: it is split by the indices that it draws."""

    loader: DataLoader[Any]
    arity: int | None

    def batches(self, batch_size: int, shuffle: torch.Generator | None) -> Iterator[Batch]:
        if shuffle is not None:
            for own in self.generators():
                own.manual_seed(shuffle.initial_seed())  # the order does not depend on passes before
        return (parsed(raw, self.arity) for raw in self.loader)

    def generators(self) -> list[torch.Generator]:
        """The user's own, which torch's seed does not reach."""
        sampler: Any = getattr(self.loader.batch_sampler, "batches", self.loader.batch_sampler)
        drawing: tuple[Any, ...] = (self.loader, sampler, getattr(sampler, "sampler", None))
        return [each.generator for each in drawing if getattr(each, "generator", None) is not None]

    def count(self, batch_size: int) -> int:
        return len(self.loader)

    def split(self, holdout: float, seed: int) -> tuple[Source, Source]:
        sampler: Any = self.loader.batch_sampler
        with seeded(seed):
            drawn = sorted({index for batch in sampler for index in batch})
        train, held = _parted(drawn, holdout, seed)
        size = getattr(sampler, "batch_size", len(held))
        return self._over(_Kept(sampler, frozenset(train))), self._over(BatchSampler(held, size, drop_last=False))

    def _over(self, sampler: Any) -> Loader:
        old = self.loader
        new: DataLoader[Any] = DataLoader(
            old.dataset, batch_sampler=sampler, num_workers=old.num_workers, collate_fn=old.collate_fn,
            pin_memory=old.pin_memory, timeout=old.timeout, worker_init_fn=old.worker_init_fn,
            multiprocessing_context=old.multiprocessing_context, generator=old.generator,
            prefetch_factor=old.prefetch_factor, persistent_workers=old.persistent_workers,
        )  # fmt: skip
        return replace(self, loader=new)


@dataclass(frozen=True)
class _Kept:
    """A batch sampler that leaves out what is not kept."""

    batches: Any
    kept: frozenset[Any]

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            if left := [index for index in batch if index in self.kept]:
                yield left

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class Own:
    """The own batches of a re-iterable, or those at some positions of it."""

    iterable: Iterable[Any]
    arity: int | None
    positions: Collection[int] | None = None
    known: dict[int, bytes] | None = None  # digests of the batches at these positions, on the held side

    def batches(self, batch_size: int, shuffle: torch.Generator | None) -> Iterator[Batch]:
        for position, raw in enumerate(self.iterable):
            if self.positions is not None and position not in self.positions:
                continue
            batch = parsed(raw, self.arity)
            if self.known is not None and self.known.setdefault(position, digest := batch.digest()) != digest:
                raise conv_error("data", "batches must be the same, in the same order, on each pass",
                                 got={"changed": f"batch {position}"}, also=ValueError,
                                 do="Give a Dataset, or a DataLoader over one, to have it shuffled.")  # fmt: skip
            yield batch

    def count(self, batch_size: int) -> int:
        if self.positions is not None:
            return len(self.positions)
        try:
            return len(self.iterable)  # type: ignore[arg-type]  # not every iterable is sized
        except TypeError:
            return sum(1 for _ in self.iterable)

    def split(self, holdout: float, seed: int) -> tuple[Source, Source]:
        total = self.count(0)
        if total == 0:
            raise no_samples()
        if total == 1:
            return self._split_inside(holdout)
        count = _held_count(total, holdout)
        held = frozenset(int((i + 0.5) * total / count) for i in range(count))
        train = frozenset(range(total)) - held
        return replace(self, positions=train), replace(self, positions=held, known={})

    def _split_inside(self, holdout: float) -> tuple[Source, Source]:
        batch = next(self.batches(0, None))
        cut = len(batch) - _held_count(len(batch), holdout)
        train, held = batch.rows(slice(cut)), batch.rows(slice(cut, None))
        return Own([train], self.arity), Own([held], self.arity)


def source_of(data: Any, arity: int | None) -> Source:
    named = {"data": type(data).__name__}
    if isinstance(data, Iterator):
        raise conv_error("data", "data must allow more than one pass", got=named, also=TypeError,
                         do="Give what makes the iterator, or list(…) of it.")  # fmt: skip
    if isinstance(data, Tensor) and data.ndim == 0:
        raise conv_error("data", "a tensor must be (N, …)", got={"shape": ()}, do=FORMS, also=ValueError)
    if _is_map_style(data):
        return Items(data, arity, tuple(range(len(data))))
    if type(data) is DataLoader and data.batch_sampler is not None and _is_map_style(data.dataset):
        return Loader(data, arity)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        return Own(data, arity)
    raise conv_error("data", "data must be batches or samples", got=named, do=FORMS, also=TypeError)


def _is_map_style(data: Any) -> bool:
    """Samples by index: a tensor, a Dataset of torch, or whatever walks like one and is no list."""
    if isinstance(data, Tensor | IterableDataset | Mapping):
        return isinstance(data, Tensor)
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and (isinstance(data, Dataset) or not hasattr(data, "__iter__"))


def _held_count(total: int, holdout: float) -> int:
    if total < 2:
        raise no_samples() if total == 0 else conv_error("data", "there must be two samples to hold one out",
            got={"samples": total}, do="Give more, or none at all.", also=ValueError)  # fmt: skip
    return min(max(round(total * holdout), 1), total - 1)


def _parted(indices: Sequence[Any], holdout: float, seed: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    held = _drawn(indices, _held_count(len(indices), holdout), seed)
    out = frozenset(held)
    return tuple(i for i in indices if i not in out), held


def _drawn(indices: Sequence[Any], count: int, seed: int) -> tuple[Any, ...]:
    """`count` of them at random, in their order."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(indices[i] for i in sorted(order.tolist()))
