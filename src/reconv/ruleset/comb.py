"""`Comb`: some taps of a kernel, evenly spaced, as a convolution of their own with the same output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from reconv.spec import ConvSpec
from reconv.spec.conv import Ints


@dataclass(frozen=True)
class Comb:
    """The taps first, first + step, …, `taps` of them, along each axis of a kernel."""

    first: Ints
    step: Ints
    taps: Ints

    @property
    def window(self) -> Any:
        """Where they lie in a dense kernel, (…, *kernel)."""
        axes = zip(self.first, self.step, self.taps, strict=True)
        return (..., *(slice(f, f + s * (n - 1) + 1, s) for f, s, n in axes))

    def of(self, spec: ConvSpec) -> ConvSpec | None:
        """The convolution of those taps alone; None where the padding cannot follow them.

        A comb that begins later pads that much less, and less than none is not possible; transposed, one that ends
        earlier crops less or lengthens the output.
        """
        pads, extra = [], []
        for axis, (first, step, taps) in enumerate(zip(self.first, self.step, self.taps, strict=True)):
            stride, dilation = spec.stride[axis], spec.dilation[axis]
            (lo, hi), longer = spec.padding[axis], spec.output_padding[axis]
            lo -= dilation * first
            hi -= dilation * (spec.kernel_size[axis] - 1 - first - step * (taps - 1))
            if hi < 0 and spec.transposed:
                hi, longer = 0, longer - hi
            if lo < 0 or hi < 0 or (longer and longer >= max(stride, dilation * step)):
                return None
            pads.append((lo, hi))
            extra.append(longer)
        dilations = tuple(d * s for d, s in zip(spec.dilation, self.step, strict=True))
        return spec.replace(kernel_size=self.taps, padding=tuple(pads), dilation=dilations, output_padding=tuple(extra))

    def reaching(self, spec: ConvSpec) -> Comb | None:
        """With taps added at either end until the padding can follow; None where it cannot."""
        found = self
        for axis, k in enumerate(spec.kernel_size):
            dilation, step = spec.dilation[axis], self.step[axis]
            while found.first[axis] * dilation > spec.padding[axis][0]:
                if found.first[axis] < step:
                    return None
                found = replace(found, first=_changed(found.first, axis, -step), taps=_changed(found.taps, axis, 1))
            while _without(found, axis).of(spec.along((axis,))) is None:
                if found.first[axis] + step * found.taps[axis] >= k:
                    return None
                found = replace(found, taps=_changed(found.taps, axis, 1))
        return found

    @classmethod
    def found(cls, spec: ConvSpec, part: ConvSpec) -> Comb | None:
        """The comb whose convolution `part` is, but for its bias; None where it is none."""
        if part.spatial_dims != spec.spatial_dims:
            return None
        first = tuple((a - b) // d for (a, _), (b, _), d in zip(spec.padding, part.padding, spec.dilation, strict=True))
        step = tuple(b // d for b, d in zip(part.dilation, spec.dilation, strict=True))
        comb = cls(first, step, part.kernel_size)
        ends = (f + s * (n - 1) for f, s, n in zip(first, step, part.kernel_size, strict=True))
        inside = min(first) >= 0 and min(step) >= 1 and all(e < k for e, k in zip(ends, spec.kernel_size, strict=True))
        mine = comb.of(spec) if inside else None
        return comb if mine is not None and mine.replace(bias=part.bias) == part else None


def _changed(values: Ints, axis: int, by: int) -> Ints:
    return tuple(v + by if at == axis else v for at, v in enumerate(values))


def _without(comb: Comb, axis: int) -> Comb:
    """The comb along one axis; a single tap along the others."""

    def only(values: Ints, other: int) -> Ints:
        return cast(Ints, tuple(v if at == axis else other for at, v in enumerate(values)))

    return Comb(only(comb.first, 0), only(comb.step, 1), only(comb.taps, 1))
