"""`Ways`: how a convolution and its gradients are computed, chosen once for each problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from reconv.ops import problem as problems
from reconv.ops.dispatch import ORDINARY, alike, choose, saving_ms, worth_a_call
from reconv.ops.kernel import CHANNELS_LAST, CONV, TORCH, Run, conv_by_torch, transposed_by_torch
from reconv.ops.native import calls
from reconv.ops.problem import Problem, are_numbers, channels_innermost, has_sides, is_mistaken

OVERHEAD_MS = 0.03  # of a torch.autograd.Function, forward and backward


class Ways:
    """The chosen kernels of one convolution. `problem` is None where torch must say what is wrong with it."""

    def __init__(self, problem: Problem | None, by_torch: Callable[..., Tensor]) -> None:
        self.problem, self.by_torch = problem, by_torch
        self.kernel = TORCH if problem is None else choose(problem)
        if problem is not None and not worth_a_call(problem):
            self.kernel = TORCH
        if problem is None or self.kernel is TORCH:
            self.run: Callable[[Tensor, Tensor, Tensor | None], Tensor] = by_torch
        else:
            run = self.kernel.prepare(problem)
            self.run = _of_transposed(run) if problem.transposed else _of_plain(run)

    @property
    def are_torch(self) -> bool:
        """Whether there is nothing to choose: neither forward nor, where gradients may be wanted, for training."""
        return self.kernel is TORCH and not (is_grad_enabled() and self.gains)

    def takes(self, bias: Any) -> bool:
        """Whether it is a dense bias of as many channels as there are outputs."""
        known = self.problem
        if known is None or type(bias) not in ORDINARY or bias.layout is not torch.strided:
            return False
        channels = known.x[1] if known.transposed else known.w[0]
        return bool(bias.shape == (channels,) and bias.stride() == (1,))

    @cached_property
    def gains(self) -> bool:
        """Whether training gains by it: the three passes save more than the way through Python costs."""
        if self.problem is None:
            return False
        _, strides = self.problem.wanted
        return sum(map(saving_ms, (self.problem, *problems.gradients(self.problem, strides)))) > OVERHEAD_MS

    def gradients(self, grad: Tensor, input: Tensor, weight: Tensor, mask: Sequence[bool]) -> list[Tensor | None]:
        """The gradients to the input, the weight and the bias, where the mask wants them."""
        assert self.problem is not None
        last = channels_innermost(*self._given()) and self.problem.dims > 1
        grad = grad.contiguous(memory_format=CHANNELS_LAST[self.problem.dims] if last else torch.contiguous_format)
        runs = self._gradients(grad.stride())
        x, y = (grad, input) if self.problem.transposed else (input, grad)
        found = [run(x, weight, None, y) if wanted else None for run, wanted in zip(runs, mask, strict=False)]
        return [*found, grad.sum([0, *range(2, grad.ndim)]) if mask[2] else None]

    def _given(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        known = self.problem
        assert known is not None
        return (known.y, known.y_stride) if known.transposed else (known.x, known.x_stride)

    def _gradients(self, grad_stride: tuple[int, ...]) -> list[Run]:
        if grad_stride not in self._known:
            assert self.problem is not None
            both = problems.gradients(self.problem, grad_stride)
            self._known[grad_stride] = [choose(p).prepare(p) for p in both]
        return self._known[grad_stride]

    @cached_property
    def _known(self) -> dict[tuple[int, ...], list[Run]]:
        return {}


def _of_plain(run: Run) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return lambda input, weight, bias: run(input, weight, bias, None)


def _of_transposed(run: Run) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return lambda input, weight, bias: run(None, weight, bias, input)


@lru_cache(maxsize=4096)
def ways(dims: int, shape: tuple[int, ...], strides: tuple[int, ...], weight: tuple[int, ...],
         weight_stride: tuple[int, ...], bias: bool, stride: Any, padding: Any, dilation: Any, groups: int,
         dtype: torch.dtype, threads: int) -> Ways:  # fmt: skip
    """Of torch.nn.functional's convolution on tensors of these shapes and strides. bias: whether there is one."""
    of_bias = (weight[:1], (1,)) if bias else True
    known = problems.forward(dims, shape, strides, weight, weight_stride, of_bias, stride, padding, dilation, groups,
                             dtype, threads)  # fmt: skip
    if has_sides(padding) or (known is not None and (  # what conv_by_torch does otherwise than torch
        known.even_padding is None or is_mistaken(dtype, groups, (shape, strides), (weight, weight_stride))
    )):  # fmt: skip
        return Ways(known, lambda x, w, b: conv_by_torch(dims, x, w, b, stride, padding, dilation, groups))
    function = CONV[dims]
    return Ways(known, lambda x, w, b: function(x, w, b, stride, padding, dilation, groups))


@lru_cache(maxsize=4096)
def transposed_ways(dims: int, shape: tuple[int, ...], strides: tuple[int, ...], weight: tuple[int, ...],
                    weight_stride: tuple[int, ...], bias: bool, stride: Any, padding: Any, dilation: Any,
                    output_padding: Any, groups: int, dtype: torch.dtype, threads: int) -> Ways:  # fmt: skip
    """The same of a transposed convolution."""
    of_bias = ((weight[1] * groups,), (1,)) if bias and len(weight) > 1 else True
    known = problems.transposed(dims, shape, strides, weight, weight_stride, of_bias, stride, padding, dilation,
                                output_padding, groups, dtype, threads)  # fmt: skip
    settings = (stride, padding, output_padding, groups, dilation)
    return Ways(known, lambda x, w, b: transposed_by_torch(dims, x, w, b, *settings))


# -- what is known of a call ----------------------------------------------------------------------
def _nothing(*call: Any) -> None:
    """Where csrc/calls.cpp was not built, each call is told anew from the sizes of its tensors."""


find: Callable[..., Ways | None] = calls.find if calls else _nothing  # (settings, threads, input, weight, bias)


def learned(settings: tuple[Any, ...], threads: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> Ways | None:
    """What `find` gives from now on; None where PyTorch must see the tensors, whatever they are.

    Args:    settings: (dims, stride, padding, dilation, groups), or of a transposed convolution (dims, stride, padding,
             dilation, output padding, groups).
    """
    if weight is None or not alike(input, weight, bias) or weight.layout is not torch.strided:
        return None
    if not are_numbers(settings):  # 1.0 would be remembered for 1
        return None
    tensors = (input.shape, input.stride(), weight.shape, weight.stride(), bias is not None)
    dims, *others = settings
    make = ways if len(settings) == 5 else transposed_ways
    found = make(dims, *tensors, *others, input.dtype, threads)
    if bias is not None and not found.takes(bias):
        found = Ways(None, found.by_torch)
    if calls:
        calls.learn(settings, threads, input, weight, bias, found)
    return found


def forget() -> None:
    """All choices are made anew."""
    ways.cache_clear()
    transposed_ways.cache_clear()
    if calls:
        calls.forget()
