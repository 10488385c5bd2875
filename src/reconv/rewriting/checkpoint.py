"""The state of an unfinished recovery on disk: numbers and tensors only, replaced as a whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reconv.errors import conv_error
from reconv.files import check_stored
from reconv.writing import told, write_bytes

FILE = "recovery.pt"
FORMAT = 1


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replaces the folder's checkpoint.

    Raises:  ConvError: (an OSError too) when the disk does not take it; the earlier checkpoint stands.
    """
    memory = io.BytesIO()
    torch.save({"format": FORMAT, **state}, memory)
    with told(folder, "recover"):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILE, memory.getbuffer(), "recover")


def read_checkpoint(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The folder's checkpoint, None where there is none.

    Raises:  ConvError: when it cannot be read, or was written with other settings.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        check_stored(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(state["settings"])
    except Exception as error:  # whatever a damaged file brings about
        raise conv_error("recover", "the checkpoint must be readable", also=ValueError,
                         got={"checkpoint": path, "error": repr(str(error).partition("\n")[0])},
                         do="Delete it to begin anew.") from error  # fmt: skip
    if state.get("format", FORMAT) != FORMAT:
        raise conv_error("recover", f"the format of the checkpoint must be {FORMAT}", also=ValueError,
                         got={"checkpoint": path, "format": state["format"]},
                         do="Upgrade reconv to read a newer one, or delete it to begin anew.")  # fmt: skip
    changed = [name for name in settings if found.get(name) != settings[name]]
    if changed:
        now = ", ".join(f"{name}={found.get(name)}" for name in changed)
        raise conv_error("recover", "resume must keep the settings of the checkpoint", also=ValueError,
                         got={name: settings[name] for name in changed},
                         do=f"Use {now}, or resume=False.", spec=path)  # fmt: skip
    return state


def forget_checkpoint(folder: Path) -> None:
    """Removes what another recovery left, so that none goes on from it."""
    if (folder / FILE).exists():
        (folder / FILE).unlink()


def tensors_of_module(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, shared ones once."""
    return {name: tensor.detach().clone() for name, tensor in _named(module).items()}


def set_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `tensors_of_module` took."""
    own = _named(module)
    if own.keys() != tensors.keys() or any(own[name].shape != t.shape for name, t in tensors.items()):
        raise conv_error("recover", "the checkpoint must be of the same network", also=ValueError,
                         got={"differing": sorted(own.keys() ^ tensors.keys())[:3]})  # fmt: skip
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
