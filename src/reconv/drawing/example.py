"""A worked example: small whole numbers on a flow's first map, and what its steps make of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from reconv.drawing.flow import Cell, Flow, Ints, Step, group_of, window
from reconv.errors import conv_error
from reconv.spec import Block, ConvSpec, PixelShuffle, Shuffle

Values = dict[Cell, int]
MOST = {"products": 6000, "cells": 30_000}  # of all steps and maps


def inputs(shape: Ints) -> Values:
    """Numbers from 0 to 4 that show no pattern."""
    return {cell: (7 * cell[0] + sum((3 + 2 * i) * p * p + p for i, p in enumerate(cell[1:]))) % 5
            for cell in product(*map(range, shape))}  # fmt: skip


def weight(out: int, channel: int, tap: Sequence[int]) -> int:
    """Numbers from −1 to 2, the channel counted inside its group."""
    return (5 * out + 3 * channel + sum((2 + i) * t for i, t in enumerate(tap))) % 4 - 1


def worked(flow: Flow) -> list[Values]:
    """The values of all maps.

    Raises:  ConvError: where a part has no worked example, or the sizes are too large for one.
    """
    needed = {
        "products": sum(_products(flow, step) for step in flow.steps),
        "cells": sum(prod(m.shape) for m in flow.maps),
    }
    for what, number in needed.items():
        if number > MOST[what]:
            raise conv_error("draw", f"a worked example has at most {MOST[what]} {what}", got={what: number},
                             also=ValueError, do="Give a smaller input_size, or leave numbers out.")  # fmt: skip
    found = [inputs(flow.maps[0].shape)]
    for step in flow.steps:
        values = {cell: _value(flow, step, cell, found) for cell in product(*map(range, flow.maps[step.target].shape))}
        found.append({cell: _after(step, value) for cell, value in values.items()})
    return found


def terms(step: Step, cell: Cell, found: Sequence[Values]) -> list[tuple[int, int]]:
    """(weight, input) of each product that makes a cell, those in the padding left out."""
    spec = _conv(step.block)
    given = found[step.sources[0]]
    channels = group_of(spec, cell[0])
    return [(weight(cell[0], c - channels[0], tap), given[c, *place]) for c in channels
            for tap, place in window(spec, cell[1:]) if (c, *place) in given]  # fmt: skip


def _value(flow: Flow, step: Step, cell: Cell, found: Sequence[Values]) -> int:
    if isinstance(step.block, ConvSpec):
        return sum(w * x for w, x in terms(step, cell, found))
    cells = [(place, source, before) for place, source in enumerate(step.sources)
             for before in flow.before(step, place, {cell})]  # fmt: skip
    return sum(found[source][before] for _, source, before in cells)


def _products(flow: Flow, step: Step) -> int:
    if step.block is None or isinstance(step.block, Shuffle | PixelShuffle):
        return 0
    spec = _conv(step.block)
    shape = flow.maps[step.sources[0] if spec.transposed else step.target].shape
    count = spec.weight_shape[0]
    for n in (*spec.weight_shape[1:], *shape[1:]):
        count *= n
    return count


def _conv(block: Block | None) -> ConvSpec:
    if not isinstance(block, ConvSpec) or block.padding_mode != "zeros":
        raise conv_error("draw", "a worked example takes convolutions padded with zeros, shuffles, sums, joins",
                         also=ValueError, got={"part": str(block)}, do="Leave numbers out.")  # fmt: skip
    return block


def _after(step: Step, value: int) -> int:
    for name in step.after:
        if name not in ("relu", "identity"):
            raise conv_error("draw", "a worked example takes no other function than relu", got={"function": name},
                             also=ValueError, do="Leave numbers out.")  # fmt: skip
        value = max(0, value) if name == "relu" else value
    return value
