"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reconv.targets.exported import ExportedEngine


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


class OnnxRuntime(ExportedEngine):
    """Networks exported to ONNX and run by ONNX Runtime. `threads` work on an operator."""

    engine, title, extra = "onnxruntime", "ONNX Runtime", "onnx"
    make = staticmethod(runner)
