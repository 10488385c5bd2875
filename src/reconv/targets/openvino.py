"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reconv.targets.exported import ExportedEngine


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


class OpenVino(ExportedEngine):
    """Networks exported to ONNX and run by OpenVINO, in float32 where they are."""

    engine, title, extra = "openvino", "OpenVINO", "openvino"
    deform_conv = False
    make = staticmethod(runner)
