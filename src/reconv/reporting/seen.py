"""What was seen of the two networks besides their cost: what their layers give, and what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Field:
    """An effective receptive field over the input.

    Args:    heat: how much each position counts. box: per axis, the ends between which 95 % of it lies.
             window: the same of all that could count, unclipped; None where unknown.
    """

    heat: Array
    box: tuple[tuple[int, int], ...]
    window: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class View:
    """One layer of both networks.

    Args:    before, after: its effective receptive fields; None where there is none.
             maps: (channel, before, after), for the channels that vary most.
    """

    name: str
    before: Field | None = None
    after: Field | None = None
    maps: tuple[tuple[int, Array, Array], ...] = ()


@dataclass(frozen=True)
class Seen:
    """What the layers of both networks make of samples.

    Args:    source: what the samples are. count: how many there were.
             image: the first of them, (C, *spatial).
             apart: by layer, ‖student − teacher‖ / ‖teacher‖ of what it gives in the rewritten network.
             scores: by layer, what `evaluate` gave for the network with that layer rewritten alone.
             missing: what could not be had, and why.
    """

    source: str = ""
    count: int = 0
    image: Array = field(default_factory=lambda: np.zeros(0))
    views: tuple[View, ...] = ()
    apart: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
