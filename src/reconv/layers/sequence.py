"""Layers one after the other: runs of plain convolutions among them are computed in one call."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from reconv.layers.conv import Conv2d
from reconv.ops.convolve import convolve_first

Settings = tuple[Any, ...]  # of one convolution: stride, padding, dilation, groups, relu, pool


class Quick(nn.Module):
    """A call goes straight to `forward` where no hook listens: on small maps the way there costs as much."""

    patches: ClassVar[int] = 0  # how often a `forward` was set on one of these

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            Quick.patches += 1
        super().__setattr__(name, value)

    def __call__(self, input: Tensor) -> Tensor:
        if type(input) is Tensor and not (_hooked(self) or _hooked_everywhere()):
            return self.forward(input)
        return super().__call__(input)


class Absorbed(Quick, nn.Identity):
    """An identity where a module was whose work another layer has taken over.

    Args:    args, kwargs: any, as torch.nn.Identity takes them.
    Example:
             >>> Absorbed()(torch.ones(2))
             tensor([1., 1.])
    """


class QuickSequential(Quick, nn.Sequential):
    """torch.nn.Sequential, faster: plain convolutions that follow each other, with the ReLUs and poolings behind them,
    are computed in one call where a kernel does that.

    Args:    args: the layers, or an OrderedDict of them, as torch.nn.Sequential takes them.
    Example:
             >>> QuickSequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))(torch.zeros(1, 3, 10, 10)).shape
             torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        steps = self._steps()
        at, fresh = 0, False  # fresh: a convolution's output, which nobody else sees
        while at < len(steps):
            if type(input) is Tensor and (run := _run(steps, at)):
                tensors, settings, ends = run
                count, input = convolve_first(input.ndim - 2, input, tensors, tuple(settings))
                if count:
                    at, fresh = ends[count - 1], True
                    continue
            part, kind = steps[at]
            quick_relu = fresh and kind is nn.ReLU and not _hooked(part) and "forward" not in part.__dict__
            input = input.relu_() if quick_relu else part(input)
            fresh, at = kind is not None and isinstance(part, _ConvNd), at + 1
        return input

    def _steps(self) -> list[Step]:
        """The parts, those of quick sequences among them in their place, without what has been absorbed.

        To look at every part takes as long as some convolutions. So they are known until a hook has been registered
        anywhere, a `forward` set, or a part exchanged.
        """
        stamp = (RemovableHandle.next_id, Quick.patches)
        if not torch.compiler.is_compiling() and (known := self.__dict__.get(KNOWN_STEPS)):
            before, held, steps = known
            if before == stamp and all([[*m._modules.values()] == parts for m, parts in held]):
                return steps
        steps, held = [], []
        hooked = _hooked_everywhere()
        self._unfold(steps, held, hooked)
        hooked = hooked or any(kind is None and _hooked(part) for part, kind in steps)  # to remove one is not told
        if not (hooked or torch.compiler.is_compiling()):
            self.__dict__[KNOWN_STEPS] = stamp, held, steps
        return steps

    def __getstate__(self) -> dict[str, Any]:
        """Without the known steps: a copy, or another process, has other hooks."""
        return {name: value for name, value in self.__dict__.items() if name != KNOWN_STEPS}

    def _unfold(self, steps: list[Step], held: list[tuple[nn.Module, list[nn.Module | None]]], hooked: bool) -> None:
        held.append((self, [*self._modules.values()]))
        for part in self._modules.values():
            if part is None:
                continue
            kind: type = type(part)
            plain = not (hooked or part._forward_hooks or part._forward_pre_hooks)
            if plain and kind in KNOWN:
                if kind is not Absorbed or "forward" in part.__dict__:
                    steps.append((part, kind))
            elif plain and isinstance(part, QuickSequential) and _opens(part):
                part._unfold(steps, held, hooked)
            else:
                steps.append((part, None))


KNOWN_STEPS = "_known_steps"
KNOWN = frozenset({Conv2d, nn.Conv2d, nn.ReLU, nn.MaxPool2d, Absorbed})
Step = tuple[nn.Module, type | None]  # and its kind, where calling it does no more forward than such a module does


def _opens(part: QuickSequential) -> bool:
    """Whether calling it does no more than calling its parts."""
    return type(part).forward is QuickSequential.forward and "forward" not in part.__dict__ and not _hooked(part)


def _run(steps: list[Step], at: int) -> tuple[list[Tensor | None], list[Settings], list[int]] | None:
    """The plain convolutions that follow each other from a step on.

    Returns: weight and bias of each; its settings; and the step after it, its ReLU and its pooling.
    """
    tensors: list[Tensor | None] = []
    settings: list[Settings] = []
    ends: list[int] = []
    for end in range(at, len(steps)):
        part: Any
        part, kind = steps[end]
        if "forward" in part.__dict__:  # set from outside, on a module that does not tell
            break
        if (kind is Conv2d or kind is nn.Conv2d) and part.padding_mode == "zeros":
            parameters = part._parameters
            tensors += (parameters.get("weight"), parameters.get("bias"))
            settings.append((part.stride, part.padding, part.dilation, part.groups, False, 1))
            ends.append(end + 1)
            continue
        if not settings or settings[-1][-1] != 1:
            break
        if kind is nn.ReLU:
            settings[-1] = (*settings[-1][:4], True, 1)
        elif kind is nn.MaxPool2d and (side := _side(part)):
            settings[-1] = (*settings[-1][:5], side)
        else:
            break
        ends[-1] = end + 1
    return (tensors, settings, ends) if settings else None


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
