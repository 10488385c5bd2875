"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reconv.targets.engine import Job, machine
from reconv.targets.exported import check_packages, to_runner
from reconv.targets.timing import Timing, interleave


class OpenVino:
    """Networks exported to ONNX and run by OpenVINO, in float32 where they are.

    Args:    threads: that OpenVINO may use; None: as many as torch has now.
    """

    def __init__(self, threads: int | None = None) -> None:
        check_packages("OpenVINO", "openvino", "onnx", "onnxscript", "openvino")
        self.threads = threads
        self.name = "openvino" if threads is None else f"openvino:{threads}"

    def fingerprint(self) -> str:
        import openvino

        threads = self.threads or torch.get_num_threads()
        return f"openvino {openvino.__version__} | torch {torch.__version__} | {threads} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        threads = self.threads or torch.get_num_threads()
        return interleave([to_runner(job, runner, threads) for job in jobs], seconds, burst=burst)


def runner(model: bytes, arrays: Sequence[Any], threads: int) -> Callable[[], Sequence[Any]]:
    """A call of a model on these inputs, which gives its outputs as arrays: views that the next call fills."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    for place, array in enumerate(arrays):
        request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))
    outputs = [tensor.data for tensor in request.output_tensors]

    def run() -> Sequence[Any]:
        request.start_async()  # infer() of the Python binding copies what comes out
        request.wait()
        return outputs

    return run
