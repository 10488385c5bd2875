"""Budgets are read; what is none is refused with the grammar."""

from __future__ import annotations

import pytest
from messages import told

from reconv.errors import ConvError
from reconv.planning.budget import Budget, Limit


def fraction(value: float) -> Limit:
    return Limit(value, absolute=False)


def amount(value: float) -> Limit:
    return Limit(value, absolute=True)


@pytest.mark.parametrize(
    "text, limits",
    [
        ("latency=0.4", {"latency": fraction(0.4)}),
        ("latency=1", {"latency": fraction(1.0)}),
        ("latency=.5", {"latency": fraction(0.5)}),
        ("latency=5e-1", {"latency": fraction(0.5)}),
        ("latency=12ms", {"latency": amount(12.0)}),
        ("latency=300us", {"latency": amount(0.3)}),
        ("latency=1.5 s", {"latency": amount(1500.0)}),
        ("macs=1.2G", {"macs": amount(1.2e9)}),
        ("params=50M", {"params": amount(5e7)}),
        ("params=0.5K", {"params": amount(500.0)}),
        ("memory=64MiB", {"memory": amount(2.0**26)}),
        ("memory=64MB", {"memory": amount(64e6)}),
        ("error=0.05", {"error": amount(0.05)}),
        (" latency = 0.4 , params = 2M ", {"latency": fraction(0.4), "params": amount(2e6)}),
        ({"latency": 0.4, "memory": "3KiB"}, {"latency": fraction(0.4), "memory": amount(3072.0)}),
        ({"error": 1e-05}, {"error": amount(1e-5)}),
        (None, {}),
        ({}, {}),
        (Budget({"error": amount(1.0)}), {"error": amount(1.0)}),
    ],
)
def test_budgets_are_read(text, limits):
    budget = Budget.of(text)
    assert budget.limits.keys() == limits.keys()
    for name, limit in budget.limits.items():
        assert (limit.value, limit.absolute) == (pytest.approx(limits[name].value), limits[name].absolute)
    assert bool(budget) == bool(limits)
    assert budget.only_error == (list(limits) == ["error"])


@pytest.mark.parametrize(
    "text",
    ["", "latency", "latency=", "=0.5", "latency=0", "latency=1.01", "latency=-0.5", "latency=2", "latency=nan",
     "latency=inf", "latency=12MB", "latency=12 parsecs", "macs=1ms", "macs=2e9", "error=2", "error=5%", "error=1ms",
     "latency=1e999", "latency=1e999ms", "latency=0ms", "latency=0.0us", "latency=1e-999s", "macs=0", "macs=-1G",
     "params=1e400M", "memory=0B", "latency=0.5,latency=12ms", "error=0", "error=0.0", "error=-0.1", "error=1e999",
     {"latency": float("inf")}, {"latency": float("nan")}, {"error": 0},
     "flops=0.5", "Latency=0.5", "latency=0.5,", "latency=0.5,latency=0.4", "latency=0.5;params=0.5", "latency=0.5ms2",
     "latency=0x1", 0.5, 5, ["latency=0.5"], {"latency": None}, {"latency": True}],
)  # fmt: skip
def test_wrong_budgets_show_the_grammar(text):
    with pytest.raises(ConvError, match=r"^budget: .*; got budget=.*NAME=VALUE") as caught:
        Budget.of(text)
    assert isinstance(caught.value, ValueError)
    told(caught.value)


@pytest.mark.parametrize("limit, bound", [(fraction(0.25), 2.0), (amount(3.0), 3.0)])
def test_a_limit_is_of_now_or_absolute(limit, bound):
    assert limit.amount(8.0) == bound
