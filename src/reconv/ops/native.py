"""The native kernels, where the package was built with them: plain C functions.

They are called by `reconv._calls` (csrc/calls.cpp), or through ctypes where the headers to build it were missing.
A registered PyTorch operator costs several times as much a call, which is more than the smallest convolutions compute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from reconv.errors import conv_error
from reconv.ops.problem import OPS

FAMILIES = ("depthwise", "planar", "dense")  # the order is csrc/kernels.hpp's, and that of the next two
TYPES = (torch.float32, torch.float64, torch.bfloat16)
Operand = tuple[Sequence[int], Sequence[int]]  # shape and strides of x, w or y
Axes = Sequence[tuple[int, int, int]]  # stride, dilation and zeros before the first value, of each axis


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where the package was installed without a compiler: PyTorch then computes everything."""
    file = _file()
    if file is None:
        return None
    try:
        loaded = ctypes.CDLL(file)
        loaded.reconv_isa.restype = ctypes.c_char_p
        for name in ("direct", "conv", "separable", "deform"):
            kernel = getattr(loaded, f"reconv_{name}")
            kernel.restype = ctypes.c_int64
            kernel.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p]
    except (OSError, AttributeError) as error:  # built for another machine, or from other sources
        warnings.warn(f"reconv computes with PyTorch's kernels, as its own cannot be loaded: {error}", stacklevel=2)
        return None
    return loaded


def no_memory(missing: int) -> None:
    raise conv_error("convolution", "there must be memory for what a kernel packs", got={"bytes": missing},
                     do="Free some, or give a smaller batch or map.", also=MemoryError)  # fmt: skip


def _calls() -> Any:
    try:
        found: Any = import_module("reconv._calls")
    except ImportError:
        return None
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # since PyTorch 2.10
    understood = exchange is not None and found.bind(exchange, torch.Tensor, torch.nn.Parameter, torch.strided,
                                                          no_memory)  # fmt: skip
    return found if understood else None


calls = _calls()  # csrc/calls.cpp; None where it was not built


@cache
def native_isa() -> str | None:
    """The instruction set that the kernels were chosen for on this processor; None where there are none."""
    loaded = library()
    return loaded.reconv_isa().decode() if loaded else None


@cache
def native_version() -> str:
    """Tells builds of the kernels apart."""
    isa, file = native_isa(), _file()
    if isa is None or file is None:
        return "no native kernels"
    return f"{isa} kernels {sha256(Path(file).read_bytes()).hexdigest()[:8]}"


def bound(kernel: str, which: int, dtype: torch.dtype, numbers: Sequence[int]) -> Callable[..., None]:
    """A kernel with its shape: a function of its tensors, None where one has none.

    Args:    kernel, which: of csrc/interface.cpp. numbers: the fields of its shape.
    Raises:  ConvError: (a MemoryError too) the function, where its scratch memory cannot be had.
    """
    lib = library()
    assert lib is not None
    table = (ctypes.c_int64 * len(numbers))(*numbers)
    address, of, function = ctypes.addressof(table), TYPES.index(dtype), getattr(lib, f"reconv_{kernel}")
    if calls is not None:
        run = partial(calls.run, ctypes.cast(function, ctypes.c_void_p).value, which, of, address)
        run.table = table  # type: ignore[attr-defined]  # kept alive
        return run

    def call(*tensors: torch.Tensor | None, alive: object = table) -> None:
        places = array("Q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])
        if missing := function(which, of, address, places.tobytes()):
            no_memory(missing)

    return call


def conv_call(
    family: str, pass_: str, x: Operand, w: Operand, y: Operand, axes: Axes, groups: int, dtype: torch.dtype,
    threads: int = 1, relu: bool = False,
) -> Callable[..., None]:  # fmt: skip
    """A pass of a convolution by a native kernel: a function of the tensors x, w, b (or None) and y.

    Args:    x: (N, C_in, *spatial), w: (C_out, C_in / groups, *kernel), y: (N, C_out, *out), any strides.
    """
    numbers = conv_shape(pass_, x, w, y, axes, groups, threads, relu)
    return bound("conv", FAMILIES.index(family), dtype, numbers)


def conv_shape(pass_: str, x: Operand, w: Operand, y: Operand, axes: Axes, groups: int, threads: int,
               relu: bool) -> list[int]:  # fmt: skip
    """ConvShape of csrc/conv.hpp."""
    (inputs, x_strides), (kernel, w_strides), (outputs, y_strides) = x, w, y
    missing = 5 - len(inputs)
    table = [OPS.index(pass_), inputs[0], groups, inputs[1] // groups, outputs[1] // groups]
    table += [1, 1, 1, 1, 1, 0] * missing
    for size, out, taps, (stride, dilation, before) in zip(inputs[2:], outputs[2:], kernel[2:], axes, strict=True):
        table += [size, out, taps, stride, dilation, before]
    for strides in (x_strides, w_strides, y_strides):
        table += [*strides[:2], *[0] * missing, *strides[2:]]
    return [*table, threads, relu]


def _file() -> str | None:
    """RECONV_KERNELS in the environment names another build of the library, or none."""
    if given := os.environ.get("RECONV_KERNELS"):
        return None if given == "none" else given
    found = importlib.util.find_spec("reconv._kernels")
    return found.origin if found else None
