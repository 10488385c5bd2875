"""Targets besides eager PyTorch: they run a network as it is, and say why where they cannot."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from fakes import grid
from torch import nn

from reconv.costing.summary import summary
from reconv.errors import ConvError
from reconv.targets import exported, get_target, onnxruntime, openvino, time_networks
from reconv.targets.compiled import compiled

RUNNERS = {"onnxruntime": onnxruntime.runner, "openvino": openvino.runner}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(140, 2))  # fmt: skip


class Odd(nn.Module):
    """What none of the engines can trace."""

    def forward(self, x):
        return x if float(x.sum()) > 0 else torch.from_numpy(np.sin(x.numpy()))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch.compile"])
def test_an_engine_times_networks(name):
    engine, before = get_target(f"{name}:1"), torch.get_num_threads()
    assert engine.name == f"{name}:1"
    assert engine.fingerprint() != get_target(f"{name}:2").fingerprint()
    assert torch.__version__ in engine.fingerprint()
    model, x = network(), torch.rand(2, 3, 9, 7)
    modes = [m.training for m in model.modules()]
    (timing,) = time_networks(engine, [model], (x,), seconds=0.0)
    assert timing.median_ms > 0
    assert [m.training for m in model.modules()] == modes
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", RUNNERS)
def test_what_is_timed_computes_the_network(name):
    model, x = network().eval(), grid(2, 3, 9, 7)
    run = RUNNERS[name](exported.onnx_bytes(model, (x,)), [x.numpy()], 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run()[0]), model(x))
    with pytest.raises(Exception, match=r".+"):
        RUNNERS[name](b"no model", [x.numpy()], 1)


def test_compiled_functions_keep_their_own_code(monkeypatch):
    """More functions of the same code than the compiler keeps versions of."""
    many, compile_ = torch._dynamo.config.recompile_limit + 2, torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options: compile_(function, backend="eager"))
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        x = torch.ones(3)
        assert [_plus(n)(x)[0].item() for n in range(many)] == [1.0 + n for n in range(many)]


def _plus(n: int):
    return compiled(lambda x: x + n, frozen=False)


def test_what_cannot_be_exported_is_told():
    with pytest.raises(ConvError, match="must be able to run the network; got model=Odd, error=") as caught:
        get_target("openvino").measure([(Odd(), (torch.rand(2, 3),))], 0.0)
    assert isinstance(caught.value, RuntimeError)


def test_what_cannot_be_compiled_is_told(monkeypatch):
    def fails(*args):
        raise ZeroDivisionError("of the compiler")

    monkeypatch.setattr("reconv.targets.compiled.compiled", lambda model: fails)
    with pytest.raises(ConvError, match=r"got model=ReLU, error='ZeroDivisionError: of the compiler'"):
        get_target("torch.compile").measure([(nn.ReLU(), (torch.rand(2),))], 0.0)


@pytest.mark.parametrize("name, extra", [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_is_told(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConvError, match=rf"missing=onnx, .*pip install 'reconv\[{extra}\]'") as caught:
        get_target(name)
    assert isinstance(caught.value, ImportError)


def test_a_summary_on_another_engine():
    (row,) = summary(nn.Conv2d(3, 2, 3), torch.rand(1, 3, 8, 8), "onnxruntime:1").rows
    assert row.latency_ms > 0
