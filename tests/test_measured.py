"""What a plan says of a whole network is what the network that `apply` builds has."""

from __future__ import annotations

import pytest
from counted import memory
from fakes import MS_PER_OPERATOR, FakeTarget
from planned import DATA, IMAGE, network
from torch import nn

from reconv.costing.summary import summary
from reconv.planning.make import plan
from reconv.rewriting.apply import apply

FAKE = FakeTarget()


@pytest.mark.parametrize(
    "rules, budget", [("separable", "latency=0.6"), ("prune_channels", "macs=0.6,params=0.8"),
                      (("bottleneck", "asymmetric"), "memory=0.7")],
)  # fmt: skip
def test_figures_of_smaller_networks(rules, budget):
    made = plan(network(), IMAGE, budget, DATA, FAKE, rules)
    student = apply(network(), made, IMAGE, DATA)
    got = made.measured
    assert made.edits
    assert got.macs == summary(student, IMAGE).network.macs
    assert got.params == sum(p.numel() for p in student.parameters())
    assert got.memory == memory(student, IMAGE)
    assert got.latency_ms == FAKE.measure([(student, (IMAGE,))], 0.0)[0].median_ms
    assert got.layers == len({edit.site for edit in made.edits})


@pytest.mark.parametrize("rules", ["exact", "smaller"])
def test_figures_of_a_network_that_stays(rules):
    """Nothing serves a single convolution without anything around it, at no more than no error at all."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3)).eval()
    made = plan(model, IMAGE, "error=1e-9", DATA, FAKE, rules)
    assert made.edits == ()
    assert (made.latency_ratio, made.measured.error) == (1.0, 0.0)
    assert made.measured.macs == summary(model, IMAGE).network.macs
    assert made.measured.params == 3 * 5 * 9 + 5
    assert made.measured.memory == memory(model, IMAGE)
    assert made.measured.latency_ms == FAKE.measure([(model, (IMAGE,))], 0.0)[0].median_ms


def test_each_edit_is_timed_in_its_place():
    """Exact edits too."""
    made = plan(network(), IMAGE, "latency=0.6", DATA, FAKE)
    model = network()
    rows = {row.name: row.latency_ms for row in summary(apply(model, made, IMAGE), IMAGE, FAKE).rows}
    assert {edit.site for edit in made.edits if edit.rule == "fold_batch_norm"}
    last = {edit.site: edit for edit in made.edits}  # of several at a site the last one's block is what runs
    for name, edit in last.items():
        inside = [ms for row, ms in rows.items() if row == name or row.startswith(f"{name}.")]
        assert edit.latency_ms == pytest.approx(sum(inside), abs=1.5 * MS_PER_OPERATOR), (name, edit.rule)
