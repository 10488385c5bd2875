"""What a reference names: a callable, an architecture of a library, or a file that holds a network."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from reconv.errors import ConvError, conv_error
from reconv.rewriting.architectures import LIBRARIES, nearest
from reconv.rewriting.onnx_file import read_onnx
from reconv.rewriting.pt2 import read_pt2

CALLABLES = "package.module:callable or file.py:callable"
FORMS = "package.module:callable, file.py:callable, timm:, torchvision: or transformers:NAME, or a .pt2 or .onnx file"

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
FILES = {".pt2": read_pt2, ".onnx": read_onnx}
_OURS = re.compile(r"reconv\.(networks(\.\w+)*:\w+|demo\.network:digits_vgg)")


@dataclass(frozen=True)
class Reference:
    """A parsed reference; kind is "module", "file" (Python), a library's name, or the suffix of a file.

    Example:
             >>> Reference.parse("nets/tiny.py:make")
             Reference(kind='file', place='nets/tiny.py', name='make')
    """

    kind: str
    place: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads a reference without running anything; raises ConvError (a ValueError) where it has no known form."""
        library, colon, name = text.partition(":")
        if library in LIBRARIES and colon:
            if LIBRARIES[library].form.fullmatch(name):
                return cls(library, library, name)
        elif (suffix := Path(text).suffix.lower()) in FILES:
            return cls(suffix, text, "")
        place, colon, name = text.rpartition(":")
        if colon and _DOTTED.fullmatch(name):
            if place.endswith(".py"):
                return cls("file", place, name)
            if _DOTTED.fullmatch(place):
                return cls("module", place, name)
        raise conv_error("reference", f"a reference must be {FORMS}", got={"reference": repr(text)}, also=ValueError)

    def __str__(self) -> str:
        return f"{self.place}:{self.name}" if self.name else self.place

    @property
    def runs_foreign_code(self) -> bool:
        """Whether following it runs code that is neither a known library's nor ours."""
        return self.kind in ("module", "file") and not self.is_ours

    @property
    def is_ours(self) -> bool:
        return _OURS.fullmatch(str(self)) is not None


def check_callable_ref(text: str) -> Reference:
    """The reference to a function; raises a ConvError (a ValueError) for other forms. Runs nothing."""
    try:
        reference = Reference.parse(text)
    except ConvError:
        reference = None
    if reference is None or reference.kind not in ("module", "file"):
        raise conv_error(
            "reference", f"a reference must be {CALLABLES}", got={"reference": repr(text)}, also=ValueError
        )
    return reference


def load_callable(text: str) -> Callable[..., Any]:
    """The callable that a reference names. Importing it runs its module's code.

    Raises:  ConvError: when it has no such form, cannot be imported, or is not callable.
    """
    reference = check_callable_ref(text)
    found: Any = _file(reference) if reference.kind == "file" else _module(reference)
    for attribute in reference.name.split("."):
        if not hasattr(found, attribute):
            raise conv_error("reference", f"{reference.place} must have what is named", got={"reference": repr(text)},
                             do=nearest(attribute, _callables(found)), also=AttributeError)  # fmt: skip
        found = getattr(found, attribute)
    if not callable(found):
        raise conv_error("reference", "a reference must name something that can be called",
                         got={"reference": repr(text), "type": type(found).__name__}, also=TypeError)  # fmt: skip
    return found


def build_model(text: str) -> nn.Module:
    """The network that a reference names: what a callable returns, a library's architecture, or what a file holds.

    A library's is untrained, but for transformers:FOLDER, which comes with its weights. Nothing is fetched.

    Raises:  ConvError: when there is no such thing, it fails (its own error is quoted) or returns something else.
    Example:
             >>> type(build_model("torch.nn:Identity")).__name__
             'Identity'
    """
    reference = Reference.parse(text)
    if reference.kind in LIBRARIES:
        model = LIBRARIES[reference.kind].build(reference.name)
    elif reference.kind in FILES:
        model = FILES[reference.kind](Path(reference.place))
    else:
        model = call(load_callable(text), text)
    if not isinstance(model, nn.Module):
        raise conv_error("model", "the callable must return a torch.nn.Module",
                         got={"model": repr(text), "returned": type(model).__name__}, also=TypeError)  # fmt: skip
    return model


def build_trusted(text: str) -> nn.Module:
    """As `build_model`, for a reference that a file gives: networks of libraries, files and ours, none by foreign code.

    Raises:  ConvError (a PermissionError): when the reference names foreign code.
    """
    reference = Reference.parse(text)
    if reference.runs_foreign_code or (reference.is_ours and not _defined_here(load_callable(text))):
        raise conv_error("load", "the structure must come from a known library, reconv.networks or a file, or be given",
                         got={"model": repr(text)},
                         do="Give base=…, or trust_code=True (--trust-code) to run the code that it names.",
                         also=PermissionError)  # fmt: skip
    return build_model(text)


def _defined_here(function: Callable[..., Any]) -> bool:
    """Not something that our module merely imported."""
    return str(getattr(function, "__module__", "")).startswith(("reconv.networks", "reconv.demo.network"))


def call(function: Callable[[], Any], text: str) -> Any:
    """Calls a user's function without arguments; what it raises becomes a ConvError that says where."""
    try:
        return function()
    except ConvError:
        raise
    except (Exception, SystemExit) as error:
        raise foreign_error(text, error) from error


def foreign_error(text: str, error: BaseException, do: str = "") -> ConvError:
    """Quotes what a user's code raised, with its file and line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_foreign(f.filename)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    quoted = " ".join(f"{type(error).__name__}: {error}".split())
    return conv_error("reference", "what is named must run without an error",
                      got={"reference": repr(text), "error": repr(quoted) + where}, do=do,
                      also=ImportError if isinstance(error, ImportError) else RuntimeError)  # fmt: skip


def _is_foreign(file: str) -> bool:
    """Not this module, which only makes the call, nor Python's own import machinery."""
    return file != __file__ and not file.startswith("<frozen") and Path(file).parent.name != "importlib"


def _module(reference: Reference) -> ModuleType:
    if not reference.is_ours:
        _importable(Path.cwd())
    try:
        return importlib.import_module(reference.place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == reference.place.partition(".")[0]:
            raise foreign_error(str(reference), error, nearest(error.name, LIBRARIES)) from error
        raise foreign_error(str(reference), error) from error


def _file(reference: Reference) -> ModuleType:
    path = Path(reference.place)
    if not path.is_file():
        raise conv_error("reference", "the file must exist", got={"file": repr(reference.place)},
                         also=FileNotFoundError)  # fmt: skip
    _importable(path.resolve().parent)
    name = f"_reconv_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise conv_error("reference", "the file must be Python", got={"file": repr(reference.place)}, also=ValueError,
                         do="Its name must end in .py.")  # fmt: skip
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.export look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise foreign_error(str(reference), error) from error
    return module


def _importable(folder: Path) -> None:
    """Lets the user's modules import their neighbours. At the end of the path: what is installed comes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _callables(module: object) -> list[str]:
    return sorted(n for n, v in getattr(module, "__dict__", {}).items() if callable(v) and not n.startswith("_"))
