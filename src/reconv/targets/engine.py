"""`Target`: an engine on this machine that runs networks; and the choice of one by name."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from reconv.errors import ConvError, conv_error, on_one_line
from reconv.ops.native import native_version
from reconv.plugins import Plugins, without
from reconv.targets.timing import Runner, Timing, interleave

PLUGINS = Plugins("reconv.targets", "target", "Target")
Job = tuple[nn.Module, tuple[Any, ...]]  # a network and its inputs


class Target(Protocol):
    """An engine. `fingerprint` tells apart all that changes its latencies: versions, threads, machine."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str: ...

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        """Latencies in evaluation mode, interleaved, in about so many seconds; `burst` calls of each in a round.

        Raises:  any exception, where it cannot run one of them: that one is then left out, with what was raised as
                 the reason.
        """
        ...


class TorchEager:
    """PyTorch as it stands, in eager mode.

    Args:    threads: that the network will have where it runs; None: as many as torch has now.
    """

    engine: ClassVar[str] = "torch"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.name = self.engine if threads is None else f"{self.engine}:{threads}"

    def fingerprint(self) -> str:
        threads = self.threads or torch.get_num_threads()
        return f"{self.engine} {torch.__version__} | {ours()}, {native_version()} | {threads} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            return interleave([self.runner(job) for job in jobs], seconds, burst=burst)
        finally:
            torch.set_num_threads(before)

    def runner(self, job: Job) -> Runner:
        """A call of the network."""
        model, inputs = job

        def call() -> object:
            with torch.inference_mode():
                return model(*inputs)

        return waiting(call, job)


def not_run(engine: str, model: nn.Module, error: Exception) -> ConvError:
    """Of an engine, or of what prepares a network for it, that raised this."""
    return conv_error("target", f"{engine} must be able to run the network", also=RuntimeError,
                      got={"model": type(model).__name__, "error": repr(on_one_line(error, 300))})  # fmt: skip


def waiting(call: Runner, job: Job) -> Runner:
    """A call that lasts until the devices of its network have done their work: on a GPU it is only put in a queue."""
    model, inputs = job
    tensors = (*model.parameters(), *model.buffers(), *(x for x in inputs if isinstance(x, Tensor)))
    devices = {tensor.device for tensor in tensors} - {torch.device("cpu")}
    if not devices:
        return call

    def run() -> object:
        output = call()
        for device in devices:
            torch.accelerator.synchronize(device)
        return output

    return run


def _compiled(threads: int | None) -> Target:
    from reconv.targets.compiled import TorchCompiled

    return TorchCompiled(threads)


def _onnxruntime(threads: int | None) -> Target:
    from reconv.targets.onnxruntime import OnnxRuntime

    return OnnxRuntime(threads)


def _openvino(threads: int | None) -> Target:
    from reconv.targets.openvino import OpenVino

    return OpenVino(threads)


TARGETS: dict[str, Callable[[int | None], Target]] = {
    "torch": TorchEager,
    "torch.compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
ALIASES = {"torch-compile": "torch.compile"}


def get_target(target: str | Target) -> Target:
    """The engine of that name, with a number of threads behind a colon if wanted (`torch:1`); a Target passes through.

    A name may also be that of an installed package's engine: an entry point of the group `reconv.targets`, a callable
    that gives the Target for a number of threads, or for None.

    Raises:  ConvError: a ValueError for a name that is not known, or threads that are no number; an ImportError where
             a package of the engine is missing; when a package's engine is unusable.
    """
    if not isinstance(target, str):
        if missing := without(target, ("fingerprint", "measure")):
            raise conv_error("target", "target must be a name or a Target", do=f"As a Target, {missing}.",
                             got={"target": type(target).__name__}, also=TypeError)  # fmt: skip
        return target
    asked, colon, count = target.partition(":")
    name, threads = ALIASES.get(asked, asked), int(count) if count.isdecimal() and len(count) < 5 else None
    if not colon or (threads and threads <= 1024):
        if name in TARGETS:
            PLUGINS.check_unclaimed(name)
            return TARGETS[name](threads)
        if found := _of_package(name, threads):
            return found
    more = f"Installed packages add {', '.join(names)}." if (names := PLUGINS.offers()) else ""
    raise conv_error("target", f"target must be one of {', '.join(TARGETS)}, as in 'torch' or 'torch:1' (threads)",
                     got={"target": target}, do=more, also=ValueError)  # fmt: skip


def _of_package(name: str, threads: int | None) -> Target | None:
    """The engine of an installed package. Its name is what plans note, so that they find it again."""
    full = name if threads is None else f"{name}:{threads}"

    def lacks(target: Any) -> str | None:
        if missing := without(target, ("fingerprint", "measure")):
            return missing
        return None if getattr(target, "name", None) == full else f"its name must be as it was asked for, {full}"

    found: Target | None = PLUGINS.load(name, lambda make: make(threads), lacks)
    return found


@cache
def ours() -> str:
    """reconv's version: what a block is made of, and which kernel computes it, is its choice."""
    try:
        return f"reconv {version('reconv')}"
    except PackageNotFoundError:
        return "reconv as it lies"


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
