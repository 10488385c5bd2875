"""The batches that users give, normalised once: `Feed`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

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


@dataclass(frozen=True)
class Feed:
    """Checked batches, on one device, out of whatever a user gave. Make one with `Feed.of`."""

    source: Source
    examples: tuple[Any, ...] = field(repr=False)  # as the network takes them; the first is a tensor

    @staticmethod
    def of(data: object, example_inputs: Tensor | Sequence[Any] | None = None) -> Feed:
        """Batches that fit the example inputs, spatial sizes apart.

        With one example input, (a, b) means (inputs, targets). With several, a tuple or list whose first member is
        one too means (inputs, targets), anything else is inputs.

        Args:    data: a tensor (N, …), a map-style Dataset of x or (x, y), or a re-iterable of batches, which must
                 come in the same order on each pass, unless it is a DataLoader.
                 example_inputs: what the network takes; None: like the first sample of `data`. A plain number
                 among them goes with every batch and is no part of `data`.
        Raises:  ConvError: when `data` is none of these, or a one-shot iterator. Batches are checked as they pass:
                 empty data, NaN or infinity, another rank, dtype or number of channels.
        Example:
            >>> feed = Feed.of([torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)], torch.zeros(1, 3, 8, 8))
            >>> [len(batch) for batch in feed.batches()]
            [2, 1]
        """
        if isinstance(data, Feed):
            return data
        if isinstance(example_inputs, Tensor):
            example_inputs = (example_inputs,)
        source = _source(data, None if example_inputs is None else sum(map(torch.is_tensor, example_inputs)))
        if example_inputs is None:
            first = next(iter(source.batches(1, None)), None)
            if first is None:
                raise _empty()
            example_inputs = first.rows(slice(1)).inputs
        return Feed(source, tuple(example_inputs))

    def batches(self, batch_size: int = 64, shuffle: torch.Generator | None = None) -> Iterator[Batch]:
        """All of it once. Re-iterables keep their own batches and their order."""
        empty = True
        for batch in self.source.batches(batch_size, shuffle):
            _check(batch, [x for x in self.examples if isinstance(x, Tensor)])
            if len(batch):
                empty = False
                yield replace(batch, inputs=self._filled_in(batch.inputs)).to(self.examples[0].device)
        if empty:
            raise _empty()

    def on(self, device: torch.device) -> Feed:
        """The same on another device."""
        return replace(self, examples=Batch(self.examples).to(device).inputs)

    def _filled_in(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """Inputs of the network: the tensors, and the plain numbers between them."""
        left = iter(tensors)
        return tuple(next(left) if isinstance(x, Tensor) else x for x in self.examples)

    def count(self, batch_size: int = 64) -> int:
        """How many batches a pass has (a DataLoader that was split: at most)."""
        return self.source.count(batch_size)

    def split(self, holdout: float = 0.1, seed: int = 0) -> tuple[Feed, Feed]:
        """(train, held): the same for the same seed, neither is empty, no sample is in both."""
        if not 0 < holdout < 1:
            raise conv_error("data", "holdout must be between 0 and 1", got={"holdout": holdout}, also=ValueError)
        train, held = self.source.split(holdout, seed)
        return replace(self, source=train), replace(self, source=held)

    def head(self, samples: int, seed: int = 0, batch_size: int = 64) -> list[Batch]:
        """At most `samples` samples: drawn at random from a dataset, the first ones of a re-iterable."""
        source = self.source.drawn(samples, seed) if isinstance(self.source, Items) else self.source
        with seeded(seed):
            return first(replace(self, source=source).batches(batch_size), samples)


def first(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """The first of these batches, with so many samples in all, or as many as there are."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch.rows(slice(samples)))
        samples -= len(found[-1])
        if samples <= 0:
            break
    return found


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
            yield _stacked([_parsed(self.items[i], self.arity) for i in chosen])

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
        return (_parsed(raw, self.arity) for raw in self.loader)

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
            batch = _parsed(raw, self.arity)
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
            raise _empty()
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


def _source(data: Any, arity: int | None) -> Source:
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


def _parsed(raw: Any, arity: int | None) -> Batch:
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


def _stacked(samples: list[Batch]) -> Batch:
    try:
        inputs = tuple(torch.stack(column) for column in zip(*(s.inputs for s in samples), strict=True))
    except (RuntimeError, ValueError) as error:
        raise conv_error("data", "samples of one batch must have the same shape", got={"error": str(error)},
                         do="Give batches of your own, each of one shape.", also=ValueError) from error  # fmt: skip
    targets = [s.targets for s in samples if s.targets is not None]
    complete = len(targets) == len(samples) and len({t.shape for t in targets}) == 1
    return Batch(inputs, torch.stack(targets) if complete else None)


def _check(batch: Batch, examples: Sequence[Tensor]) -> None:
    if len(batch.inputs) != len(examples):
        got = {"inputs": len(batch.inputs), "example_inputs": len(examples)}
        raise conv_error("data", "each batch must hold as many inputs as example_inputs", got=got, also=ValueError)
    for x, example in zip(batch.inputs, examples, strict=True):
        _check_input(x, example)
    lengths = [tuple(t.shape[:1]) for t in (*batch.inputs, batch.targets) if t is not None]
    if len(set(lengths)) > 1:
        raise conv_error("data", "inputs and targets of a batch must have the same length",
                         got={"lengths": lengths}, also=ValueError)  # fmt: skip


def _check_input(x: Tensor, example: Tensor) -> None:
    """(N, C, *spatial), where the spatial sizes are free; (N, L) may be a sequence of any length."""
    if x.ndim != example.ndim or (x.ndim > 2 and x.shape[1] != example.shape[1]):
        got = {"shape": tuple(x.shape), "example_inputs": tuple(example.shape)}
        raise conv_error("data", "batches must have the rank and channels of example_inputs", got=got,
                         do="Images and labels together are TensorDataset(images, labels).",
                         also=ValueError)  # fmt: skip
    if x.dtype != example.dtype:
        raise conv_error("data", "batches must have the dtype of example_inputs", also=TypeError,
                         got={"dtype": x.dtype, "example_inputs": example.dtype},
                         do="Convert one of them.")  # fmt: skip
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise conv_error("data", "batches must be finite", got={"values": "NaN or infinity"},
                         do="Clean the data first.", also=ValueError)  # fmt: skip


def _empty() -> ConvError:
    return conv_error("data", "data must hold at least one sample", got={"samples": 0}, also=ValueError)


def _held_count(total: int, holdout: float) -> int:
    if total < 2:
        raise _empty() if total == 0 else conv_error("data", "there must be two samples to hold one out",
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


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Runs with torch's random numbers from `seed`; the user's are as before afterwards."""
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
        reseed(seed, devices)
        yield


def reseed(seed: int, devices: Iterable[torch.device] = ()) -> None:
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
