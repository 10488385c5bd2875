"""`Channels`: which channels of a network are one and the same, so that they can be removed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Numbers = np.ndarray  # int64


@dataclass
class Leaf:
    """A module whose channels are known by number: of what it takes, and of what it gives."""

    kind: str  # "conv", "depthwise", "norm" or "linear"
    ins: Numbers
    outs: Numbers


@dataclass
class Channels:
    """What the pass showed. `root` names channels that are the same; `pinned`: why some cannot go.

    Args:    leaves: by the first name of their module, in the order of their first run.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)

    # -- numbers ----------------------------------------------------------------------------------
    def new(self, count: int) -> Numbers:
        start = len(self.parent)
        self.parent += range(start, start + count)
        return np.arange(start, start + count)

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def roots(self, numbers: Numbers) -> Numbers:
        return np.array([self.root(int(n)) for n in numbers], dtype=np.int64)

    def tie(self, one: Numbers, other: Numbers) -> None:
        """Says that these are the same, pair by pair."""
        pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
        for a, b in pairs.T:
            a, b = self.root(int(a)), self.root(int(b))
            if a == b:
                continue
            a, b = min(a, b), max(a, b)
            self.parent[b] = a
            reason = self.pinned.pop(b, None)
            if reason is not None:
                self.pinned.setdefault(a, reason)

    def pin(self, numbers: Numbers, reason: str) -> None:
        for number in np.unique(numbers):
            self.pinned.setdefault(self.root(int(number)), reason)

    def settled(self) -> Channels:
        """All leaves by roots alone."""
        leaves = {name: Leaf(each.kind, self.roots(each.ins), self.roots(each.outs))
                  for name, each in self.leaves.items()}  # fmt: skip
        return Channels(leaves, self.parent, self.pinned)

    @cached_property
    def members(self) -> dict[int, Counter[tuple[str, str]]]:
        """How often each root is in the modules' inputs and outputs (once settled)."""
        found: dict[int, Counter[tuple[str, str]]] = {}
        for name, leaf in self.leaves.items():
            for side, numbers in (("in", leaf.ins), ("out", leaf.outs)):
                for root in numbers.tolist():
                    found.setdefault(root, Counter())[name, side] += 1
        return found

    @cached_property
    def givers(self) -> dict[int, str]:
        """Which convolution is the first to give a root; "" where it is no convolution."""
        found: dict[int, str] = {}
        for name, leaf in self.leaves.items():
            for root in leaf.outs.tolist():
                found.setdefault(root, name if leaf.kind == "conv" else "")
        return found

    def without(self, removed: Iterable[int]) -> Channels:
        """The channels once some are gone."""
        gone = np.array(sorted(removed), dtype=np.int64)
        leaves = {name: Leaf(leaf.kind, *(of[~np.isin(of, gone)] for of in (leaf.ins, leaf.outs)))
                  for name, leaf in self.leaves.items()}  # fmt: skip
        return Channels(leaves, self.parent, self.pinned)
