"""`.onnx` files as networks of modules, converted by onnx2pytorch and compared with ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from reconv.errors import ConvError, check_packages, conv_error, on_one_line
from reconv.rewriting.agreement import agreement

PACKAGES = ("onnx", "onnx2pytorch", "onnxruntime")
ANY_BATCH = 2


def read_onnx(path: Path) -> nn.Module:
    """The network of an ONNX file, in evaluation mode.

    It is run once beside ONNX Runtime: a conversion that computes something else is an error. Where more than the batch
    is open, or an input holds no float32, there is nothing to run, and a warning says so.

    Raises:  ConvError: when a package or the file is missing or the file is damaged, when the converter lacks an
             operator (named) or fails at it, or when the outputs differ.
    """
    check_packages("onnx", "reading .onnx", "onnx-import", PACKAGES)
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
        from onnx2pytorch import ConvertModel
    except Exception as error:  # of any package that it imports
        raise conv_error("onnx", "the package onnx2pytorch must import", got={"error": _quoted(error)},
                         also=ImportError) from error  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = _as_graph(ConvertModel(model, experimental=True).eval())
        _check(network, path)
    except ConvError:
        raise
    except Exception as error:
        raise conv_error("onnx", "the converter onnx2pytorch must know every operator of the file",
                         got={"file": path, "error": _quoted(error), "operators": _operators(model)},
                         do="Give the network's code instead: file.py:callable.",
                         also=NotImplementedError) from error  # fmt: skip
    return network


class _Tracer(fx.Tracer):
    """Calls the converter's modules as they are, with as many inputs as the file has."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        names: Any = self.root.input_names
        inputs = [self.create_proxy("placeholder", f"input_{n}", (), {}) for n, _ in enumerate(names)]
        return root_fn, [self.root, *inputs]


def _as_graph(network: Any) -> nn.Module:
    """The same modules, called one after another: so it is seen what follows what. Loops and branches stay as they are.

    The converter's own forward pass goes through the file's nodes, and takes any number of inputs. A constant shape is
    given as numbers, else a reshape would seem to depend on values.
    """
    from onnx2pytorch.operations.reshape import Reshape

    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever the converter's code for an operator does with what is no tensor yet
        converted: nn.Module = network
        return converted
    for node in graph.find_nodes(op="call_module"):
        module, shape = network.get_submodule(str(node.target)), node.args[-1]
        if isinstance(module, Reshape) and isinstance(shape, fx.Node) and shape.op == "get_attr":
            module.shape, node.args = getattr(network, str(shape.target)).tolist(), node.args[:1]
            if not shape.users:
                graph.erase_node(shape)
    return fx.GraphModule(network, graph).eval()


def _check(network: nn.Module, path: Path) -> None:
    """Runs both on random inputs; where the file does not say how large or of what kind these are, that is told."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()
    inputs = {given.name: x for given in wanted if (x := _example(given)) is not None}
    if unknown := [f"{given.name}: {given.type} {given.shape}" for given in wanted if given.name not in inputs]:
        warnings.warn(f"{path} was converted, and not compared with ONNX Runtime: only the batch may be open, and "
                      f"inputs must hold float32; got {'; '.join(unknown)}", stacklevel=2)  # fmt: skip
        return
    expected = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        got = network(*inputs.values())
    try:
        agreement([torch.from_numpy(x) for x in expected], list(got) if isinstance(got, tuple | list) else [got])
    except ValueError as error:
        raise conv_error("onnx", "the converted network must compute what ONNX Runtime computes", also=RuntimeError,
                         got={"file": path, "comparison": repr(str(error))},
                         do="Give the network's code instead: file.py:callable.") from error  # fmt: skip


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
    return repr(on_one_line(error))
