"""The native kernels, where the package was built with them: plain C functions, called through ctypes.

A registered PyTorch operator costs two to three times as much a call, which is more than the smallest convolutions
compute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from struct import Struct

import torch

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
    except OSError as error:  # built for another machine
        warnings.warn(f"reconv computes with PyTorch's kernels, as its own cannot be loaded: {error}", stacklevel=2)
        return None
    loaded.reconv_isa.restype = ctypes.c_char_p
    for name in ("reconv_direct_f32", "reconv_direct_f64"):
        getattr(loaded, name).argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p]
    loaded.reconv_conv.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p]
    return loaded


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


def conv_call(
    family: str, pass_: str, x: Operand, w: Operand, y: Operand, axes: Axes, groups: int, dtype: torch.dtype,
    threads: int = 1, relu: bool = False, lib: ctypes.CDLL | None = None,
) -> Callable[[int, int, int, int], None]:  # fmt: skip
    """A pass of a convolution by a native kernel: a function of the addresses of x, w, b (0: none) and y.

    Args:    x: (N, C_in, *spatial), w: (C_out, C_in / groups, *kernel), y: (N, C_out, *out), any strides.
    """
    lib = lib or library()
    assert lib is not None
    numbers = conv_shape(pass_, x, w, y, axes, groups, threads, relu)
    shape = (ctypes.c_int64 * len(numbers))(*numbers)
    address, which, of = ctypes.addressof(shape), FAMILIES.index(family), TYPES.index(dtype)
    pack, function = Struct("4P").pack, lib.reconv_conv

    def call(x: int, w: int, b: int, y: int, alive: object = shape) -> None:
        if function(which, of, address, pack(x, w, b, y)):
            raise MemoryError(f"no memory for the {family} kernel")

    return call


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
