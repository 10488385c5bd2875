"""Networks as ONNX in memory, for the engines that run it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from reconv.errors import conv_error
from reconv.surgery.clone import clone
from reconv.targets.engine import Job
from reconv.targets.timing import Runner

Make = Callable[[bytes, Sequence[Any], int], Callable[[], Sequence[Any]]]  # of a model, its inputs as arrays, threads


def check_packages(engine: str, extra: str, *packages: str) -> None:
    """Raises ConvError, an ImportError, where a package is missing."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise conv_error("target", f"{engine} needs {', '.join(packages)}", got={"missing": ", ".join(missing)},
                         do=f"pip install 'reconv[{extra}]'.", also=ImportError)  # fmt: skip


def to_runner(job: Job, make: Make, threads: int) -> Runner:
    """A network and its inputs as a call of an engine.

    Raises:  ConvError: where torch cannot export the network, or the engine does not know an operator of it.
    """
    model, inputs = job
    arrays = [x.detach().cpu().contiguous().numpy() for x in inputs if isinstance(x, Tensor)]
    try:
        run = make(onnx_bytes(*job), arrays, threads)
        run()
    except Exception as error:  # of the exporter's or the engine's own kinds
        first = " ".join(str(error).split())[:300]
        raise conv_error("target", "the engine must be able to run the network", also=RuntimeError,
                         got={"model": type(model).__name__, "error": repr(f"{type(error).__name__}: {first}")},
                         ) from error  # fmt: skip
    return run


def onnx_bytes(model: torch.nn.Module, inputs: tuple[Any, ...]) -> bytes:
    """The network in evaluation mode, with its weights, for inputs of just these shapes."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(clone(model).cpu().eval(), inputs, dynamo=True, verbose=False)
        assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says much about itself; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
