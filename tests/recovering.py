"""A small recovery, here or in a process of its own: `python tests/recovering.py FOLDER '{"stop_at": 5, …}'`.

A process leaves what came out in FOLDER/RANK.pt, unless it was asked to end itself at some step.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from reconv.rewriting import training
from reconv.rewriting.processes import leave
from reconv.rewriting.recovery import recover
from reconv.surgery.clone import clone

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 3e-3, "holdout": 0.2}


@dataclass
class Came:
    """What came out of a recovery."""

    state: dict[str, Tensor]
    log: list[dict]
    steps: list[int]


def teacher(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))  # fmt: skip
    nn.init.uniform_(net[1].running_mean, -0.3, 0.3)
    return net.eval().to(dtype)


def student(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The second convolution goes through two channels only."""
    net = clone(teacher(dtype))
    old = net[3]
    net[3] = nn.Sequential(nn.Conv2d(6, 2, 3, stride=2), nn.Conv2d(2, 4, 1)).eval().to(dtype)
    with torch.no_grad():
        net[3][0].weight.copy_(old.weight[:2])
        net[3][1].bias.copy_(old.bias)
    return net


def samples(count: int = 41, dtype: torch.dtype = torch.float32) -> TensorDataset:
    """With their classes; of 33 to learn from, the last batch of 8 has one."""
    seen = torch.randn(count, 2, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return TensorDataset(seen, teacher(dtype)(seen).argmax(1))


def network() -> nn.Sequential:
    """One to plan for and to rewrite as a whole."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@torch.no_grad()
def moved(net: nn.Module) -> float:
    """A judge to whom what was trained longest is the best, so that the weights that come back have been trained."""
    return float((net.get_submodule("9").weight - network()[9].weight).norm())


class Shaken(Dataset):
    """Another picture each time, by torch's random numbers."""

    def __init__(self) -> None:
        self.seen = samples().tensors[0]

    def __len__(self) -> int:
        return 39

    def __getitem__(self, index: int) -> Tensor:
        return self.seen[index] + 0.1 * torch.rand(())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def apart(ours: nn.Module, theirs: nn.Module) -> float:
    x = samples().tensors[0]
    return float((ours(x) - theirs(x)).norm() / theirs(x).norm())


def broken(net: nn.Module) -> float:
    raise ZeroDivisionError("no batches")


def run(folder: Path | None, asked: dict[str, Any]) -> Came:
    """A recovery with these options; beside those of `recover`: `stop_at` a step; `fail`: its judge does."""
    options = {**SETTINGS, **asked}
    stop_at, judge = options.pop("stop_at", None), broken if options.pop("fail", False) else None
    dtype = torch.float64 if options.pop("double", False) else torch.float32
    data = Shaken() if options.pop("shaken", False) else samples(dtype=dtype)
    came = Came({}, [], [])

    def progress(what: str, done: int, total: int) -> None:
        came.steps.append(done)
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    net = recover(student(dtype), teacher(dtype), data, evaluate=judge, checkpoint=folder, progress=progress,
                  log=came.log.append, **options)  # fmt: skip
    came.state = net.state_dict()
    return came


def main(folder: Path, asked: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if asked.pop("seconds", None) == 0:
        training.SECONDS, training.SHARE = 0.0, 1e9  # a checkpoint after each step
    torch.save(asdict(run(folder, asked)), folder / f"{os.environ.get('RANK', '0')}.pt")
    leave()
    assert not threads_of("gloo"), "a thread that outlives the interpreter may abort the process"


def threads_of(library: str) -> list[str]:
    """The names of this process's threads that have this part, where Linux tells."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if library in name]


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
