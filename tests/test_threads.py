"""Calls from several Python threads, workers and forked processes: the bits of one call alone."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reconv import functional as f
from reconv.ops import ways


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "depthwise": lambda x: f.conv2d(x, values(18, 1, 5, 5), None, 1, 2, 1, 18),
    "groups": lambda x: f.conv2d(x, values(18, 3, 3, 3), None, 2, 1, 1, 6),
    "small map": lambda x: f.conv2d(x.contiguous(memory_format=torch.channels_last), values(20, 18, 3, 3)),
    "transposed": lambda x: f.conv_transpose2d(x, values(18, 1, 4, 4), None, 2, 1, 0, 18),
    "separable": lambda x: f.separable_conv2d(x, values(18, 1, 3, 3), values(30, 18, 1, 1)),
    "deformable": lambda x: f.deform_conv2d(x, values(2, 18, 22, 24, seed=1), values(4, 18, 3, 3), None, 1, 1),
}
X = values(2, 18, 22, 24)


def with_gradient(call: Callable[[Tensor], Tensor], x: Tensor = X) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = call(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), x)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("forgetting", [False, True], ids=["", "forgetting"])
def test_many_threads_get_the_bits_of_one(forgetting):
    wanted = {name: with_gradient(call) for name, call in CALLS.items()}
    wrong: list[str] = []

    def work(number: int) -> None:
        torch.set_num_threads(1)
        for turn in range(15):
            for name in sorted(CALLS, key=lambda name: hash((name, number, turn))):
                if forgetting and number == 0:
                    ways.forget()
                if not same(with_gradient(CALLS[name]), wanted[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Convolved(Dataset):
    def __len__(self) -> int:
        return len(CALLS)

    def __getitem__(self, index: int) -> list[Tensor]:
        return with_gradient(list(CALLS.values())[index])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_get_the_bits_of_one(method):
    wanted = [with_gradient(call) for call in CALLS.values()]
    loader = DataLoader(Convolved(), batch_size=None, num_workers=1, multiprocessing_context=method, timeout=120)
    assert all(same(a, b) for a, b in zip(loader, wanted, strict=True))


FORKS = """
import os, signal, torch
import test_families as t
from kernel_cases import KERNEL_CASES
signal.alarm(120)  # it hung where the kernels asked for threads that a forked process does not have
runs = []
for name, case in KERNEL_CASES.items():
    known, tensors = t.problem_of("forward", case.block, case.input_shape, torch.float32, "contiguous")
    for kernel in ("depthwise", "planar", "dense"):
        if t.BY_NAME[kernel].refuse(known) is None:
            runs.append((t.BY_NAME[kernel].prepare(known._replace(threads=2)), tensors))
wanted = [run(*tensors) for run, tensors in runs]
if not (child := os.fork()):
    signal.alarm(60)
    os._exit(0 if all(torch.equal(run(*tensors), y) for (run, tensors), y in zip(runs, wanted)) else 1)
_, status = os.waitpid(child, 0)
print(len(runs), status)
"""


def test_a_forked_process_computes_without_its_parents_threads():
    run = subprocess.run([sys.executable, "-c", FORKS], cwd=Path(__file__).parent, capture_output=True, text=True,
                         env=os.environ | {"OMP_NUM_THREADS": "2"}, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    count, status = map(int, run.stdout.split())
    assert count > 30
    assert status == 0


# little memory -----------------------------------------------------------------------------------

LIMITED = """
import resource, sys, torch
from reconv import functional as f
from reconv.errors import ConvError
torch.set_num_threads(1)

def small():
    x = torch.arange(2.0 * 16 * 7 * 6).reshape(2, 16, 7, 6) % 5
    return f.conv2d(x, torch.ones(16, 1, 3, 3), None, 1, 1, 1, 16)

CALLS = {
    "depthwise": lambda x: f.conv2d(x, torch.ones(16, 1, 5, 5), None, 1, 2, 1, 16),
    "deformable": lambda x: f.deform_conv2d(x, torch.zeros(1, 18, *x.shape[2:]), torch.ones(8, 16, 3, 3), None, 1, 1),
}
x, wanted, seen = torch.ones(1, 16, 600, 600), small(), {}
for name, call in CALLS.items():
    call(x[..., :40, :40])
    for more in range(1 << 18, 1 << 30, 1 << 19):  # from too little for anything on
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
        try:
            call(x)
            break
        except (ConvError, RuntimeError) as error:
            kind = "kernel" if isinstance(error, MemoryError) else "torch"
            assert ("bytes=" if kind == "kernel" else "you tried to allocate") in str(error), error
            seen[kind] = seen.get(kind, 0) + 1
        assert torch.equal(small(), wanted), name
    else:
        raise SystemExit(f"{name} never had enough")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(seen)
"""


def test_too_little_memory_is_told_and_the_next_call_is_right():
    run = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, (run.stdout, run.stderr[-2000:])
    assert "kernel" in run.stdout
    assert "torch" in run.stdout


# nothing is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_kept_of_calls(name):
    """`trust/leaks.py` does so for each operator, ten thousand times."""

    for _ in range(30):
        with_gradient(CALLS[name])
    before = resident()
    for _ in range(300):
        with_gradient(CALLS[name])
    assert resident() - before < 300 * X.nbytes / 4


def resident() -> int:
    """Bytes, once what is free was given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
