"""`summary`: what each convolution of a network costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from reconv.costing.operators import OperatorCount
from reconv.costing.receptive import ReceptiveField
from reconv.spec import ConvSpec
from reconv.surgery import ConvCall, clone, find_sites, tensors_of
from reconv.surgery.sites import DEFORMABLE
from reconv.targets import LatencyCache, Problem, Target, Timing, get_target, layout_of, time_blocks, time_networks


@dataclass(frozen=True)
class Row:
    """One convolution call. A figure that could not be had is None.

    Args:    params: numbers of the weight and bias as applied; macs: of the whole example batch.
             receptive_field: per axis, in input samples, unclipped, the largest over output positions.
             activation_bytes: of its output; latency_ms: median, latency_spread_ms: interquartile range.
    """

    name: str
    kind: str
    spec: ConvSpec
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int
    receptive_field: tuple[int, ...] | None
    activation_bytes: int
    latency_ms: float | None = None
    latency_spread_ms: float | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over the rows, or figures of the whole network; the state of each says how much of it is known."""

    params: int
    macs: int
    activation_bytes: int | None
    latency_ms: float | None = None
    latency_spread_ms: float | None = None
    states: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Summary:
    """Rows in call order, their `total`, and the `network` as a whole (with all that is no convolution).

    Args:    rows: of each convolution call; see `Row`. total: of these. network: of all of its layers.
             target: the engine that timed them; None: nothing was timed.
    Example:
             >>> import torch
             >>> found = summary(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 9, 9))
             >>> found.total.params, found.to_dict()["rows"][0]["macs"]
             (224, 10584)
    """

    rows: tuple[Row, ...]
    total: Totals
    network: Totals
    target: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a measured figure is {"value", "state", "spread"}, state complete | partial | unavailable."""
        from reconv.costing.render import as_dict

        return as_dict(self)

    def to_csv(self) -> str:
        from reconv.costing.render import as_csv

        return as_csv(self)

    def to_markdown(self) -> str:
        from reconv.costing.render import as_markdown

        return as_markdown(self)

    def __rich__(self) -> Any:
        from reconv.costing.render import Fitting

        return Fitting(self)

    def _repr_html_(self) -> str:
        from reconv.costing.render import as_html

        return as_html(self)


def summary(model: nn.Module, example_inputs: Tensor | Sequence[Any], target: str | Target | None = None) -> Summary:
    """What each convolution that `model` really runs on `example_inputs` costs, one row a call.

    Args:    target: the engine that times each row and the whole network; None: not timed.
    Returns: a Summary, which displays itself (rich, notebooks) and converts (`to_dict`, `to_csv`, `to_markdown`).
    Raises:  ConvError: when the network cannot be copied, rejects the inputs or runs no convolution.
    Example:
             >>> import torch
             >>> s = summary(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 9, 9))
             >>> s.rows[0].macs, s.rows[0].receptive_field
             (10584, (3, 3))
    """
    inputs = tensors_of(example_inputs)
    counter = OperatorCount()
    network = find_sites(model, inputs, ReceptiveField, [counter])
    engine = get_target(target) if target is not None else None
    timings = _times(model, network.calls, engine, inputs[0]) if engine else [None] * len(network.calls)
    rows = tuple(_row(call, timing) for call, timing in zip(network.calls, timings, strict=True))
    return Summary(rows, _total(rows), _whole(model, inputs, engine, counter), engine.name if engine else None)


def _times(model: nn.Module, calls: Sequence[ConvCall], engine: Target, x: Tensor) -> list[Timing | None]:
    """One timing a call; a deformable one cannot be timed by its spec alone, others perhaps not on this engine."""
    layout = layout_of(model)
    timed = [c for c in calls if c.kind != DEFORMABLE]
    problems = [Problem(c.spec, c.input_shape, c.dtype, x.device, layout) for c in timed]
    cache = LatencyCache()
    found = zip(timed, time_blocks(engine, problems, cache), strict=True)
    known = {id(call): timing for call, timing in found if isinstance(timing, Timing)}
    cache.close()
    return [known.get(id(c)) for c in calls]


def _row(call: ConvCall, timing: Timing | None) -> Row:
    median, spread = (timing.median_ms, timing.spread_ms) if timing else (None, None)
    return Row(
        name=call.name, kind=call.kind, spec=call.spec, input_shape=call.input_shape,
        weight_shape=call.weight_shape, output_shape=call.output_shape,
        params=prod(call.weight_shape) + call.spec.bias * call.spec.out_channels, macs=call.macs,
        receptive_field=call.receptive_field, activation_bytes=call.output_bytes,
        latency_ms=median, latency_spread_ms=spread,
    )  # fmt: skip


def _total(rows: Sequence[Row]) -> Totals:
    known = [r.latency_ms for r in rows if r.latency_ms is not None]
    spreads = [r.latency_spread_ms for r in rows if r.latency_spread_ms is not None]
    state = "complete" if len(known) == len(rows) else "partial" if known else "unavailable"
    return Totals(
        sum(r.params for r in rows), sum(r.macs for r in rows), sum(r.activation_bytes for r in rows),
        sum(known) if known else None, sum(s * s for s in spreads) ** 0.5 if spreads else None,
        {"params": "complete", "macs": "complete", "activation_bytes": "complete", "latency_ms": state},
    )  # fmt: skip


def _whole(model: nn.Module, inputs: tuple[Any, ...], engine: Target | None, counter: OperatorCount) -> Totals:
    timing = time_networks(engine, [clone(model)], inputs)[0] if engine else None
    median, spread = (timing.median_ms, timing.spread_ms) if timing else (None, None)
    return Totals(
        sum(p.numel() for p in model.parameters()), counter.macs, counter.activation_bytes, median, spread,
        {"params": "complete", "macs": "partial" if counter.foreign else "complete", "activation_bytes": "complete",
         "latency_ms": "complete" if timing else "unavailable"},
    )  # fmt: skip
