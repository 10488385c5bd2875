"""Networks that timm, torchvision and transformers know by name: built without weights, and nothing fetched."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from reconv.errors import ConvError, conv_error, first_line
from reconv.files import read_json


@dataclass(frozen=True)
class Library:
    """Where architectures come from. `form`: of their names, which leaves out what would fetch."""

    form: re.Pattern[str]
    build: Callable[[str], Any]


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: those that are like it, else the first of all."""
    known = list(known)
    close = get_close_matches(name, known, n=4, cutoff=0.6)
    if close:
        return f"Nearest: {', '.join(close)}."
    return f"It has {', '.join(known[:8])}{', …' if len(known) > 8 else ''}." if known and len(known) > 3 else ""


def _timm(name: str) -> Any:
    timm = _library("timm", "timm:NAME needs the package timm, and timm a torchvision that fits torch")
    try:
        return timm.create_model(name, pretrained=False)
    except Exception as error:
        raise _unknown("timm", name, error, timm.list_models()) from error


def _torchvision(name: str) -> Any:
    models = _library("torchvision.models", "torchvision:NAME needs a torchvision that fits torch")
    try:
        takes = inspect.signature(models.get_model_builder(name)).parameters
        without = {"weights": None, "weights_backbone": None, "init_weights": False}  # the last only warns, and is slow
        return models.get_model(name, **{key: value for key, value in without.items() if key in takes})
    except Exception as error:
        raise _unknown("torchvision", name, error, models.list_models()) from error


def _transformers(name: str) -> Any:
    """A model type's backbone, or its classifier where it has none; or the network of a folder, with its weights."""
    transformers = _library("transformers", "transformers:NAME needs the package transformers")
    if (Path(name) / "config.json").is_file():
        return _of_folder(transformers, Path(name))
    known = _vision_types(transformers)
    wrong: Exception | None = None
    for kind in known.get(name, ()):
        try:
            return kind.from_config(transformers.AutoConfig.for_model(name))
        except Exception as error:  # some backbones fail on their own type's configuration
            wrong = wrong or error
    raise _unknown("transformers", name, wrong, known) from wrong


def _vision_types(transformers: Any) -> dict[str, list[Any]]:
    """Types of vision networks, and the classes that build each from its configuration: a backbone first."""
    auto = import_module("transformers.models.auto.modeling_auto")
    known: dict[str, list[Any]] = {}
    for names, kind in ((auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, transformers.AutoBackbone),
                        (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
                         transformers.AutoModelForImageClassification)):  # fmt: skip
        for name in names:
            known.setdefault(name, []).append(kind)
    return known


def _of_folder(transformers: Any, folder: Path) -> Any:
    """What save_pretrained wrote: of the class that its config.json names, weights from safetensors only."""
    try:
        named = read_json(folder / "config.json").get("architectures") or [""]
        kind = getattr(transformers, str(named[0]), None)
        if kind is None or not issubclass(kind, transformers.PreTrainedModel):
            raise conv_error("model", "config.json must name a class of transformers", also=ValueError,
                             got={"folder": folder, "architectures": named})  # fmt: skip
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except ConvError:
        raise
    except Exception as error:
        raise conv_error("model", "the folder must be as save_pretrained of transformers writes it", also=ValueError,
                         got={"folder": folder, "error": repr(first_line(error))},
                         do="It must hold config.json and model.safetensors.") from error  # fmt: skip


def _library(name: str, must: str) -> Any:
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except Exception as error:  # a torchvision that does not fit torch raises others than ImportError
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        raise conv_error("model", must, got={"error": repr(str(error))}, also=ImportError,
                         do=f"pip install {package}." if absent else f"`python -c 'import {name}'` must run first.",
                         ) from error  # fmt: skip


def _unknown(library: str, name: str, error: Exception | None, known: Iterable[str]) -> ConvError:
    known = list(known)
    if error is not None and name in known:
        return conv_error("model", f"{library} must be able to build the network", also=RuntimeError,
                          got={"name": repr(name), "error": repr(first_line(error))})  # fmt: skip
    return conv_error("model", f"{library} must know the network", got={"name": repr(name)},
                      do=nearest(name, known), also=ValueError)  # fmt: skip


_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")  # no "hf-hub:" or "local-dir:", which fetch
_NAME_OR_FOLDER = re.compile(r"[^:]+|[A-Za-z]:[^:]+")
LIBRARIES = {
    "timm": Library(_NAME, _timm),
    "torchvision": Library(_NAME, _torchvision),
    "transformers": Library(_NAME_OR_FOLDER, _transformers),
}
