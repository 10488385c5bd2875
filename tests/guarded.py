"""Every native kernel on tensors that touch memory which must not be read: `python guarded.py` ends by SIGSEGV where
one reads or writes beyond its tensors. With another instruction set: RECONV_ISA=avx2.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from kernel_cases import KERNEL_CASES
from test_families import BY_NAME, DTYPES, problem_of, wanted
from torch import Tensor

from reconv.ops.native import FAMILIES, conv_call, native_isa
from reconv.ops.problem import OPS

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None)


def guarded(tensor: Tensor, at_end: bool) -> tuple[Tensor, mmap.mmap]:
    """A copy with the same strides whose first byte follows, or whose last byte precedes, a page without access."""
    size = tensor.untyped_storage().nbytes()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert LIBC.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = PAGE * (pages + 1) - size if at_end else PAGE
    elements = torch.frombuffer(memory, dtype=tensor.dtype, count=size // tensor.element_size(), offset=offset)
    return elements.as_strided(tensor.shape, tensor.stride()).copy_(tensor), memory


def main() -> None:
    count = 0
    for case in KERNEL_CASES.values():
        for op in OPS:
            for dtype in DTYPES.values():
                for layout in ("contiguous", "channels_last"):
                    known, tensors = problem_of(op, case.block, case.input_shape, dtype, layout)
                    want = wanted(known, tensors).to(dtype)
                    for family in FAMILIES:
                        if BY_NAME[family].refuse(known) is None:
                            for at_end in (False, True):
                                check(family, known, tensors, want, at_end)
                                count += 1
    print(native_isa(), count)


def check(family, known, tensors, want, at_end) -> None:
    kept = [None if t is None else guarded(t, at_end) for t in tensors]
    x, w, b, y = (None if pair is None else pair[0] for pair in kept)
    axes = [(s, d, lo) for s, d, (lo, _) in zip(known.stride, known.dilation, known.padding, strict=True)]
    call = conv_call(family, known.op, (known.x, x.stride()), (known.w, w.stride()), (known.y, y.stride()), axes,
                     known.groups, known.dtype)  # fmt: skip
    output = {"forward": y, "input_gradient": x, "weight_gradient": w}[known.op]
    output.fill_(float("nan"))
    call(x, w, b, y)
    assert torch.equal(output, want), (family, known)


if __name__ == "__main__":
    main()
