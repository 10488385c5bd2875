"""Outputs of networks, whatever their structure: the tensors in them, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reconv.errors import conv_error


def tensors_in(output: Any) -> list[Tensor]:
    """Floating tensors of an output: a tensor, or tuples, lists, dicts and dataclasses of them, and kinds of these."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found += [leaf] if leaf.is_floating_point() else []
        elif isinstance(leaf, Mapping):  # subclasses of dict, tuple and list are leaves to PyTorch
            found += [t for value in leaf.values() for t in tensors_in(value)]
        elif isinstance(leaf, tuple | list):
            found += [t for value in leaf for t in tensors_in(value)]
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += [t for f in dataclasses.fields(leaf) for t in tensors_in(getattr(leaf, f.name))]
    return found


@torch.no_grad()
def squared_distance(student: Any, teacher: Any) -> tuple[float, float]:
    """(‖student − teacher‖², ‖teacher‖²) over all tensors of two outputs.

    Raises:  ConvError: where the outputs are not of the same structure and shapes, or hold no floating tensor.
    """
    ours, theirs = tensors_in(student), tensors_in(teacher)
    if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
        raise conv_error("reconv", "both networks must give the same floating tensors",
                         got={"student": [tuple(t.shape) for t in ours],
                              "teacher": [tuple(t.shape) for t in theirs]}, also=ValueError)  # fmt: skip
    apart = sum(float(torch.sum((a.double() - b.double()) ** 2)) for a, b in zip(ours, theirs, strict=True))
    return apart, sum(float(torch.sum(t.double() ** 2)) for t in theirs)


def distance(student: Any, teacher: Any) -> float:
    """‖student − teacher‖ / ‖teacher‖ over all tensors of two outputs."""
    apart, size = squared_distance(student, teacher)
    return ratio(apart, size)


def at_old_positions(output: Any, teacher: Any) -> list[Tensor]:
    """The tensors of a network whose maps became finer, at the positions that its teacher's have."""
    finer, coarse = tensors_in(output), tensors_in(teacher)
    if [t.ndim for t in finer] != [t.ndim for t in coarse]:
        return finer
    steps = [[max(1, -(-now // n)) if n else 1 for now, n in zip(f.shape, c.shape, strict=True)]
             for f, c in zip(finer, coarse, strict=True)]  # fmt: skip
    return [t[tuple(slice(None, None, step) for step in each)] for t, each in zip(finer, steps, strict=True)]


def ratio(apart: float, size: float) -> float:
    """The relative distance of its two squared parts; 0 / 0 is 0."""
    if size == 0:
        return 0.0 if apart == 0 else float("inf")
    return (apart / size) ** 0.5
