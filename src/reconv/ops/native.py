"""The native kernels, where the package was built with them."""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch


@cache
def native_isa() -> str | None:
    """The instruction set of the native kernels, loaded at the first call; None where there are none.

    The package installs without a compiler, too; everything is then computed by PyTorch.
    """
    file = _library()
    if file is None:
        return None
    try:
        torch.ops.load_library(file)
    except OSError as error:  # built for another machine or an older torch
        warnings.warn(f"reconv computes with PyTorch's kernels, as its own cannot be loaded: {error}", stacklevel=2)
        return None
    isa = ctypes.CDLL(file).reconv_isa
    isa.restype = ctypes.c_char_p
    return isa().decode()


@cache
def native_version() -> str:
    """Tells builds of the native kernels apart."""
    isa, file = native_isa(), _library()
    if isa is None or file is None:
        return "no native kernels"
    return f"{isa} kernels {sha256(Path(file).read_bytes()).hexdigest()[:8]}"


def _library() -> str | None:
    found = importlib.util.find_spec("reconv._kernels")
    return found.origin if found else None
