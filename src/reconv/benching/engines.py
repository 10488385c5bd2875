"""The engines of a benchmark: each makes, of a task and its tensors, a function without arguments to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reconv.functional
from reconv.benching import onnx_model, peers
from reconv.benching.operands import Operands
from reconv.benching.task import Task, specs_of
from reconv.errors import conv_error, on_one_line
from reconv.ops.convolve import convolution_backward
from reconv.spec import Chain, Deform
from reconv.targets import onnxruntime, openvino
from reconv.targets.compiled import compiled
from reconv.targets.exported import Make
from reconv.targets.layout import LAYOUTS

Outputs = Tensor | Sequence[Tensor]
Runner = Callable[[], Outputs]
SLOWEST_START = 120.0  # seconds that torch.compile may take for one problem


class UnservedError(Exception):
    """An engine has nothing for a task; the text says why."""


@dataclass(frozen=True)
class Engine:
    """A column. `prepare` makes the runner for (task, tensors, threads), or raises UnservedError.

    Args:    family: what --engines calls it. layout: the memory format of the tensors that it is given.
    """

    name: str
    family: str
    layout: str
    prepare: Callable[[Task, Operands, int], Runner]


@dataclass(frozen=True)
class Library:
    """The functions of PyTorch, or ours of the same form."""

    conv: dict[int, Callable[..., Tensor]]
    conv_transpose: dict[int, Callable[..., Tensor]]
    separable: dict[int, Callable[..., Tensor]] | None = None  # None: peers'
    deform: dict[int, Callable[..., Tensor]] | None = None
    backward: Callable[..., Sequence[Tensor | None]] | None = None  # None: torch.ops.aten.convolution_backward


def _each(module: Any, name: str) -> dict[int, Callable[..., Tensor]]:
    return {dims: getattr(module, f"{name}{dims}d") for dims in (1, 2, 3)}


TORCH = Library(_each(F, "conv"), _each(F, "conv_transpose"))
OURS = Library(
    _each(reconv.functional, "conv"),
    _each(reconv.functional, "conv_transpose"),
    _each(reconv.functional, "separable_conv"),
    _each(reconv.functional, "deform_conv"),
    convolution_backward,
)


# -- PyTorch and ours -----------------------------------------------------------------------------
def eager(library: Library, task: Task, given: Operands) -> Runner:
    """The task by a library's functions, in eager mode."""
    if task.direction in ("input", "weight"):
        return _gradient(library, task, given)
    forward = _forward(library, task, given)
    if task.direction == "forward":
        return lambda: forward(given)
    leaves = given.trained()
    wanted = leaves.leaves()
    return lambda: torch.autograd.grad(forward(leaves), wanted, leaves.gradient)


def _forward(library: Library, task: Task, given: Operands) -> Callable[[Operands], Tensor]:
    specs = specs_of(task.block)
    spec, dims = specs[0], specs[0].spatial_dims
    stride, padding, dilation = spec.stride, spec.even_padding or (), spec.dilation
    if isinstance(task.block, Deform):
        if library.deform is None:
            run = peers.deformable(spec, given.input, task.output_shape[2:])
            return lambda g: run(g.input, g.offset, g.weights[0], g.bias, g.mask)
        deform = library.deform[dims]
        return lambda g: deform(g.input, g.offset, g.weights[0], g.bias, stride, padding, dilation, g.mask)
    if isinstance(task.block, Chain):
        both: Callable[..., Tensor] = library.separable[dims] if library.separable else peers.separable
        return lambda g: both(g.input, *g.weights, g.bias, stride, padding, dilation)
    if spec.transposed:
        conv, extra = library.conv_transpose[dims], spec.output_padding
        return lambda g: conv(g.input, g.weights[0], g.bias, stride, padding, extra, spec.groups, dilation)
    conv = library.conv[dims]
    return lambda g: conv(g.input, g.weights[0], g.bias, stride, padding, dilation, spec.groups)


def _gradient(library: Library, task: Task, given: Operands) -> Runner:
    """The gradient to the input alone, or to the weight alone."""
    (spec,), wanted = specs_of(task.block), ("input", "weight").index(task.direction)
    mask = (wanted == 0, wanted == 1, False)
    settings = (spec.stride, spec.even_padding, spec.dilation, spec.transposed, spec.output_padding, spec.groups, mask)
    tensors = (given.gradient, given.input, given.weights[0])
    if library.backward is None:
        return lambda: torch.ops.aten.convolution_backward(*tensors, None, *settings)[wanted]
    backward: Callable[..., Sequence[Any]] = library.backward
    return lambda: backward(*tensors, *settings)[wanted]


# -- torch.compile --------------------------------------------------------------------------------
class _Network(nn.Module):
    """The task with its weights as parameters, which the compiler may lay out anew."""

    def __init__(self, task: Task, given: Operands) -> None:
        super().__init__()
        self.forward_of, self.given = _forward(TORCH, task, given), given
        self.weights = nn.ParameterList(given.weights)
        self.bias = None if given.bias is None else nn.Parameter(given.bias)

    def forward(self, input: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.forward_of(Operands(input, tuple(self.weights), self.bias, self.given.gradient, offset, mask))


def torch_compile(task: Task, given: Operands, threads: int) -> Runner:
    """torch.compile; the weights are constants in forward passes ("freezing")."""
    if task.direction in ("input", "weight"):
        raise UnservedError("torch.compile hands single gradients to the same operators")
    network, training = _Network(task, given), task.direction == "training"
    run = compiled(network, frozen=not training)
    if training:
        leaves = given.trained()
        every = (leaves.input, *network.weights, network.bias, leaves.offset, leaves.mask)
        wanted = [leaf for leaf in every if leaf is not None]

        def runner() -> Outputs:
            return torch.autograd.grad(run(leaves.input, leaves.offset, leaves.mask), wanted, given.gradient)
    else:

        def runner() -> Outputs:
            return run(given.input, given.offset, given.mask)

    start = time.perf_counter()
    try:
        with torch.set_grad_enabled(training):
            runner()
    except Exception as error:  # of Dynamo, Inductor or the C++ compiler
        raise UnservedError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error
    if (took := time.perf_counter() - start) > SLOWEST_START:
        raise UnservedError(f"its first call took {took:.0f} s")
    return runner


# -- engines that run ONNX ------------------------------------------------------------------------
def onnx_engine(family: str, make: Make) -> Engine:
    """An engine that runs a model of one operator, with its weights as constants."""

    def prepare(task: Task, given: Operands, threads: int) -> Runner:
        if task.direction != "forward" or task.dtype != "float32":
            raise UnservedError("forward passes in float32 only")
        inputs = [t.numpy() for t in (given.input, given.offset, given.mask) if t is not None]
        try:
            run = make(onnx_model.model_of(task, given), inputs, threads)
            run()
        except Exception as error:  # of the engine's own kind: what it does not know
            raise UnservedError(on_one_line(error)) from error
        return lambda: [torch.from_numpy(out) for out in run()]

    return Engine(family, family, "contiguous", prepare)


def _eager_engine(family: str, library: Library, layout: str) -> Engine:
    return Engine(f"{family} {layout}", family, layout, lambda task, given, _: eager(library, task, given))


ENGINES: tuple[Engine, ...] = (
    *(_eager_engine("torch", TORCH, layout) for layout in LAYOUTS),
    *(_eager_engine("reconv", OURS, layout) for layout in LAYOUTS),
    Engine("torch.compile", "torch.compile", "contiguous", torch_compile),
    onnx_engine("onnxruntime", onnxruntime.runner),
    onnx_engine("openvino", openvino.runner),
)
FAMILIES = tuple(dict.fromkeys(engine.family for engine in ENGINES))


def engines_of(text: str) -> tuple[Engine, ...]:
    """The engines of a text like "torch,reconv,openvino", or "all".

    Raises:  ConvError (a ValueError): for a name that is not known.
    """
    names = FAMILIES if text == "all" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in FAMILIES]:
        raise conv_error("bench", f"engines must be of {', '.join(FAMILIES)}, or all",
                         got={"engines": ", ".join(unknown)}, also=ValueError)  # fmt: skip
    return tuple(engine for engine in ENGINES if engine.family in names)
