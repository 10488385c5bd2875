"""The tensors of a task: drawn once, then given to each engine in its memory format and dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import torch
from torch import Tensor

from reconv.benching.task import Task, specs_of
from reconv.spec import Deform


@dataclass(frozen=True)
class Operands:
    """Args:    weights: of each convolution. gradient: to the output. offset, mask: of a deformable one."""

    input: Tensor
    weights: tuple[Tensor, ...]
    bias: Tensor | None
    gradient: Tensor
    offset: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, task: Task) -> Operands:
        """Random numbers, the same ones for the same task."""
        generator, dtype = torch.Generator().manual_seed(crc32(str(task).encode())), getattr(torch, task.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        specs = specs_of(task.block)
        drawn = cls(
            normal(*task.input_shape),
            tuple(normal(*spec.weight_shape) for spec in specs),
            normal(specs[-1].out_channels) if specs[-1].bias else None,
            normal(*task.output_shape),
        )
        if not isinstance(task.block, Deform):
            return drawn
        (batch, _, *out), width = task.output_shape, task.block.offset_conv.out_channels
        points = width // (len(out) + task.block.modulated)
        shape = (batch, points * len(out), *out)
        # between the samples of the map, so that rounding leads no point into another cell: there gradients jump
        offset = (torch.randint(-16, 16, shape, generator=generator) / 8 + 1 / 16).to(dtype)
        mask = torch.rand((batch, points, *out), generator=generator).to(dtype) if task.block.modulated else None
        return replace(drawn, offset=offset, mask=mask)

    def laid(self, layout: str) -> Operands:
        """In a memory format, as a network in that format holds them."""
        one_d = self.input.ndim == 3  # PyTorch has no such format for weights of 1D convolutions
        return replace(
            self,
            input=laid(self.input, layout),
            gradient=laid(self.gradient, layout),
            weights=self.weights if one_d else tuple(laid(weight, layout) for weight in self.weights),
            offset=None if self.offset is None else laid(self.offset, layout),
            mask=None if self.mask is None else laid(self.mask, layout),
        )

    def double(self) -> Operands:
        bias, offset, mask = (
            value if value is None else value.double() for value in (self.bias, self.offset, self.mask)
        )
        weights = tuple(weight.double() for weight in self.weights)
        return Operands(self.input.double(), weights, bias, self.gradient.double(), offset, mask)

    def leaves(self) -> list[Tensor]:
        """All that training has gradients to."""
        found = (self.input, *self.weights, self.bias, self.offset, self.mask)
        return [value for value in found if value is not None]

    def trained(self) -> Operands:
        """The same tensors as leaves of a graph."""

        def leaf(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.detach().requires_grad_()

        weights = tuple(weight.detach().requires_grad_() for weight in self.weights)
        return Operands(self.input.detach().requires_grad_(), weights, leaf(self.bias), self.gradient,
                        leaf(self.offset), leaf(self.mask))  # fmt: skip


def laid(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in a memory format, in any number of dimensions: channels_last of 1D is (N, L, C) in memory."""
    if layout == "channels_last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    return tensor.contiguous()
