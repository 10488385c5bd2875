"""How far an edit moves the output is probed from where it acts on, for a few sizes of each form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import grid
from torch import nn
from torch.nn import functional as F

from reconv.data import Batch
from reconv.planning import table
from reconv.planning.probe import Prefix, Probe, standing_in
from reconv.planning.table import _spread, _worth_fitting
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import parse
from reconv.surgery import find_sites
from reconv.surgery.clone import clone


class Winding(nn.Module):
    """A layer used twice, one run by its `forward`, a branch, a functional convolution, writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Conv2d(5, 2, 3)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Any) -> Any:
        y = F.conv2d(self.twice(self.first(x).relu_()).mul_(2), self.kernel)
        y = self.twice(y).relu_()
        return self.last(self.left.forward(y).mul_(0.5) + self.right(y))


BATCHES = [Batch((grid(rows, 3, 7, 6),)) for rows in (5, 3)]


@pytest.mark.parametrize("memory", [0, 3000, 2**20])
@pytest.mark.parametrize("edited", ["first", "twice", "left", "right", "last"])
def test_a_prefix_changes_nothing(edited, memory, monkeypatch):
    monkeypatch.setattr("reconv.planning.probe.MEMORY", memory)
    torch.manual_seed(0)
    model = Winding().eval()
    probe, wrapped = Probe(model, BATCHES), clone(model)
    prefix, new = Prefix(wrapped, BATCHES), clone(model.get_submodule(edited))
    with torch.no_grad():
        new.weight.mul_(0.9)
    with standing_in(model, [edited], new):
        expected = probe.error(model)
    for _ in range(2):
        with standing_in(wrapped, [edited], prefix.until(clone(new))):
            assert probe.moved(probe.answers(wrapped, None, prefix), probe.outputs) == expected > 0


def test_a_prefix_spares_what_runs_before_the_edit():
    model = Winding().eval()
    probe, ran = Probe(model, BATCHES), []
    for name in ("first", "twice", "left", "right", "last"):
        conv = model.get_submodule(name)
        conv.forward = type(conv).forward.__get__(conv)
        conv._conv_forward = lambda *args, name=name, old=conv._conv_forward: (ran.append(name), old(*args))[1]
    prefix = Prefix(model, BATCHES)
    ran.clear()
    with standing_in(model, ["left"], prefix.until(nn.Conv2d(4, 5, 1))):
        probe.answers(model, None, prefix)
    assert ran == ["right", "last"] * len(BATCHES)


def test_statistics_of_a_batch_do_not_count_as_an_edits_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)).eval()  # of no batch's statistics
    batches = [Batch((torch.randn(20, 3, 7, 6),))]
    site, probe, wrapped = find_sites(model, batches[0].inputs).sites[0], Probe(model, batches), clone(model)
    prefix = Prefix(wrapped, batches)

    def answers(scale: float) -> Any:
        weights = Weights({k: v * scale for k, v in site.tensors.items()}, 0.0)
        return table._answers(site, Proposal("", site.block), weights, probe, wrapped, prefix)

    as_it_is = answers(1.0)
    assert probe.moved(as_it_is, probe.outputs) > 0.1
    assert probe.moved(answers(1.0), as_it_is) == 0
    assert probe.moved(answers(0.5), as_it_is) < 1e-4  # which the batch norm takes back


def test_a_form_has_a_few_of_its_sizes_fitted():
    def row(rule: str, middle: int, ms: float) -> Any:
        block = parse(f"ic64oc{middle}k1x1nb -> ic{middle}oc64k1x1")
        return Proposal(rule, block), {"latency": ms, "macs": 128.0 * middle, "params": 128.0 * middle}

    sizes = [row("r", middle, ms) for middle, ms in ((8, 1.0), (16, 3.0), (24, 2.0), (32, 2.5), (40, 2.75), (48, 4.0))]
    # 16 took longer than the larger 24; of the rest both ends and one between
    assert _worth_fitting(sizes, ["latency"]) == [sizes[0], sizes[3], sizes[5]]
    assert _worth_fitting([*sizes[:2], row("s", 24, 2.0)], ["latency"]) == [*sizes[:2], row("s", 24, 2.0)]
    assert _worth_fitting(sizes[:3], ["latency", "macs"]) == [sizes[0], sizes[2], sizes[1]]
    assert _worth_fitting(sizes[:3], []) == sizes[:3]


BLOCKS = [parse(f"ic4oc{n}k1x1") for n in range(1, 13)]


@pytest.mark.parametrize(
    "front, known, kept",
    [
        (0, [], []), (1, [], [0]), (8, [3], range(8)), (12, [], [0, 2, 3, 5, 6, 8, 9, 11]),
        (12, [1, 4, 7, 10], [0, 1, 2, 3, 4, 7, 10, 11]), (12, range(1, 11), [0, 1, 2, 3, 4, 5, 6, 11]),
    ],
)  # fmt: skip
def test_the_front_keeps_its_ends_and_what_is_known(front, known, kept, monkeypatch):
    monkeypatch.setattr(table, "MOST_PER_SITE", 8)
    rows = [(Proposal("r", block), {"latency": 1.0}, Weights({}, 0.0)) for block in BLOCKS[:front]]
    found = _spread(rows, {BLOCKS[i] for i in known})
    assert [BLOCKS.index(p.block) for p, _, _ in found] == list(kept)
    assert len(found) <= 8
