"""`Target`: an engine on this machine that runs networks; and the choice of one by name."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from reconv.errors import conv_error
from reconv.targets.timing import Runner, Timing, interleave

Job = tuple[nn.Module, tuple[Any, ...]]  # a network and its inputs


class Target(Protocol):
    """An engine. `fingerprint` tells apart all that changes its latencies: versions, threads, machine."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str: ...

    def measure(self, jobs: Sequence[Job], seconds: float) -> list[Timing]:
        """Latencies of networks in evaluation mode, interleaved, in about so many seconds."""
        ...


class TorchEager:
    """PyTorch as it stands: eager mode, the current number of threads."""

    name = "torch"

    def fingerprint(self) -> str:
        return f"torch {torch.__version__} | {torch.get_num_threads()} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float) -> list[Timing]:
        return interleave([_runner(*job) for job in jobs], seconds)


def _runner(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    def run() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return run


TARGETS: dict[str, Callable[[], Target]] = {"torch": TorchEager}


def get_target(target: str | Target) -> Target:
    """The engine of that name; a Target passes through.

    Raises:  ConvError (a ValueError): for a name that is not known.
    """
    if not isinstance(target, str):
        return target
    if target not in TARGETS:
        raise conv_error("target", f"target must be one of {', '.join(TARGETS)}", got={"target": target},
                         also=ValueError)  # fmt: skip
    return TARGETS[target]()


@cache
def machine() -> str:
    """Processor and instruction sets, as far as they can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        pairs = (line.partition(":") for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        model = " ".join(fields.get(k, "") for k in ("model name", "cpu family", "model", "stepping"))
    except (OSError, ValueError):
        model = platform.processor()
    return f"{platform.machine()} {model} {torch.backends.cpu.get_cpu_capability()}"
