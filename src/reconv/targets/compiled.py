"""torch.compile: Inductor, with the weights as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reconv.errors import conv_error
from reconv.ops.native import native_version
from reconv.targets.engine import Job, machine
from reconv.targets.timing import Runner, Timing, interleave


class TorchCompiled:
    """PyTorch's compiler. Networks are compiled for the number of threads that they run with.

    Args:    threads: that the network will have where it runs; None: as many as torch has now.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.name = "torch.compile" if threads is None else f"torch.compile:{threads}"

    def fingerprint(self) -> str:
        threads = self.threads or torch.get_num_threads()
        return f"torch.compile {torch.__version__} | {native_version()} | {threads} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            return interleave([_runner(job) for job in jobs], seconds, burst=burst)
        finally:
            torch.set_num_threads(before)


def compiled(function: Callable[..., Any], frozen: bool = True) -> Callable[..., Any]:
    """torch.compile of a function or network; `frozen`: its weights are constants, for calls without gradients.

    The compiler keeps what it made with the code that it was called for, and only a few versions of it: so each
    function gets a code object of its own.
    """

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace()
    return torch.compile(call, options={"freezing": True} if frozen else None)


def _runner(job: Job) -> Runner:
    model, inputs = job
    function = compiled(model)

    def run() -> object:
        with torch.no_grad():
            return function(*inputs)

    try:
        run()
    except Exception as error:  # of Dynamo, Inductor or the C++ compiler
        first = " ".join(str(error).split())[:300]
        raise conv_error("target", "torch.compile must be able to run the network", also=RuntimeError,
                         got={"model": type(model).__name__, "error": repr(f"{type(error).__name__}: {first}")},
                         ) from error  # fmt: skip
    return run
