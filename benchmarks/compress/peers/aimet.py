"""AIMET: spatial SVD, with ranks chosen layer by layer by what each costs in accuracy ("auto mode")."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..method import Method, Refused, Setting, Subject, first_conv

SAMPLES, CANDIDATES = 300, 10  # judged on; ratios tried in each layer
SCORES = "data/greedy_selection_eval_scores_dict.pkl"  # AIMET's own, which it writes into the working directory


def compressed(subject: Subject, setting: Setting) -> nn.Module:
    let_torchvision_import()
    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters

    if subject.example.dim() != 4:
        raise Refused("it serves 2D networks only")
    model = copy.deepcopy(subject.model).eval()
    spared = [m for m in model.modules() if isinstance(m, nn.Conv2d) and (m.groups > 1 or m is first_conv(model))]
    folder = subject.folder / "aimet"
    with inside(folder):
        known = SCORES if (folder / SCORES).is_file() else None
        greedy = GreedySelectionParameters(Decimal(str(setting["macs"])), CANDIDATES, saved_eval_scores_dict=known)
        auto = SpatialSvdParameters.AutoModeParams(greedy, modules_to_ignore=spared)
        parameters = SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto)
        smaller, _ = ModelCompressor.compress_model(
            model, lambda net, samples, use_cuda: subject.score(net, samples), SAMPLES, tuple(subject.example.shape),
            CompressionScheme.spatial_svd, CostMetric.mac, parameters,
        )  # fmt: skip
    return smaller


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With that working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        yield


@functools.cache
def let_torchvision_import() -> Any:
    """Declares the operators that torchvision's CUDA build registers and a CPU torch lacks."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


METHODS = (Method("AIMET spatial SVD", compressed, tuple({"macs": share} for share in (0.5, 0.35, 0.25))),)
