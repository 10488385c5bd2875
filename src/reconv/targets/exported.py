"""Networks as ONNX in memory, for the engines that run it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from reconv.errors import check_packages
from reconv.ops.deform import exported_as_deform_conv
from reconv.surgery.clone import clone
from reconv.targets.engine import Job, machine, not_run, ours
from reconv.targets.onnx_block import onnx_of
from reconv.targets.timing import Runner, Timing, interleave

Make = Callable[[bytes, Sequence[Any], int], Callable[[], Sequence[Any]]]  # of a model, its inputs as arrays, threads


class ExportedEngine:
    """An engine that runs networks as ONNX. A subclass names it and makes its calls.

    Args:    threads: that the engine may use; None: as many as torch has now.
    """

    engine: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    exports: ClassVar[bool] = True  # PyTorch's memory formats and kernels are not what runs
    deform_conv: ClassVar[bool] = True  # whether it knows ONNX's operator of this name

    def __init__(self, threads: int | None = None) -> None:
        check_packages("target", self.title, self.extra, ("onnx", "onnxscript", self.engine))
        self.threads = threads
        self.name = self.engine if threads is None else f"{self.engine}:{threads}"

    def fingerprint(self) -> str:
        version, threads = import_module(self.engine).__version__, self.threads or torch.get_num_threads()
        return f"{self.engine} {version} | torch {torch.__version__} | {ours()} | {threads} threads | {machine()}"

    def measure(self, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing]:
        threads = self.threads or torch.get_num_threads()
        return interleave([self.runner(job, threads) for job in jobs], seconds, burst=burst)

    def runner(self, job: Job, threads: int) -> Runner:
        """A network and its inputs as a call of the engine.

        Raises:  ConvError: where torch cannot export the network, or the engine does not know an operator of it.
        """
        model, inputs = job
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs if isinstance(x, Tensor)]
        try:
            run = self.make(onnx_bytes(*job, self.deform_conv), arrays, threads)
            run()
        except Exception as error:  # of the exporter's or the engine's own kinds
            raise not_run("the engine", model, error) from error
        return run

    @staticmethod
    def make(model: bytes, arrays: Sequence[Any], threads: int) -> Callable[[], Sequence[Any]]:
        """A call of a model on these inputs, which gives its outputs as arrays."""
        raise NotImplementedError


_exported: WeakKeyDictionary[torch.nn.Module, tuple[object, bytes]] = WeakKeyDictionary()


def onnx_bytes(model: torch.nn.Module, inputs: tuple[Any, ...], deform_conv: bool = True) -> bytes:
    """The network in evaluation mode, with its weights, for inputs of just these shapes.

    A network that is given again, unchanged, is not exported again: that takes torch seconds.
    """
    if (block := onnx_of(model, inputs)) is not None:
        return block
    state = (deform_conv, _state(model, inputs))
    if _exported.get(model, (None, b""))[0] != state:
        _exported[model] = (state, _traced(model, inputs, deform_conv))
    return _exported[model][1]


def _state(model: torch.nn.Module, inputs: tuple[Any, ...]) -> object:
    """What an export depends on, as far as can be seen: the modules, their tensors and the versions of these."""
    held = [(name, id(module)) for name, module in model.named_modules()]
    tensors = [
        (t.data_ptr(), None if t.is_inference() else t._version, t.shape)
        for t in (*model.parameters(), *model.buffers())
    ]
    return held, tensors, [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs]


def _traced(model: torch.nn.Module, inputs: tuple[Any, ...], deform_conv: bool) -> bytes:
    inputs = tuple(x.cpu() if isinstance(x, Tensor) else x for x in inputs)
    with quiet(), torch.no_grad(), exported_as_deform_conv(deform_conv):
        program = torch.onnx.export(clone(model).cpu().eval(), inputs, dynamo=True, verbose=False)
        assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def quiet() -> Iterator[None]:
    """torch's exporters say much about themselves; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
