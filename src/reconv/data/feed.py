"""`Feed`: batches that fit a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from reconv.data.batch import Batch, first, no_samples
from reconv.data.chance import seeded
from reconv.data.sources import Items, Source, source_of
from reconv.errors import conv_error


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
        source = source_of(data, None if example_inputs is None else sum(map(torch.is_tensor, example_inputs)))
        if example_inputs is None:
            first = next(iter(source.batches(1, None)), None)
            if first is None:
                raise no_samples()
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
            raise no_samples()

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
        if not isinstance(holdout, Real) or not 0 < holdout < 1:
            raise conv_error("data", "holdout must be between 0 and 1", got={"holdout": repr(holdout)}, also=ValueError)
        train, held = self.source.split(holdout, seed)
        return replace(self, source=train), replace(self, source=held)

    def head(self, samples: int, seed: int = 0, batch_size: int = 64) -> list[Batch]:
        """At most `samples` samples: drawn at random from a dataset, the first ones of a re-iterable."""
        source = self.source.drawn(samples, seed) if isinstance(self.source, Items) else self.source
        with seeded(seed):
            return first(replace(self, source=source).batches(batch_size), samples)


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
