"""TensorFlow's many spellings, understood once: data formats, strides, paddings, aliases, names of functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from torch import Tensor

from reconv.errors import ConvError, conv_error

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Sizes = int | Sequence[int] | None
Padding = str | Sequence[Sequence[int]] | None

FORMATS: dict[int, tuple[str, ...]] = {
    1: ("NWC", "NCW", "NHWC", "NCHW"),  # the last two are TensorFlow 1's
    2: ("NHWC", "NCHW"),
    3: ("NDHWC", "NCDHW"),
}


@dataclass(frozen=True)
class Call:
    """One call of an entrance: its name (for messages), its number of spatial axes and where its channels are."""

    name: str
    dims: int
    channels_last: bool = True

    @classmethod
    def of(cls, name: str, dims: int, data_format: str | None) -> Call:
        if data_format is None:
            return cls(name, dims)
        if data_format not in FORMATS[dims]:
            raise conv_error(name, f"data_format must be one of {', '.join(FORMATS[dims])}",
                             got={"data_format": repr(data_format)}, also=ValueError)  # fmt: skip
        return cls(name, dims, data_format.endswith("C"))

    def wrong(
        self, must: str, got: Mapping[str, object], *, do: str = "", also: type[Exception] = ValueError
    ) -> ConvError:
        return conv_error(self.name, must, got=got, do=do, also=also)

    # -- tensors ----------------------------------------------------------------------------------
    def check(self, **tensors: Any) -> None:
        """Tensors of one dtype; `input` may have more than one axis for its batch, the others are filters."""
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise self.wrong(f"{name} must be a tensor", {name: type(value).__name__}, also=TypeError)
            least = self.dims + 2
            if value.ndim < least or (value.ndim > least and name != "input"):
                axes = "(*batch, *spatial, C)" if name == "input" else "(*kernel, channels, channels)"
                raise self.wrong(f"{name} must be {axes} with {self.dims} spatial axes, in the data format's order",
                                 {name: tuple(value.shape)})  # fmt: skip

    def channels(self, shape: Sequence[int]) -> int:
        return shape[-1 if self.channels_last else -self.dims - 1]

    def channels_first(self, input: Tensor) -> Tensor:
        """(N, C, *spatial): a view, wherever the axes of the batch are one or lie together in memory."""
        extra = input.ndim - self.dims - 2
        flat = input.flatten(0, extra) if extra else input
        return flat.movedim(-1, 1) if self.channels_last else flat

    def restored(self, output: Tensor, input: Tensor) -> Tensor:
        """The output in the data format of the input, with its axes of the batch."""
        output = output.movedim(1, -1) if self.channels_last else output
        extra = input.ndim - self.dims - 2
        return output.unflatten(0, input.shape[: extra + 1]) if extra else output

    # -- numbers ----------------------------------------------------------------------------------
    def sizes(self, name: str, value: Sizes) -> Ints:
        """One size per spatial axis, from a number, one per spatial axis or one per axis of the tensor."""
        values = self.integers(name, 1 if value is None else value)
        if len(values) == self.dims + 2:
            batch, channels, inner = self._apart(values)
            if (batch, channels) != (1, 1):
                raise self.wrong(f"{name} must be 1 along the axes of batch and channels", {name: value})
            values = tuple(inner)
        values = values * self.dims if len(values) == 1 else values
        if len(values) != self.dims or min(values) < 1:
            raise self.wrong(f"{name} must be an integer >= 1, {self.dims} or {self.dims + 2} of them",
                             {name: value})  # fmt: skip
        return values

    def integers(self, name: str, value: Any) -> Ints:
        if isinstance(value, (Tensor, np.ndarray)):
            value = value.tolist()
        values = value if isinstance(value, (list, tuple)) else (value,)
        try:
            return tuple([v if type(v) is int else index(v) for v in values])
        except TypeError as error:
            raise self.wrong(f"{name} must be integers", {name: value}, also=TypeError) from error

    def pads(self, padding: Padding) -> Pairs | None:
        """What is padded before and after each spatial axis; None for SAME, which depends on lengths."""
        if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
            return None if padding.upper() == "SAME" else ((0, 0),) * self.dims
        if isinstance(padding, (Tensor, np.ndarray)):
            padding = padding.tolist()
        if not isinstance(padding, (list, tuple)):
            raise self.wrong('padding must be "SAME", "VALID" or a pair [before, after] for each axis of the tensor',
                             {"padding": repr(padding)})  # fmt: skip
        pairs = [self.integers("padding", pair) for pair in padding]
        if len(pairs) != self.dims + 2 or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
            raise self.wrong(f"padding must be {self.dims + 2} pairs of integers >= 0, one for each axis of the tensor",
                             {"padding": padding})  # fmt: skip
        batch, channels, inner = self._apart(pairs)
        if any(batch) or any(channels):
            raise self.wrong("padding must be [0, 0] along the axes of batch and channels", {"padding": padding})
        return tuple([(lo, hi) for lo, hi in inner])

    def _apart(self, values: Sequence[Any]) -> tuple[Any, Any, Sequence[Any]]:
        """Of batch, of channels and of the spatial axes, from one value per axis."""
        if self.channels_last:
            return values[0], values[-1], values[1:-1]
        return values[0], values[1], values[2:]

    def full(self, values: Any) -> tuple[int, int, Ints]:
        """Batch, channels and spatial lengths of a whole shape."""
        batch, channels, inner = self._apart(values)
        return batch, channels, tuple(inner)


def same_pads(length: int, extent: int, stride: int) -> tuple[int, int]:
    """What SAME pads before and after an axis, of which the output has ⌈length / stride⌉ positions.

    Args:    extent: of the dilated kernel.
    Example:
             >>> same_pads(5, 3, 1), same_pads(5, 3, 2), same_pads(6, 3, 2), same_pads(7, 1, 3)
             ((1, 1), (1, 1), (0, 1), (0, 0))
    """
    over = int(length % stride) if stride > 1 else 0  # all that it depends on: a compiled call serves every such length
    total = max(extent - (over or stride), 0)
    return total // 2, total - total // 2


def extents(kernel: Sequence[int], dilations: Sequence[int]) -> Ints:
    """How far the dilated kernel reaches along each axis."""
    return tuple([(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)])


def only(name: str, *, required: bool = True, **given: Any) -> Any:
    """The one value that was given of an argument with several names; the first name is TensorFlow 2's."""
    found = [key for key in given if given[key] is not None]
    if len(found) == 1:
        return given[found[0]]
    first = next(iter(given))
    if found:
        raise conv_error(name, f"only one of {' and '.join(found)} must be given, they are names of the same",
                         do=f"Use {first}.", also=ValueError)  # fmt: skip
    if required:
        raise conv_error(name, f"{first} must be given", also=TypeError)
    return None


def by_name(what: str, value: Any, table: Mapping[str, Any]) -> Any:
    """What a name of Keras stands for (`max_norm` or `MaxNorm`); functions stand for themselves, classes for one."""
    if isinstance(value, type):
        return value()
    if value is None or callable(value):
        return value
    if isinstance(value, str) and (known := value.lower().replace("_", "")) in table:
        return table[known]
    raise conv_error(what, f"{what} must be a function or one of {', '.join(table)}", got={what: repr(value)},
                     also=ValueError)  # fmt: skip
