"""`.onnx` files as networks of modules, converted by onnx2pytorch and compared with ONNX Runtime."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reconv.errors import ConvError, conv_error

PACKAGES = ("onnx", "onnx2pytorch", "onnxruntime")
TOLERANCE = 1e-3  # of the largest output
ANY_BATCH = 2


def read_onnx(path: Path) -> nn.Module:
    """The network of an ONNX file, in evaluation mode.

    It is run once beside ONNX Runtime, where all sizes but the batch are numbers: a conversion that computes something
    else is an error.

    Raises:  ConvError: when a package or the file is missing or the file is damaged, when the converter lacks an
             operator (named) or fails at it, or when the outputs differ.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise conv_error("onnx", f"reading .onnx needs {', '.join(PACKAGES)}", got={"missing": ", ".join(missing)},
                         do="pip install 'reconv[onnx-import]'.", also=ImportError)  # fmt: skip
    import onnx

    if not path.is_file():
        raise conv_error("onnx", "the file must exist", got={"file": path}, also=FileNotFoundError)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf's, onnx's or the disk's own kinds
        raise conv_error("onnx", "the file must be a whole ONNX model", got={"file": path, "error": _quoted(error)},
                         also=ValueError) from error  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from onnx2pytorch import ConvertModel

            network: nn.Module = ConvertModel(model, experimental=True).eval()
            _check(network, path)
    except ConvError:
        raise
    except Exception as error:
        raise conv_error("onnx", "the converter onnx2pytorch must know every operator of the file",
                         got={"file": path, "error": _quoted(error), "operators": _operators(model)},
                         do="Give the network's code instead: file.py:callable.",
                         also=NotImplementedError) from error  # fmt: skip
    return network


def _check(network: nn.Module, path: Path) -> None:
    """Runs both on random inputs; only where the file says how large these are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {given.name: x for given in session.get_inputs() if (x := _example(given)) is not None}
    if len(inputs) < len(session.get_inputs()):
        return
    expected = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        got = network(*inputs.values())
    for a, b in zip(expected, got if isinstance(got, tuple | list) else [got], strict=True):
        a = torch.from_numpy(a)
        apart = (
            (a.double() - b.double()).abs().max().item()
            if a.shape == b.shape and a.numel()
            else float(a.shape != b.shape)
        )
        if not apart <= TOLERANCE * max(a.abs().max().item() if a.numel() else 0, 1e-6):
            raise conv_error("onnx", "the converted network must compute what ONNX Runtime computes", also=RuntimeError,
                             got={"file": path, "apart": f"{apart:.3g}", "shape": tuple(b.shape)},
                             do="Give the network's code instead: file.py:callable.")  # fmt: skip


def _example(given: Any) -> torch.Tensor | None:
    """Random numbers of an input's shape; None where more than the batch is open, or it holds no float32."""
    batch, *sizes = given.shape or [None]
    if given.type != "tensor(float)" or not all(isinstance(size, int) for size in sizes):
        return None
    shape = (batch if isinstance(batch, int) else ANY_BATCH, *sizes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _operators(model: Any) -> str:
    return ", ".join(sorted({node.op_type for node in model.graph.node}))


def _quoted(error: Exception) -> str:
    return repr(" ".join(f"{type(error).__name__}: {error}".split())[:200])
