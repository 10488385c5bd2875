"""What one panel tells of its state: picture, facts, code; and the latency of the layer on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from reconv.drawing.figure import times
from reconv.errors import ConvError
from reconv.explorer.code import codes
from reconv.explorer.state import State
from reconv.reporting.drawn import draw
from reconv.spec import Block, describe, macs, peak_bytes, receptive_field, weight_bytes

BEYOND = {"deformable": ", and farther by the offsets", "squeeze_excite": "; the weights see the whole map"}
MOST_MACS, MOST_BYTES = 4_000_000_000, 2**28  # of a layer that is measured here


@dataclass(frozen=True)
class Panel:
    """All that the page shows of a state; without a picture where something is wrong."""

    state: State
    prefix: str
    svg: str = ""
    frames: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    parts: tuple[Any, ...] = ()
    codes: dict[str, str] = field(default_factory=dict)


def panel_of(state: State, prefix: str) -> Panel:
    if state.wrong:
        return Panel(state, prefix)
    block = state.block()
    numbers = state.numbers
    try:
        svg = _drawn(block, state.shape, numbers, state.offsets)
    except ConvError as error:
        if not numbers:
            raise
        state.wrong["numbers"] = str(error).split(" [")[0]
        svg = _drawn(block, state.shape, False, state.offsets)
    told = describe(block, (1, *state.shape))
    facts = {
        "input": times(state.shape),
        "weights": " and ".join(times(shape) for row in told.rows for shape in row.weight_shapes) or "none",
        "output": times(told.output_shape[1:]),
        "parameters": f"{told.params:,}",
        "multiply-accumulates": f"{told.macs:,}",
        "receptive field": times(receptive_field(block, state.dims)) + BEYOND.get(state.kind.name, ""),
        "as text": str(block),
    }
    return Panel(state, prefix, svg, len(set(re.findall(r"made-text f f(\d+)", svg))), facts, told.rows, codes(state))


@lru_cache(maxsize=8)  # pictures of up to 4 MB
def _drawn(block: Block, shape: tuple[int, ...], numbers: bool, offsets: str) -> str:
    return draw(block, input_size=shape[1:], animate=True, numbers=numbers, offsets=offsets, channels=shape[0])


def measured(state: State) -> dict[str, str]:
    """The layer's latency here, with one thread and with all, and the kernels that reconv would choose."""
    import torch

    from reconv.targets import Problem, get_target, time_blocks

    block, shape = state.block(), (1, *state.shape)
    if macs(block, shape) > MOST_MACS:
        return {"latency": f"not measured: more than {MOST_MACS:,} multiply-accumulates"}
    if peak_bytes(block, shape) + weight_bytes(block, shape[1]) > MOST_BYTES:
        return {"latency": f"not measured: more than {MOST_BYTES >> 20} MiB of weights and maps"}
    told, chosen = [], []
    for threads in sorted({1, torch.get_num_threads()}):
        problem = Problem(block, shape, torch.float32, torch.device("cpu"))
        (timing,) = time_blocks(get_target(f"torch:{threads}"), [problem])
        if isinstance(timing, str):
            return {"latency": f"not measured: {timing}"}
        with_them = f"with {threads} thread{'s' * (threads > 1)}"
        told.append(f"{timing.median_ms:.3g} ms ± {timing.spread_ms / 2:.1g} {with_them}")
        chosen.append(", ".join(kernels(block, shape, threads)))
    return {
        "latency": ", ".join(told),
        "kernel": " or ".join(dict.fromkeys(chosen)),
        "where": "reconv here, batch 1 (median, half the range between quartiles)",
    }


def kernels(block: Block, shape: tuple[int, ...], threads: int) -> list[str]:
    """The kernel that computes each convolution, in the order in which they run."""
    import torch

    from reconv.ops.dispatch import choose
    from reconv.ops.problem import of_spec
    from reconv.spec import ConvSpec, parse

    found = []
    for row in describe(block, shape).rows:
        part = parse(row.text)
        if isinstance(part, ConvSpec):
            asked = of_spec(part, row.input_shape, False, torch.float32, threads)
            found.append("torch" if asked is None else choose(asked).name)
    return found
