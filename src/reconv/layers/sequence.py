"""Layers one after the other: runs of plain convolutions among them are computed in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reconv.layers.conv import Conv2d
from reconv.ops.dispatch import convolve_first

Settings = tuple[Any, ...]  # of one convolution: stride, padding, dilation, groups, relu, pool


class Quick(nn.Module):
    """A call goes straight to `forward` where no hook listens: on small maps the way there costs as much."""

    def __call__(self, input: Tensor) -> Tensor:
        if type(input) is Tensor and not (_hooked(self) or _hooked_everywhere()):
            return self.forward(input)
        return super().__call__(input)


class Absorbed(Quick, nn.Identity):
    """An identity where a module was whose work another layer has taken over."""


class QuickSequential(Quick, nn.Sequential):
    """torch.nn.Sequential; plain convolutions that follow each other, with the ReLUs and poolings behind them, are
    computed in one call where a kernel does that."""

    def forward(self, input: Tensor) -> Tensor:
        steps, at = self._steps(), 0
        fresh = False  # a convolution's output, which nobody else sees
        while at < len(steps):
            if type(input) is Tensor and (run := _Run.of(steps, at)):
                count, input = convolve_first(input.ndim - 2, input, run.tensors, tuple(run.settings))
                if count:
                    at, fresh = run.ends[count - 1], True
                    continue
            part = steps[at]
            plain = not (_hooked(part) or _hooked_everywhere())
            input = input.relu_() if fresh and plain and type(part) is nn.ReLU else part(input)
            fresh, at = plain and isinstance(part, _ConvNd), at + 1
        return input

    def _steps(self) -> list[nn.Module]:
        """The parts, those of quick sequences among them in their place, without what has been absorbed."""
        steps: list[nn.Module] = []
        everywhere = _hooked_everywhere()
        for part in self._modules.values():
            if part is None:
                continue
            if everywhere or not _plain(part):
                steps.append(part)
            elif isinstance(part, QuickSequential) and type(part).forward is QuickSequential.forward:
                steps += part._steps()
            elif type(part) is not Absorbed:
                steps.append(part)
        return steps


class _Run:
    """Plain convolutions that follow each other from a step on."""

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] = []  # weight and bias of each
        self.settings: list[Settings] = []
        self.ends: list[int] = []  # the step after each, its ReLU and its pooling

    @classmethod
    def of(cls, steps: Sequence[nn.Module], at: int) -> _Run | None:
        """None where there is none, or where calling the modules would do more than compute."""
        run = cls()
        if _hooked_everywhere():
            return None
        for end, part in enumerate(steps[at:], at + 1):
            if not _plain(part) or not run.takes(part, type(part)):
                break
            run.ends[-1] = end
        return run if run.settings else None

    def takes(self, part: Any, kind: type) -> bool:
        if (kind is Conv2d or kind is nn.Conv2d) and part.padding_mode == "zeros":
            parameters = part._parameters
            self.tensors += (parameters.get("weight"), parameters.get("bias"))
            self.settings.append((part.stride, part.padding, part.dilation, part.groups, False, 1))
            self.ends.append(0)
            return True
        if not self.settings:
            return False
        *conv, relu, pool = self.settings[-1]
        if kind is nn.ReLU and pool == 1:
            relu = True
        elif kind is nn.MaxPool2d and pool == 1 and (side := _side(part)):
            pool = side
        else:
            return False
        self.settings[-1] = (*conv, relu, pool)
        return True


def _side(pool: nn.MaxPool2d) -> int | None:
    """Of the squares that a pooling takes the largest value of, where they lie side by side."""
    size = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size,) * 2
    stride = pool.stride if isinstance(pool.stride, tuple) else (pool.stride,) * 2
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    square = size[0] == size[1] and size == stride
    return size[0] if plain and square and not pool.ceil_mode and not pool.return_indices else None


def quicken(model: nn.Module, name: str) -> None:
    """Makes the torch.nn.Sequential that directly holds the module of this name a quick one, in place."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if type(parent) is nn.Sequential:
        parent.__class__ = QuickSequential


def _plain(module: nn.Module) -> bool:
    """Whether calling the module does no more than its class says."""
    return not _hooked(module) and "forward" not in module.__dict__


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _hooked_everywhere() -> bool:
    of_all = nn.modules.module
    return bool(
        of_all._global_forward_hooks or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks or of_all._global_backward_pre_hooks
    )  # fmt: skip
