"""The recovery that all methods get: reconv's distillation, with the same data, epochs and seed."""

from __future__ import annotations

from torch import nn

import reconv
from reconv.targets import to_layout

from .method import Subject

HOLDOUT, SEED = 0.1, 0  # what reconv.rewrite takes, too


def recovered(student: nn.Module, subject: Subject, epochs: int) -> nn.Module:
    student = to_layout(student, "channels_last")  # which trains faster
    return reconv.recover(student, subject.model, subject.calibration, epochs, holdout=HOLDOUT, seed=SEED)
