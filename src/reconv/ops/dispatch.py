"""Which kernel computes a convolution: the first one, in order of preference, that does not refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from reconv.ops import direct
from reconv.ops.problem import Problem, channels_last_strides

Size = int | Sequence[int]
Run = Callable[..., Tensor]  # of input, weight and bias


@dataclass(frozen=True)
class Kernel:
    """One way to compute a convolution.

    `refuse` tells why it does not serve a problem, or None; `prepare` makes the function that computes it.
    """

    name: str
    prepare: Callable[[Problem], Run]
    refuse: Callable[[Problem], str | None]


TORCH: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _torch(problem: Problem) -> Run:
    function, settings = TORCH[problem.dims], (problem.stride, problem.padding, problem.dilation, problem.groups)
    return lambda input, weight, bias: function(input, weight, bias, *settings)


KERNELS: dict[str, tuple[Kernel, ...]] = {
    "conv": (
        Kernel("direct", direct.prepare, direct.refuse),
        Kernel("torch", _torch, lambda problem: None),
    ),
}


def choose(op: str, problem: Problem) -> Kernel:
    """The first kernel of KERNELS[op] that does not refuse; the last, PyTorch, never does."""
    return next(kernel for kernel in KERNELS[op] if kernel.refuse(problem) is None)


def convolve(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
             dilation: Size, groups: int) -> Tensor:  # fmt: skip
    """A convolution by the chosen kernel; arguments and result are those of torch.nn.functional's."""
    if is_plain(input, weight, bias):
        if type(stride) is list or type(padding) is list or type(dilation) is list:
            stride, padding, dilation = (tuple(v) if type(v) is list else v for v in (stride, padding, dilation))
        run = _prepared(dims, input.shape, input.stride(), weight.shape, weight.stride(),
                        bias is None or (bias.shape, bias.stride()),
                        stride, padding, dilation, groups, input.dtype, torch.get_num_threads())  # fmt: skip
        return run(input, weight, bias)
    return TORCH[dims](input, weight, bias, stride, padding, dilation, groups)


@lru_cache(maxsize=4096)
def _prepared(*problem: Any) -> Run:
    known = Problem(*problem)
    return choose("conv", known).prepare(known)


def convolve_first(
    dims: int, input: Tensor, tensors: Sequence[Tensor | None], settings: tuple[Any, ...]
) -> tuple[int, Tensor]:
    """The first of some convolutions that follow each other, as many as one call of a kernel computes.

    Args:    tensors: weight and bias of each. settings: (stride, padding, dilation, groups) of each, as tuples,
             whether a ReLU follows it, and the side of the squares that are pooled then (1: none).
    Returns: how many were computed, which may be 0, and what the last of them gives.
    """
    if not is_plain(input, *tensors):
        return 0, input
    kinds = tuple([t is None or (t.shape, t.stride()) for t in tensors])
    count, run = _prepared_first(dims, input.shape, input.stride(), kinds, settings, input.dtype,
                                 torch.get_num_threads())  # fmt: skip
    return count, run(input, *tensors[: 2 * count]) if run else input


@lru_cache(maxsize=4096)
def _prepared_first(dims: int, shape: tuple[int, ...], strides: tuple[int, ...], kinds: tuple[Any, ...],
                    settings: tuple[Any, ...], dtype: torch.dtype, threads: int) -> tuple[int, Run | None]:  # fmt: skip
    problems: list[Problem] = []
    for (weight, weight_stride), bias, each in zip(kinds[::2], kinds[1::2], settings, strict=True):
        stride, padding, dilation, groups, relu, pool = each
        problem = Problem(dims, shape, strides, weight, weight_stride, bias, stride, padding, dilation, groups, dtype,
                          threads, relu, pool)  # fmt: skip
        if choose("conv", problem).name != "direct":
            break
        problems.append(problem)
        shape = (shape[0], weight[0], *direct.output_size(problem))
        strides = channels_last_strides(shape)
    return len(problems), direct.prepare(*problems) if problems else None


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but numbers is asked for: eager mode, ordinary CPU tensors of one dtype, and no gradients.

    Elsewhere (autograd, torch.compile, export, tracing, functorch, dispatch modes, autocast) PyTorch's own operators
    are what the surroundings know.
    """
    if (
        torch.compiler.is_compiling()
        or _tracing() is not None
        or _dispatch_modes()
        or _function_modes()
        or _functorch() is not None
        or forward_ad._current_level >= 0
        or _autocast("cpu")
    ):
        return False
    dtype, grad = getattr(tensors[0], "dtype", None), torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (
            ((kind := type(tensor)) is not Parameter and kind is not Tensor)
            or tensor.dtype is not dtype
            or not tensor.is_cpu
            or tensor.layout is not _strided
            or tensor.is_neg()  # a view that negates: its memory is not its value
            or (grad and tensor.requires_grad)
        ):
            return False
    return True


_autocast = torch.is_autocast_enabled
_strided = torch.strided
_tracing = torch._C._get_tracing_state
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_functorch = torch._C._functorch.peek_interpreter_stack
