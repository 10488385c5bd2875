"""Convolutions of every kind, each by the kernel that was chosen for it; arguments as torch.nn.functional's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, get_num_threads

from reconv.ops import direct, problem, separable_native
from reconv.ops.autograd import differentiated
from reconv.ops.dispatch import NOT_PLAIN, PLAIN, WANTS_GRADIENTS, asked_for, choose, eager, plainness, watched
from reconv.ops.kernel import conv_by_torch, transposed_by_torch
from reconv.ops.problem import Size, dense_strides
from reconv.ops.registered import arguments, opaque
from reconv.ops.ways import Ways, find, learned, transposed_ways, ways


def convolve(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
             dilation: Size, groups: int) -> Tensor:  # fmt: skip
    """A convolution; padding may also be a tuple of (lo, hi) pairs, one for each axis."""
    if eager():
        if type(stride) is list or type(padding) is list or type(dilation) is list:
            stride, padding, dilation = hashable(stride), hashable(padding), hashable(dilation)
        settings, threads = (dims, stride, padding, dilation, groups), get_num_threads()
        found = find(settings, threads, input, weight, bias) or learned(settings, threads, input, weight, bias)
        if found is not None:
            return found.by_torch(input, weight, bias) if found.are_torch else _by(found, input, weight, bias)
    elif opaque(dims, input, weight, groups, padding):
        return torch.ops.reconv.convolution(input, weight, bias, *arguments(dims, stride, padding, dilation), groups)
    return conv_by_torch(dims, input, weight, bias, stride, padding, dilation, groups)


def convolve_transposed(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Any,
                        output_padding: Size, groups: int, dilation: Size) -> Tensor:  # fmt: skip
    """A transposed convolution; padding may also be a tuple of (lo, hi) pairs, one for each axis."""
    if eager():
        settings = (dims, *map(hashable, (stride, padding, dilation, output_padding)), groups)
        threads = get_num_threads()
        found = find(settings, threads, input, weight, bias) or learned(settings, threads, input, weight, bias)
        if found is not None:
            return found.by_torch(input, weight, bias) if found.are_torch else _by(found, input, weight, bias)
    elif opaque(dims, input, weight, groups, padding):
        each = arguments(dims, stride, padding, dilation, True, output_padding)
        return torch.ops.reconv.convolution(input, weight, bias, *each, groups)
    return transposed_by_torch(dims, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _by(found: Ways, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By the chosen kernels, where nothing but numbers is asked for."""
    plain = NOT_PLAIN if watched() else asked_for(input, weight, bias)
    if plain == PLAIN:
        return found.run(input, weight, bias)
    if plain == WANTS_GRADIENTS and found.gains:
        return differentiated(found, input, weight, bias)
    return found.by_torch(input, weight, bias)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, stride: Size, padding: Any, dilation: Size, transposed: bool,
    output_padding: Size, groups: int, mask: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of a convolution to its input, weight and bias, where the mask wants them."""
    dims = weight.ndim - 2
    stride, padding, dilation, output_padding = map(hashable, (stride, padding, dilation, output_padding))
    known = (dims, input.shape, input.stride(), weight.shape, weight.stride(), False, stride, padding, dilation)
    rest = (groups, input.dtype, torch.get_num_threads())
    found = transposed_ways(*known, output_padding, *rest) if transposed else ways(*known, *rest)
    return found.gradients(grad, input, weight, mask)


def hashable(value: Any) -> Any:
    return tuple(value) if type(value) is list else value


def separable(dims: int, input: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Size,
              padding: Any, dilation: Size) -> Tensor | None:  # fmt: skip
    """A depthwise convolution and a pointwise one by one kernel; None where two are better, or must be seen."""
    if plainness(input, depthwise, pointwise, bias) != PLAIN:
        return None
    weights = (depthwise.shape, depthwise.stride()), (pointwise.shape, pointwise.stride())
    first = (hashable(stride), hashable(padding), hashable(dilation), input.shape[-dims - 1], False, 1)
    of_bias = bias is None or (bias.shape, bias.stride())
    kinds = (weights[0], True, weights[1], of_bias)
    run = _pair(dims, input.shape, input.stride(), kinds, (first, (1, 0, 1, 1, False, 1)), input.dtype,
                torch.get_num_threads())  # fmt: skip
    return run(input, depthwise, None, pointwise, bias) if run else None


# -- several at once ------------------------------------------------------------------------------
def convolve_first(
    dims: int, input: Tensor, tensors: Sequence[Tensor | None], settings: tuple[Any, ...]
) -> tuple[int, Tensor]:
    """The first of some convolutions that follow each other, as many as one call of a kernel computes.

    Args:    tensors: weight and bias of each. settings: (stride, padding, dilation, groups) of each, as tuples,
             whether a ReLU follows it, and the side of the squares that are pooled then (1: none).
    Returns: how many were computed, which may be 0, and what the last of them gives.
    """
    if plainness(input, *tensors) != PLAIN:
        return 0, input
    kinds = tuple([t is None or (t.shape, t.stride()) for t in tensors])
    count, run = _first(dims, input.shape, input.stride(), kinds, settings, input.dtype, torch.get_num_threads())
    return count, run(input, *tensors[: 2 * count]) if run else input


@lru_cache(maxsize=4096)
def _first(dims: int, shape: tuple[int, ...], strides: tuple[int, ...], kinds: tuple[Any, ...],
           settings: tuple[Any, ...], dtype: torch.dtype, threads: int) -> tuple[int, Any]:  # fmt: skip
    if pair := _pair(dims, shape, strides, kinds, settings, dtype, threads):
        return 2, pair
    found: list[problem.Problem] = []
    for (weight, weight_stride), bias, each in zip(kinds[::2], kinds[1::2], settings, strict=True):
        stride, padding, dilation, groups, relu, pool = each
        known = problem.forward(dims, shape, strides, weight, weight_stride, bias, stride, padding, dilation, groups,
                                dtype, threads, relu, pool)  # fmt: skip
        if known is None or choose(known).name != "direct":
            break
        found.append(known)
        shape = (shape[0], weight[0], *direct.output_size(known))
        strides = dense_strides(shape, channels_last=True)
    return len(found), direct.prepare(*found) if found else None


@lru_cache(maxsize=4096)
def _pair(dims: int, shape: tuple[int, ...], strides: tuple[int, ...], kinds: tuple[Any, ...],
          settings: tuple[Any, ...], dtype: torch.dtype, threads: int) -> Any:  # fmt: skip
    """The function of input, weights and biases that computes the first two of some convolutions by the separable
    kernel, where they are a depthwise and a pointwise one that it serves.
    """
    if len(settings) < 2:
        return None
    (weight, weight_stride), bias, pointwise, pointwise_bias = kinds[:4]
    stride, padding, dilation, groups, relu, pool = settings[0]
    *again, second_relu, second_pool = settings[1]
    known = problem.forward(dims, shape, strides, weight, weight_stride, bias, stride, padding, dilation, groups, dtype,
                            threads, relu)  # fmt: skip
    if known is None or (pool, second_pool) != (1, 1) or separable_native.refuse(known, pointwise):
        return None
    then = problem.forward(dims, known.y, known.y_stride, pointwise[0], pointwise[1], pointwise_bias, again[0],
                           again[1], again[2], again[3], dtype, threads)  # fmt: skip
    if then is None or then.groups != 1 or then.y[2:] != known.y[2:] or any(map(any, then.padding)):
        return None
    return separable_native.prepare(known, pointwise, threads, second_relu)
