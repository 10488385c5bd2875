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

Size = int | Sequence[int]


@dataclass(frozen=True)
class Kernel:
    """One way to compute a convolution. `refuse` tells why it does not serve a problem, or None."""

    name: str
    run: Callable[..., Tensor]  # (dims, input, weight, bias, stride, padding, dilation, groups)
    refuse: Callable[[direct.Problem], str | None]


TORCH: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _torch(dims: int, *arguments: Any) -> Tensor:
    return TORCH[dims](*arguments)


KERNELS: dict[str, tuple[Kernel, ...]] = {
    "conv": (
        Kernel("direct", direct.run, direct.refuse),
        Kernel("torch", _torch, lambda problem: None),
    ),
}


@lru_cache(maxsize=4096)
def choose(op: str, problem: direct.Problem) -> Kernel:
    """The first kernel of KERNELS[op] that does not refuse; the last, PyTorch, never does."""
    return next(kernel for kernel in KERNELS[op] if kernel.refuse(problem) is None)


def convolve(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
             dilation: Size, groups: int) -> Tensor:  # fmt: skip
    """A convolution by the chosen kernel; arguments and result are those of torch.nn.functional's."""
    if not is_plain(input, weight, bias):
        return _torch(dims, input, weight, bias, stride, padding, dilation, groups)
    problem = direct.Problem(
        dims, tuple(input.shape), input.stride(), tuple(weight.shape), weight.stride(),
        None if bias is None else tuple(bias.shape), _hashable(stride), _hashable(padding), _hashable(dilation), groups,
        input.dtype, torch.get_num_threads(),
    )  # fmt: skip
    return choose("conv", problem).run(dims, input, weight, bias, stride, padding, dilation, groups)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but numbers is asked for: eager mode, ordinary CPU tensors of one dtype, and no gradients.

    Elsewhere (autograd, torch.compile, export, tracing, functorch, dispatch modes, autocast) PyTorch's own operators
    are what the surroundings know.
    """
    dtype = getattr(tensors[0], "dtype", None)
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in _ORDINARY and tensor.is_cpu and tensor.dtype is dtype and tensor.layout is torch.strided
        ):
            return False
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


_ORDINARY = (Tensor, Parameter)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
