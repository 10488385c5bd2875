"""The native kernels, where the package was built with them: plain C functions, called through ctypes.

A registered PyTorch operator costs two to three times as much a call, which is more than the smallest convolutions
compute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path


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


def _file() -> str | None:
    found = importlib.util.find_spec("reconv._kernels")
    return found.origin if found else None
