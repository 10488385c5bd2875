"""Torch-Pruning: channels removed everywhere, by their norm or by the loss's first-order change without them."""

from __future__ import annotations

import copy

from torch import nn

from ..method import Method, Setting, Subject, last_linear

SAMPLES = 500  # for the gradients
ROUND_TO = 4  # channels: engines like round numbers, and eights leave layers of 16 unpruned
LEAST = 0.9  # of a layer's channels may go, at most


def pruned(by: str, subject: Subject, setting: Setting) -> nn.Module:
    """One share of the channels in each layer, or over the whole network, more here and less there."""
    import torch_pruning as tp

    model = copy.deepcopy(subject.model)
    importance = tp.importance.GroupTaylorImportance() if by == "loss" else tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model, subject.example, importance, pruning_ratio=setting["ratio"], global_pruning=setting["over"] == "network",
        max_pruning_ratio=LEAST, ignored_layers=[last_linear(model)], round_to=ROUND_TO,
    )  # fmt: skip
    if by == "loss":
        subject.loss(model, SAMPLES).backward()
    pruner.step()
    model.zero_grad()
    return model


def sweep(over: str, *ratios: float) -> tuple[Setting, ...]:
    return tuple({"ratio": ratio, "over": over} for ratio in ratios)


METHODS = (
    Method("Torch-Pruning norm", lambda subject, setting: pruned("norm", subject, setting),
           sweep("layer", 0.4, 0.55)),
    Method("Torch-Pruning loss", lambda subject, setting: pruned("loss", subject, setting),
           sweep("layer", 0.25, 0.4, 0.55) + sweep("network", 0.4, 0.6)),
)  # fmt: skip
