"""Freed memory stays with the process while engines are timed."""

from __future__ import annotations

import ctypes
from functools import cache

TRIM, MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
MOST_TRIM, MOST_MMAP = 2**31 - 1, 2**25  # bytes; the largest that mallopt takes


@cache
def keep_memory() -> bool:
    """Asks the C library not to give freed memory back to the system; whether it could be asked (glibc's can).

    Else outputs of some sizes are new pages in each call, at 20 µs for each 100 kB, and which of the engines pays for
    them depends on what was freed before: by chance, and by more than the engines differ.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(TRIM, MOST_TRIM) and mallopt(MMAP, MOST_MMAP))
