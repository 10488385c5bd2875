"""Tensors of a network in a safetensors file and back: nothing but numbers and names is ever read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from reconv.errors import ConvError, conv_error
from reconv.files import parse_json
from reconv.plain import listed
from reconv.writing import replacing

UNSET = (UninitializedParameter, UninitializedBuffer)
ALIASES = "aliases"  # metadata: {name: the name under which the same tensor is stored}, as JSON


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the state dict as safetensors; a tensor that has several names is stored once.

    Raises:  ConvError: when an entry is not a plain tensor.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in model.state_dict().items():
        _check_plain(name, tensor)
        known = first.setdefault(_identity(tensor), name) if tensor.numel() else name
        if known == name:
            stored[name] = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
        else:
            aliases[name] = known
    try:
        with replacing(path) as part:
            save_file(_apart(stored), part, {"format": "pt", ALIASES: json.dumps(aliases, sort_keys=True)})
    except SafetensorError as error:  # its name for a full disk, among others
        raise conv_error("save", "the weights must be writable", got={"file": path, "error": repr(str(error))},
                         also=OSError, do="Free some space, or choose another folder; what stood there stands.",
                         ) from error  # fmt: skip


def _identity(tensor: Tensor) -> object:
    """The same for two tensors only if they are the same numbers in the same memory."""
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that are windows into larger or shared memory: safetensors wants each by itself."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        alone = memory.data_ptr() not in seen and memory.nbytes() == tensor.nbytes
        seen.add(memory.data_ptr())
        apart[name] = tensor if alone else tensor.clone()
    return apart


def _check_plain(name: str, tensor: object) -> None:
    unset = isinstance(tensor, UNSET) or (isinstance(tensor, Tensor) and tensor.is_meta)
    if unset or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        raise conv_error("save", "every entry of the state dict must be a plain tensor",
                         got={"entry": repr(name), "type": _kind(tensor)}, also=TypeError)  # fmt: skip


def _kind(entry: object) -> str:
    if not isinstance(entry, Tensor) or isinstance(entry, UNSET):
        return type(entry).__name__
    return f"{entry.device.type} {entry.layout} {entry.dtype}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file under all their names.

    Raises:  ConvError: when the file is missing, cut short or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
            aliases = parse_json((file.metadata() or {}).get(ALIASES, "{}"))
            return tensors | {alias: tensors[name] for alias, name in aliases.items()}
    except FileNotFoundError as error:
        raise conv_error("weights", "the file must exist", got={"file": path}, also=FileNotFoundError) from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise conv_error("weights", "the file must be whole and safetensors",
                         got={"file": path, "error": repr(str(error))}, also=ValueError) from error  # fmt: skip


def fit(model: nn.Module, tensors: Mapping[str, Tensor], source: object, same_dtype: bool = False) -> None:
    """Loads `tensors` into `model`: all of them, and nothing of the model is left out.

    Raises:  ConvError: when names, shapes or (if asked) dtypes differ; it names the first of them.
    """
    own = model.state_dict()
    wrong = [f"{n} is {_shape(tensors[n], same_dtype)}, not {_shape(own[n], same_dtype)}" for n in own.keys() & tensors
             if _shape(tensors[n], same_dtype) != _shape(own[n], same_dtype)]  # fmt: skip
    if wrong:
        raise _misfit(source, {"different": wrong})
    try:
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise conv_error("weights", "the tensors must fit the network",
                         got={"file": source, "error": repr(str(error))}, also=RuntimeError) from error  # fmt: skip
    loaded = {_identity(own[name]) for name in own.keys() & tensors}
    missing = [name for name in missing if name not in own or _identity(own[name]) not in loaded]  # tied ones are there
    if missing or unexpected:
        raise _misfit(source, {"missing": missing, "unexpected": unexpected})


def _misfit(source: object, differences: Mapping[str, list[str]]) -> ConvError:
    lists = {kind: f"[{listed(sorted(names), 4)}]" for kind, names in differences.items() if names}
    return conv_error("weights", "the tensors must be those of the network", got={"file": source, **lists},
                      do="Give the network that these weights belong to.", also=RuntimeError)  # fmt: skip


def _shape(tensor: Tensor, with_dtype: bool) -> str:
    text = "×".join(map(str, tensor.shape)) or "a single number"
    return f"{text} {str(tensor.dtype).removeprefix('torch.')}" if with_dtype else text
