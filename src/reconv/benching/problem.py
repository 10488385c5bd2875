"""What the dispatcher is asked by a task."""

from __future__ import annotations

import torch

from reconv.benching.task import Task
from reconv.errors import conv_error
from reconv.ops import problem as problems
from reconv.ops.problem import Problem
from reconv.spec import ConvSpec


def problem_of(task: Task, layout: str, threads: int) -> Problem:
    """The problem of a single convolution, or of one of its gradients.

    Raises:  ConvError: when the task is none.
    """
    spec, last = task.block, layout == "channels_last"
    found = None
    if isinstance(spec, ConvSpec) and task.direction != "training":
        found = problems.of_spec(spec, task.input_shape, last, getattr(torch, task.dtype), threads)
    if found is None:
        raise conv_error("problem", "the task must be one pass of a single convolution", got={"task": str(task)},
                         also=ValueError)  # fmt: skip
    if task.direction == "forward":
        return found
    grad_stride = problems.dense_strides(found.wanted[0], last and found.dims > 1)
    return problems.gradients(found, grad_stride)[task.direction == "weight"]
