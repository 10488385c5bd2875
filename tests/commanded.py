"""The command line, called in this process, and a small network for it."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from reconv.cli import app

SOURCE = """
import pathlib
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(12, 5))

def data():
    return torch.randn(40, 3, 9, 7, generator=torch.Generator().manual_seed(3))

def holed():
    return torch.full((40, 3, 9, 7), float("nan"))

def doubles():
    return data().double()

def one():
    return data()[:1]

def once():
    return iter([torch.zeros(4, 3, 9, 7)])

def fails(model):
    raise ZeroDivisionError("no batches")

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(189, 5))

def score(model):
    calls = pathlib.Path("calls")
    if calls.exists():
        calls.write_text(calls.read_text() + "x")
        if len(calls.read_text()) == 3:
            calls.unlink()
            raise KeyboardInterrupt
    return 0.5
"""
MODEL = ["net.py:make", "--input", "1x3x9x7"]
DATA = ["--data", "net.py:data"]


def reconv(*args: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result
