"""Networks of the peers on disk: which plain layers they have, as JSON, and their weights. No pickles."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
NORM = ("num_features", "eps")
KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{kind.__name__: (kind, CONV) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    **{kind.__name__: (kind, NORM) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)},
    "Linear": (nn.Linear, ("in_features", "out_features")),
}


def structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Kind and arguments of every layer that has weights."""
    found = {}
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if kind in KINDS:
            bias = {"bias": layer.bias is not None} if KINDS[kind][1] != NORM else {}
            found[name] = {"kind": kind, **{key: getattr(layer, key) for key in KINDS[kind][1]}, **bias}
    return found


def rebuild(original: nn.Module, layers: dict[str, dict[str, Any]]) -> nn.Module:
    """A copy of the original with these layers; several in the place of one are a sequence."""
    model = copy.deepcopy(original)
    for name, given in layers.items():
        parents, _, child = name.rpartition(".")
        parent = model
        for step in parents.split(".") if parents else ():
            if type(getattr(parent, step)).__name__ in KINDS:
                setattr(parent, step, nn.Sequential())
            parent = getattr(parent, step)
        arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key != "kind"}
        setattr(parent, child, KINDS[given["kind"]][0](**arguments))
    return model.eval()


def save(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "layers.json").write_text(json.dumps(structure(model), indent=1) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def load(original: nn.Module, folder: Path) -> nn.Module:
    model = rebuild(original, json.loads((folder / "layers.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
