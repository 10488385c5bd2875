"""The peak memory of blocks and of networks: foreseen, measured, and kept within budgets."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from cases import BUILT, whole_numbers
from counted import memory
from fakes import FakeTarget
from planned import IMAGE, network
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.layers import build
from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.rewriting.apply import apply
from reconv.spec import ConvSpec, peak_bytes
from reconv.surgery import find_sites
from reconv.surgery.alive import peak_of, state_bytes

# blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT)
def test_what_a_block_holds_is_what_its_layer_holds(name, monkeypatch):
    block, shape = BUILT[name]

    def sampled(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
        """As a kernel that needs nothing inside for itself."""
        return input.new_zeros(input.shape[0], spec.out_channels, *offset.shape[2:])

    monkeypatch.setattr("reconv.ops.deform._by_operators", sampled)
    layer = build(block, dtype=torch.float64, channels=shape[1], spatial_dims=len(shape) - 2).eval()
    assert peak_bytes(block, shape, itemsize=8) == peak_of(layer, (whole_numbers(shape),)).most


# networks ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A stem, two blocks that hold their input, and a layer that is no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.one, self.two = (
            nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
                          nn.Conv2d(24, 12, 3, padding=1)) for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        return self.head(F.relu(x + self.two(x)).mean((2, 3)))


class Branching(nn.Module):
    """What a stem gives, cut in two; branches beside each other, one layer that runs twice, a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
        self.left, self.right = nn.Conv2d(8, 16, 5, padding=2), nn.Conv2d(8, 16, 3, padding=1)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(8, 32, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu_(self.stem(x)).chunk(2, 1)
        x = torch.cat([self.left(left), self.right(right)], 1)
        return F.conv2d(F.avg_pool2d(self.twice(F.relu(self.twice(x))), 2), self.kernel)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


NETWORKS = {"plain": network, "residual": lambda: made(Residual), "branching": lambda: made(Branching)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_of_a_network(name):
    model = NETWORKS[name]()
    most, elsewhere = peak_of(model, (IMAGE,))
    assert state_bytes(model) + most == memory(model, IMAGE)
    calls = find_sites(model, IMAGE).calls
    assert max(elsewhere, *(c.beside_bytes + peak_bytes(c.spec, c.input_shape) for c in calls)) == most


def test_what_is_alive_beside_each_convolution():
    cell = IMAGE[0, 0].nbytes
    found = find_sites(NETWORKS["branching"](), IMAGE)
    # the input; of the left half the right one, too; of the right one the left half and what was made of it
    assert [(c.name, c.beside_bytes // cell) for c in found.calls] == [
        ("stem", 0), ("left", 3 + 8), ("right", 3 + 8 + 16), ("twice", 3 + 16), ("twice", 3 + 16 + 32),
        ("conv2d", 3 + 16 + 32)]  # fmt: skip


class Keeping(nn.Module):
    """A forward pass that keeps what it makes: in the module, in an outer list, in a view."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.conv, self.kept, self.last = nn.Conv2d(3, 3, 1), kept, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv(x)
            self.kept.append(x[:, :1])
        self.last = x.exp()
        return self.last.sum()


def test_what_a_network_keeps_stays_alive():
    kept: list[Tensor] = []
    model = Keeping(kept).eval()
    peak = peak_of(model, (IMAGE,)).most
    assert peak == 5 * IMAGE.nbytes + 4  # the input, three maps, the last one, its sum
    kept.clear()
    gc.collect()
    assert memory(model, IMAGE) == state_bytes(model) + peak


# plans -------------------------------------------------------------------------------------------

FAKE = FakeTarget()


FEW = ("exact", "bottleneck", "separable")


@pytest.mark.parametrize(
    "name, budget, rules",
    [("plain", "memory=0.7", FEW), ("residual", "memory=0.85", FEW), ("residual", "memory=0.6", FEW),
     ("branching", "memory=0.85", FEW), ("branching", "latency=0.7,memory=0.7", FEW),
     ("branching", "memory=75KiB", FEW), ("plain", "memory=0.7", "prune_channels"),
     ("residual", "memory=0.8", ("exact", "prune_channels"))],
)  # fmt: skip
def test_a_met_budget_holds_on_the_network_itself(name, budget, rules):
    model = NETWORKS[name]()
    now = memory(model, IMAGE)
    found = plan(model, IMAGE, budget, None, FAKE, rules)
    limit = 75 * 1024 if "KiB" in budget else float(budget.rpartition("=")[2]) * now
    reached = memory(apply(model, found, IMAGE), IMAGE)
    assert found.met
    assert reached <= limit
    assert found.measured is not None
    assert found.measured.memory == reached
    assert Plan.from_dict(found.to_dict()).measured == found.measured
