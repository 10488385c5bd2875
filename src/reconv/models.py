"""MODEL of the command line, and the weights for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # the error only: nothing is unpickled
from typing import Any

import torch
from torch import Tensor, nn

from reconv.errors import ConvError, conv_error, first_line
from reconv.files import check_stored
from reconv.rewriting.references import FORMS, Reference, build_model
from reconv.rewriting.store import is_run, load
from reconv.rewriting.weights import fit, read_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts put the state dict
PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def resolve(ref: str, weights: str | Path | None = None, trust_code: bool = False) -> nn.Module:
    """The network that MODEL names, in evaluation mode.

    Args:    ref: `package.module:callable` or `file.py:callable` (naming them runs their code), `timm:NAME`,
             `torchvision:NAME`, `transformers:NAME`, or what holds its weights: a .pt2 or .onnx file, a run folder.
             weights: a .safetensors file, or a .pt that holds tensors only.
             trust_code: whether a run folder may name code to run.
    Raises:  ConvError: when there is no such network, or the weights are not its own or hold code.
    Example:
             >>> resolve("torch.nn:Identity")
             Identity()
    """
    check_ref(ref)
    if is_run(ref):
        if weights is not None:
            raise conv_error("model", "a run folder comes with its own weights", got={"weights": weights},
                             do="Leave --weights out.", also=ValueError)  # fmt: skip
        return load(ref, trust_code=trust_code)
    model = build_model(ref)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def check_ref(ref: str) -> None:
    """Raises a ConvError (a ValueError) unless MODEL has one of the known forms. Runs nothing."""
    if is_run(ref):
        return
    try:
        Reference.parse(ref)
    except ConvError as error:
        raise conv_error("model", f"MODEL must be {FORMS}, or a run folder", got={"MODEL": repr(ref)},
                         also=ValueError) from error  # fmt: skip


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint into `model`: its tensors, never code.

    A state dict may lie under "state_dict", "model_state_dict" or "model", and its names may begin with "module." or
    "_orig_mod.".
    """
    path = Path(path)
    tensors = read_weights(path) if path.suffix == ".safetensors" else _read_pt(path)
    fit(model, _renamed(tensors, set(model.state_dict())), path)


def _read_pt(path: Path) -> dict[str, Tensor]:
    if path.suffix not in SUFFIXES:
        raise conv_error("weights", f"the file must be .safetensors or one of {', '.join(SUFFIXES)}",
                         got={"file": path}, also=ValueError)  # fmt: skip
    if not path.is_file():
        raise conv_error("weights", "the file must exist", got={"file": path}, also=FileNotFoundError)
    try:
        check_stored(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise conv_error("weights", "the file must hold tensors only, no code; nothing of it was run",
                         got={"file": path}, do="Where you trust it, save model.state_dict(), best as safetensors.",
                         also=ValueError) from error  # fmt: skip
    except Exception as error:
        raise conv_error("weights", "the file must be a whole checkpoint",
                         got={"file": path, "error": repr(first_line(error))}, also=ValueError) from error  # fmt: skip
    return _held(_state_dict(held, path), path)


def _state_dict(held: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, or the one inside a training script's checkpoint."""
    inner = [held[key] for key in WRAPPERS if isinstance(held, Mapping) and isinstance(held.get(key), Mapping)]
    for candidate in (*inner, held):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): tensor for name, tensor in candidate.items()}
    raise conv_error("weights", "the file must hold a state dict: names and tensors",
                     got={"file": path, "type": type(held).__name__}, also=TypeError)  # fmt: skip


def _held(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, all of whose numbers are in the file: torch makes room for those that are not."""
    beyond = [name for name, tensor in tensors.items()
              if tensor.layout is not torch.strided or tensor.is_meta
              or tensor.untyped_storage().nbytes() > path.stat().st_size]  # fmt: skip
    if beyond:
        raise conv_error("weights", "every tensor must be plain, and its numbers in the file",
                         got={"file": path, "tensor": repr(beyond[0])}, also=ValueError)  # fmt: skip
    return tensors


def _renamed(tensors: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Without prefixes that all names have and the network's own have not."""
    while tensors and not own & tensors.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
