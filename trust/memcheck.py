"""The native kernels under valgrind and under ThreadSanitizer, without Python between.

    python trust/memcheck.py [--every 3] [--tools memcheck-avx2 memcheck-baseline threads]

Every so-manyth call of the tests' tables (each kernel, pass, dtype and layout; whole numbers, so that each instruction
set gives the same bytes) is recorded with its tensors; `driver.cpp` then makes them from a file. Under valgrind each
tensor is a block of exactly its size: a read beside it, of what nobody wrote, or an output that is not written whole is
an error. Valgrind knows no AVX-512, so that it sees AVX2's kernels and the baseline's. Under ThreadSanitizer four
threads make all calls at once; the kernels are built without OpenMP for that, since of libgomp's barriers it knows
nothing. Needs valgrind, g++ and CMake. Writes trust/results/memcheck.json.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import test_deform_native as deform_cases
import test_families as families
import test_separable_native as separable_cases
from kernel_cases import KERNEL_CASES
from told import keep
from torch import Tensor

from reconv.ops import deform_native, direct, native, separable_native
from reconv.ops.dispatch import KERNELS
from reconv.ops.kernel import TORCH
from reconv.ops.problem import OPS

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "trust"
NAMES = ("direct", "conv", "separable", "deform")  # as driver.cpp has them
OUTPUT = {"forward": 3, "input_gradient": 0, "weight_gradient": 1}
TOOLS = ("memcheck-avx2", "memcheck-baseline", "threads")


def written(kernel: str, which: int, numbers: list[int], tensor: int) -> bool:
    """Whether a kernel writes to this of its tensors."""
    if kernel == "conv":
        return tensor == OUTPUT[OPS[numbers[0]]]
    if kernel == "deform":
        return tensor >= 7 if which else tensor == 5
    return tensor == {"direct": 1, "separable": 5}[kernel]


def bytes_of(tensor: Tensor) -> bytes:
    """From its first element to its last, whatever lies between."""
    length = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    flat = tensor.detach().as_strided((length,), (1,))
    return bytes(flat.view(torch.uint8).numpy()) if length else b""


class Recorder:
    """In the place of `native.bound`: makes the calls, and notes every so-manyth with its tensors."""

    def __init__(self, every: int) -> None:
        self.every, self.seen, self.calls, self.whole = every, 0, list[bytes](), native.bound

    def bound(self, kernel: str, which: int, dtype: torch.dtype, numbers: Any) -> Callable[..., None]:
        run, numbers = self.whole(kernel, which, dtype, numbers), [int(n) for n in numbers]

        def noted(*tensors: Tensor | None) -> None:
            run(*tensors)
            self.seen += 1
            if self.seen % self.every == 0:
                self.note(kernel, which, dtype, numbers, tensors)

        return noted

    def note(self, kernel: str, which: int, dtype: torch.dtype, numbers: list[int], tensors: Any) -> None:
        head = [NAMES.index(kernel), which, native.TYPES.index(dtype), len(numbers), *numbers, len(tensors)]
        text = [struct.pack(f"{len(head)}q", *head)]
        for place, tensor in enumerate(tensors):
            data = b"" if tensor is None else bytes_of(tensor)
            output = written(kernel, which, numbers, place)
            text += [struct.pack("2q", -1 if tensor is None else len(data), output), data]
        self.calls.append(b"".join(text))


def record(every: int) -> list[bytes]:
    """Calls of all kernels, exact in any instruction set."""
    recorder = Recorder(every)
    for module in (native, direct, deform_native, separable_native):
        module.bound = recorder.bound  # type: ignore[attr-defined]
    for module in (direct, deform_native, separable_native):
        module.MEASURED = (native.native_isa(),)  # type: ignore[attr-defined]
    for op in OPS:
        for dtype in families.DTYPES.values():
            for layout in ("contiguous", "channels_last"):
                for case in KERNEL_CASES.values():
                    known, tensors = families.problem_of(op, case.block, case.input_shape, dtype, layout)
                    for kernel in KERNELS[op]:
                        if kernel is not TORCH and kernel.name != "fft" and kernel.refuse(known) is None:
                            kernel.prepare(known)(*tensors)
    for block, shape in deform_cases.ALL.values():
        made = deform_cases.halves(block, shape)
        given = [made[name].requires_grad_() if name in made else None for name in deform_cases.ORDER]
        if deform_native.refuse(block.conv, *given) is None:
            out = deform_native.convolve(_plain, block.conv, *given)
            out.backward(torch.ones_like(out))
    for text, out_channels, shape in separable_cases.CASES:
        for dtype in separable_cases.DTYPES:
            spec, tensors = separable_cases.operands(text, out_channels, shape, dtype, True)
            known = separable_cases.problem_of(spec, tensors[0], tensors[1])
            pointwise = (tuple(tensors[3].shape), tensors[3].stride())
            separable_native.prepare(known, pointwise, 1)(*tensors)
    return recorder.calls


def _plain(*_: Any) -> Tensor:
    raise RuntimeError("the plain operators were asked for")


def build(tool: str) -> tuple[Path, Path]:
    """The driver and the library."""
    BUILD.mkdir(parents=True, exist_ok=True)
    driver, checks = BUILD / f"driver-{tool}", ["-fsanitize=thread"] if tool == "threads" else []
    subprocess.run(["c++", "-std=c++20", "-g", "-O1", "-pthread", *checks, str(ROOT / "trust" / "driver.cpp"), "-ldl",
                    "-o", driver], check=True)  # fmt: skip
    if tool != "threads":
        return driver, Path(native._file() or "")
    folder, tools = BUILD / "threads", Path(sys.executable).parent
    subprocess.run([tools / "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DRECONV_SANITIZE=thread",
                    f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run([tools / "cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return driver, folder / "_kernels.so"


def run(tool: str, calls: Path) -> dict[str, Any]:
    driver, library = build(tool)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TSAN_OPTIONS": "exitcode=66"}
    if tool == "threads":
        command, what = ["setarch", "-R", driver, library, calls, "4", "2"], "four threads under ThreadSanitizer"
    else:
        isa = tool.removeprefix("memcheck-")
        environment["RECONV_ISA"] = isa
        command = ["valgrind", "--quiet", "--error-exitcode=66", "--leak-check=full", "--show-leak-kinds=definite",
                   driver, library, calls, "1", "1"]  # fmt: skip
        what = f"valgrind's memcheck, {isa}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 66) or not done.stdout:
        raise RuntimeError(f"{tool} did not end well ({done.returncode}): {done.stderr[-2000:]}")
    isa, tried, wrong = done.stdout.split()
    errors = len(re.findall("WARNING: ThreadSanitizer|== (?:Use|Invalid|Conditional)|definitely lost", done.stderr))
    print(done.stderr[-3000:], file=sys.stderr)
    return {"what": f"calls of the native kernels, {what}", "tried": int(tried), "isa": isa,
            "failures": int(wrong) + max(errors, done.returncode == 66)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    calls = record(asked.every)
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "calls.bin"
    path.write_bytes(struct.pack("q", len(calls)) + b"".join(calls))
    rows = [run(tool, path) for tool in asked.tools]
    keep("memcheck", rows, every=asked.every)
    if any(row["failures"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
