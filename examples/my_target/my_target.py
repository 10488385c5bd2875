"""An engine of one's own: TorchScript, each network traced and frozen."""

import warnings
from collections.abc import Sequence

import torch

from reconv.targets import Timing, interleave, machine


class Traced:
    """What `torch.jit.trace` makes of a network, its weights as constants. `threads`: None for as many as torch has."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.name = "traced" if threads is None else f"traced:{threads}"

    def fingerprint(self) -> str:
        """All that changes a latency: what was measured under another one is measured again."""
        return f"traced {torch.__version__} | {self.threads or torch.get_num_threads()} threads | {machine()}"

    def measure(self, jobs: Sequence, seconds: float, burst: int = 1) -> list[Timing]:
        """Latencies of networks on their inputs, call by call in turn; it may raise what it cannot run."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            return interleave([self._runner(*job) for job in jobs], seconds, burst=burst)
        finally:
            torch.set_num_threads(before)

    def _runner(self, model: torch.nn.Module, inputs: tuple):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.freeze(torch.jit.trace(model, inputs))

        def run() -> object:
            with torch.no_grad():
                return traced(*inputs)

        return run
