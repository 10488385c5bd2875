"""Calls of every operator and every kernel, forward and gradients: for `threads.py`, `leaks.py` and `memcheck.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reconv
from reconv import functional as f
from reconv.layers.sequence import QuickSequential
from reconv.ops import deform_native, direct, separable_native
from reconv.ops.dispatch import KERNELS
from reconv.ops.kernel import TORCH
from reconv.ops.native import native_isa

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import test_families as families
from deform_cases import CASES as DEFORM
from deform_cases import operands
from kernel_cases import KERNEL_CASES

Call = Callable[[], list[Tensor]]  # what it computes, all of it
CL = torch.channels_last
for module in (direct, deform_native, separable_native):  # also on processors where nothing was measured
    module.MEASURED = (native_isa(),)  # type: ignore[attr-defined]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# name: the function, the shapes of its tensors, what else it is given
ENTRANCES: dict[str, tuple[Callable[..., Tensor], Sequence[tuple[int, ...]], dict[str, Any]]] = {
    "conv1d": (f.conv1d, [(2, 5, 40), (6, 5, 3), (6,)], {"padding": 1}),
    "conv1d, depthwise": (f.conv1d, [(2, 20, 90), (20, 1, 31), (20,)], {"padding": 15, "groups": 20}),
    "conv1d, by transform": (f.conv1d, [(1, 2, 1500), (2, 1, 600)], {"groups": 2}),
    "conv2d": (f.conv2d, [(2, 6, 15, 17), (8, 6, 3, 3), (8,)], {"stride": 2, "padding": 1}),
    "conv2d, depthwise": (f.conv2d, [(2, 33, 21, 19), (33, 1, 5, 5), (33,)], {"padding": 2, "groups": 33}),
    "conv2d, grouped": (f.conv2d, [(1, 24, 20, 21), (24, 3, 3, 3), (24,)], {"padding": 1, "groups": 8}),
    "conv2d, dilated": (f.conv2d, [(1, 7, 20, 21), (9, 7, 3, 3)], {"padding": 3, "dilation": 3}),
    "conv3d": (f.conv3d, [(1, 3, 7, 9, 8), (5, 3, 3, 3, 3), (5,)], {"padding": 1}),
    "conv_transpose1d": (f.conv_transpose1d, [(2, 6, 30), (6, 4, 4), (4,)], {"stride": 2, "padding": 1}),
    "conv_transpose2d": (f.conv_transpose2d, [(1, 12, 11, 9), (12, 1, 4, 4)], {"stride": 2, "groups": 12}),
    "conv_transpose3d": (f.conv_transpose3d, [(1, 4, 5, 4, 6), (4, 3, 2, 3, 2)], {"stride": 2}),
    "separable_conv1d": (f.separable_conv1d, [(2, 9, 50), (9, 1, 5), (7, 9, 1), (7,)], {"padding": 2}),
    "separable_conv2d": (f.separable_conv2d, [(1, 17, 20, 18), (17, 1, 3, 3), (30, 17, 1, 1)], {"padding": 1}),
    "deform_conv2d": (f.deform_conv2d, [(1, 6, 9, 8), (1, 18, 9, 8), (5, 6, 3, 3), (5,)], {"padding": 1}),
    "channel_shuffle": (partial(f.channel_shuffle, groups=3), [(2, 12, 9, 7)], {}),
}  # fmt: skip


def entrances(grads: bool) -> dict[str, Call]:
    """The functions that users call; where `grads`, with the gradients to every tensor."""
    return {f"{name}{', gradients' * grads}": entered(*entry, grads) for name, entry in ENTRANCES.items()}


def entered(function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], more: dict[str, Any],
            grads: bool) -> Call:  # fmt: skip
    tensors = [values(*shape, seed=seed) for seed, shape in enumerate(shapes)]

    def run() -> list[Tensor]:
        given = [t.detach().requires_grad_(grads) for t in tensors]
        out = function(*given, **more)
        return [out.detach(), *(torch.autograd.grad(out.square().sum(), given) if grads else ())]

    return run


def modules(grads: bool) -> dict[str, Call]:
    """Layers in networks, the sequences of an exact rewriting among them, which compute several by one call."""
    torch.manual_seed(0)
    built = {
        "a chain on channels-last maps": QuickSequential(
            reconv.nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), reconv.nn.Conv2d(8, 6, 3), nn.ReLU()).to(memory_format=CL),
        "a separable network": nn.Sequential(reconv.nn.SeparableConv2d(3, 16, 3, padding=1, activation="relu"),
                                             reconv.nn.DepthwiseConv2d(16, 5, padding=2), nn.BatchNorm2d(16).eval(),
                                             reconv.nn.PointwiseConv2d(16, 9)),
        "a deformable layer": reconv.nn.DeformConv2d(3, 6, 3, padding=1),
        "resnet18": reconv.networks.resnet18(classes=5).eval(),
    }  # fmt: skip
    x = values(2, 3, 20, 18).contiguous(memory_format=CL)
    return {f"{name}{', gradients' * grads}": within(module, x, grads) for name, module in built.items()}


def within(module: nn.Module, x: Tensor, grads: bool) -> Call:
    weights = list(module.parameters())

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(grads):
            out = module(x)
        return [out.detach(), *(torch.autograd.grad(out.square().sum(), weights) if grads else ())]

    return run


def kernels(threads: Callable[[], int] = lambda: 1) -> dict[str, Call]:
    """Each native kernel on each case of the tests' table that it serves, on so many threads, and deform's two."""
    found: dict[str, Call] = {}
    for op in families.OPS:
        for name, case in KERNEL_CASES.items():
            for layout in ("contiguous", "channels_last"):
                known, tensors = families.problem_of(op, case.block, case.input_shape, torch.float32, layout)
                for seed, tensor in enumerate(t for t in tensors if t is not None):
                    tensor.copy_(values(*tensor.shape, seed=seed))  # sums of these depend on their order
                for kernel in KERNELS[op]:
                    if kernel is not TORCH and kernel.name != "fft" and kernel.refuse(known) is None:
                        prepared = {n: kernel.prepare(known._replace(threads=n)) for n in (1, 2, 3)}
                        found[f"{kernel.name}, {op}, {layout}, {name}"] = chosen(prepared, tensors, threads)
    for name, (block, shape) in DEFORM.items():
        if block.conv.spatial_dims == 2:
            made = {key: value.float() for key, value in operands(block, shape).items()}
            found[f"deform, {name}"] = deformed(block, made)
    return found


def chosen(prepared: dict[int, Callable[..., Tensor]], tensors: Sequence[Tensor | None],
           threads: Callable[[], int]) -> Call:  # fmt: skip
    return lambda: [prepared[threads()](*tensors)]


def deformed(block: Any, tensors: dict[str, Tensor]) -> Call:
    spec, order = block.conv, ("input", "offset", "weight", "bias", "mask")

    def run() -> list[Tensor]:
        given = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        out = deform_native.convolve(_plain, spec, *[given.get(name) for name in order])  # type: ignore[arg-type]
        return [out.detach(), *torch.autograd.grad(out.sum(), list(given.values()))]

    return run


def _plain(*_: Any) -> Tensor:
    raise RuntimeError("the plain operators were asked for")
