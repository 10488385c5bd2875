"""What each position of an axis sees of one input axis: intervals that repeat with a period."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from reconv.costing.receptive.taps import LostError, Taps

Ints = NDArray[np.int64]
Bounds = NDArray[np.float64]  # whole numbers; an empty interval is lo = +inf, hi = -inf

_LARGEST_TABLE, _LARGEST_PERIOD = 1 << 22, 1 << 13  # beyond these a field counts as unknown


@dataclass(frozen=True, eq=False)
class IntervalMap:
    """Position r + P·k sees the input samples lo[r] + advance·k … hi[r] + advance·k, with P = len(lo)."""

    lo: Bounds
    hi: Bounds
    advance: int

    @property
    def rate(self) -> Fraction:
        """Input samples per position."""
        return Fraction(self.advance, len(self.lo))

    def bounds(self, positions: Ints) -> tuple[Bounds, Bounds]:
        turn, place = np.divmod(positions, len(self.lo))
        return self.lo[place] + self.advance * turn, self.hi[place] + self.advance * turn

    def through(self, taps: Taps) -> "IntervalMap":
        """The map after an operator that reads positions as `taps` says: the hull over what is read."""
        turns = len(self.lo) // gcd(len(self.lo), taps.advance)
        width = max(map(len, taps.rows))
        if turns * len(taps.rows) * width > _LARGEST_TABLE:
            raise LostError(f"a window table of {turns} x {len(taps.rows)} x {width}")
        if width == 0:
            return NOTHING
        reads = np.array([row + row[:1] * (width - len(row)) if row else (0,) * width for row in taps.rows])
        lo, hi = self.bounds(reads + taps.advance * np.arange(turns)[:, None, None])
        empty = np.array([not row for row in taps.rows])
        lo, hi = np.where(empty, np.inf, lo.min(-1)), np.where(empty, -np.inf, hi.max(-1))
        return _shortest(lo.ravel(), hi.ravel(), self.advance * taps.advance * turns // len(self.lo))

    def over(self, period: int) -> tuple[Bounds, Bounds]:
        return self.bounds(np.arange(period))


@dataclass(frozen=True, eq=False)
class Span:
    """The hull of several maps, one for each rate: a moving window and, say, all that a gate has pooled."""

    maps: tuple[IntervalMap, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Span) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def through(self, taps: Taps) -> "Span":
        return Span(tuple(each.through(taps) for each in self.maps))

    @property
    def period(self) -> int:
        return max(len(each.lo) for each in self.maps)

    def constant(self) -> "Span":
        """What position 0 sees, for every position."""
        lo, hi = self._bounds(np.zeros(1, np.int64))
        return Span((IntervalMap(lo, hi, 0),))

    def size(self, positions: Ints) -> int:
        """Samples in the largest interval over the positions."""
        lo, hi = self._bounds(positions)
        return int(max(0, (hi - lo).max() + 1))

    def at(self, position: int) -> tuple[float, float]:
        """The first and the last sample that one position sees; infinite, and the other way round, for none."""
        lo, hi = self._bounds(np.array([position]))
        return float(lo[0]), float(hi[0])

    def _key(self) -> frozenset[tuple[bytes, bytes, int]]:
        return frozenset((each.lo.tobytes(), each.hi.tobytes(), each.advance) for each in self.maps)

    def _bounds(self, positions: Ints) -> tuple[Bounds, Bounds]:
        los, his = zip(*(each.bounds(positions) for each in self.maps), strict=True)
        return np.min(los, axis=0), np.max(his, axis=0)


NOTHING = IntervalMap(np.array([np.inf]), np.array([-np.inf]), 0)
EMPTY = Span((NOTHING,))
IDENTITY = Span((IntervalMap(np.zeros(1), np.zeros(1), 1),))


def hull(spans: Iterable[Span | None]) -> Span | None:
    """Each position sees the smallest interval that holds what it sees in each span; None is absorbing."""
    by_rate: dict[Fraction, list[IntervalMap]] = {}
    for span in spans:
        if span is None:
            return None
        for each in span.maps:
            by_rate.setdefault(each.rate, []).append(each)
    return Span(tuple(_hull_of_one_rate(maps) for maps in by_rate.values()))


def _hull_of_one_rate(maps: Sequence[IntervalMap]) -> IntervalMap:
    if len(maps) == 1:
        return maps[0]
    period = lcm(*(len(each.lo) for each in maps))
    if period > _LARGEST_PERIOD:
        raise LostError(f"a period of {period} positions")
    los, his = zip(*(each.over(period) for each in maps), strict=True)
    return _shortest(np.min(los, axis=0), np.max(his, axis=0), int(maps[0].rate * period))


def _shortest(lo: Bounds, hi: Bounds, advance: int) -> IntervalMap:
    """The same map with its least period."""
    size = len(lo)
    if size > _LARGEST_PERIOD:
        raise LostError(f"a period of {size} positions")
    for period in (p for p in range(1, size) if size % p == 0 and advance * p % size == 0):
        step = advance * period // size
        if all(np.array_equal(row[period:], row[:-period] + step) for row in (lo, hi)):
            return IntervalMap(lo[:period], hi[:period], step)
    return IntervalMap(lo, hi, advance)
