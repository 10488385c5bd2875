"""What a network costs: MACs, parameters, and its latency on each engine, all networks in turn in one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import reconv
from reconv.targets import Timing, get_target, layouts_of, time_networks, to_layout

TARGETS = ("torch:1", "onnxruntime:1")
SECONDS_EACH = 1.0


def use_processor_time() -> None:
    """Times by the calling thread's processor time from now on, for a machine that others use; one thread only."""
    from reconv.targets import timing

    timing.time = SimpleNamespace(perf_counter=time.perf_counter, perf_counter_ns=time.thread_time_ns)


def deployed(model: nn.Module) -> nn.Module:
    """A network of plain layers as it would be used: batch norms folded, which every engine's users do."""
    return fuse(model.eval())


def cost(model: nn.Module, example: Tensor) -> dict[str, int]:
    network = reconv.summary(model, example).network
    return {"macs": network.macs, "params": network.params}


def latencies(models: Mapping[str, nn.Module], plain: Iterable[str], example: Tensor,
              target: str, seconds_each: float = SECONDS_EACH) -> dict[str, dict[str, float]]:  # fmt: skip
    """Milliseconds of each network. Those of `plain` layers run in both memory formats, and the faster one counts."""
    either = set(plain) if target.startswith("torch") else set()
    named = [(name, each) for name, model in models.items() for each in (both(model) if name in either else [model])]
    networks, seconds = [model for _, model in named], seconds_each * len(named)
    with torch.inference_mode():
        timings = time_networks(get_target(target), networks, (example,), seconds)
    found: dict[str, list[Timing]] = {}
    for (name, _), timing in zip(named, timings, strict=True):
        found.setdefault(name, []).append(timing)
    return {name: rounded(min(several, key=lambda t: t.median_ms)) for name, several in found.items()}


def both(model: nn.Module) -> Sequence[nn.Module]:
    return [to_layout(copy.deepcopy(model), layout) for layout in layouts_of(model)]


def rounded(timing: Timing) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(timing).items()}


def machine() -> dict[str, Any]:
    from reconv.targets import machine as name
    from reconv.targets import timing

    clock = "wall" if timing.time is time else "processor"
    return {"cpu": name(), "torch": torch.__version__, "threads": 1, "clock": clock}
