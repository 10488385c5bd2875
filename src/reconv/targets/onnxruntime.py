"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reconv.targets.engine import Job, machine
from reconv.targets.exported import check_packages, to_runner
from reconv.targets.timing import Timing, interleave


class OnnxRuntime:
    """Networks exported to ONNX and run by ONNX Runtime.

    Args:    threads: that work on an operator; None: as many as torch has now.
    """

    def __init__(self, threads: int | None = None) -> None:
        check_packages("ONNX Runtime", "onnx", "onnx", "onnxscript", "onnxruntime")
        self.threads = threads
        self.name = "onnxruntime" if threads is None else f"onnxruntime:{threads}"

    def fingerprint(self) -> str:
        import onnxruntime

        threads = self.threads or torch.get_num_threads()
        return f"onnxruntime {onnxruntime.__version__} | torch {torch.__version__} | {threads} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        threads = self.threads or torch.get_num_threads()
        return interleave([to_runner(job, runner, threads) for job in jobs], seconds, burst=burst)


def runner(model: bytes, arrays: Sequence[Any], threads: int) -> Callable[[], Sequence[Any]]:
    """A call of a model on these inputs, which gives its outputs as arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    # its threads would go on spinning while the other engines of an interleaved measurement run
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip([given.name for given in session.get_inputs()], arrays, strict=True))
    return lambda: session.run(None, inputs)
