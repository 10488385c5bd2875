"""Convolutions that autograd differentiates, each pass by its own kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reconv.ops.dispatch import PLAIN, batched, plainness
from reconv.ops.ways import Ways


def differentiated(ways: Ways, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the chosen kernel gives, with the gradients that the others compute."""
    output: Tensor = _Convolution.apply(input, weight, bias, ways)  # type: ignore[no-untyped-call]
    return output


class _Convolution(torch.autograd.Function):
    """A convolution by its `Ways`; derivatives of the derivative are PyTorch's."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, ways: Ways) -> Tensor:
        ctx.ways = ways
        ctx.save_for_backward(input, weight, bias)
        return ways.run(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled() and plainness(grad, input, weight) == PLAIN and not batched(grad):
            return *ctx.ways.gradients(grad, input, weight, mask), None
        with torch.enable_grad():  # another derivative may be wanted of what is found here
            # views: one given tensor may have been computed from another
            seen = [t if t is None else t.view_as(t) for t in (input, weight, bias)]
            output = ctx.ways.by_torch(*seen)
        wanted = [t for t, needed in zip(seen, mask, strict=True) if t is not None and needed]
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=torch.is_grad_enabled()))
        return *(next(found) if needed else None for needed in mask), None
