"""Run folders: `save_run` writes one, `load` rebuilds its network."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reconv import __version__
from reconv.costing.render import from_dict
from reconv.costing.summary import Summary
from reconv.errors import ConvError, conv_error
from reconv.files import read_json
from reconv.planning.edits import restructure
from reconv.planning.made_for import differing
from reconv.planning.plan import Plan
from reconv.reporting.front import front_svg
from reconv.reporting.page import page
from reconv.reporting.seen import Seen
from reconv.rewriting.folder import alone, placed, together
from reconv.rewriting.references import build_model, build_trusted
from reconv.rewriting.weights import fit, read_weights, save_weights
from reconv.spec import in_channels, params
from reconv.surgery.fingerprint import structure_hash, update
from reconv.writing import told, write_text

FORMAT = 1
LARGER = 64  # times: what an exact rule folds away later is not in the folder
PLAN, CONFIG, WEIGHTS, SUMMARY, REPORT = "plan.json", "config.json", "model.safetensors", "summary.json", "report.html"
CHECKPOINT, FRONT = "checkpoint", "front"


def save_run(
    folder: str | Path,
    *,
    model: nn.Module,
    plan: Plan,
    before: Summary | None = None,
    after: Summary | None = None,
    error: float | None = None,
    config: Mapping[str, Any],
    seen: Seen | None = None,
) -> None:
    """Writes a run folder, all of it or nothing: until it is written, the folder is as it was.

    Args:    config: what the run was asked to do. `config["model"]` is {"ref", "hash"} of the network that it began
             with; without it, `plan.model` is.
             seen: what the report shows of both networks at work.
    Raises:  ConvError: when the network's state dict holds what safetensors cannot, another process works in the
             folder, or (an OSError too) the disk does not take it.
    """
    folder = Path(folder)
    with alone(folder, "save"), told(folder, "save"), together(folder) as new:
        config = write_config(new, {"model": dict(plan.model), **config})
        write_text(new / PLAN, plan.text())
        if plan.alternatives:
            save_front(new / FRONT, plan)
        save_weights(model, new / WEIGHTS)
        write_json(new / SUMMARY, {"format": FORMAT, "before": before and before.to_dict(),
                                   "after": after and after.to_dict(), "error": error})  # fmt: skip
        write_text(new / REPORT, page(before, after, plan, config, error, seen))


@dataclass(frozen=True)
class Run:
    """What a run folder says, besides the network itself."""

    plan: Plan
    config: Mapping[str, Any]
    before: Summary | None
    after: Summary | None
    error: float | None


def read_run(folder: str | Path) -> Run:
    """Reads plan, settings and figures of a run folder.

    Raises:  ConvError: when a file of it is missing or broken; names the file.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = _inside(folder, PLAN)
    try:
        plan = Plan.load(path)
    except ConvError as error:
        raise _broken(path, error) from error
    path = _inside(folder, SUMMARY)
    held = _read_json(path)
    _check_format(held, SUMMARY)
    try:
        before, after = (None if held[name] is None else from_dict(held[name]) for name in ("before", "after"))
        error_then = None if held["error"] is None else float(held["error"])
    except (ConvError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(path, error) from error
    return Run(plan, config, before, after, error_then)


def _broken(path: Path, error: Exception) -> ConvError:
    return conv_error("load", f"{path.name} must be as reconv wrote it", got={"file": path, "error": repr(str(error))},
                      also=ValueError)  # fmt: skip


def save_front(folder: Path, plan: Plan) -> None:
    """Writes a plan's alternatives, from fast to slow, and the picture of the trade-off."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, other in enumerate(plan.alternatives, 1):
        write_text(folder / f"{number}.json", other.text())
    write_text(folder / "front.svg", front_svg(plan))


def write_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes config.json, with the versions that are at work; returns what it holds."""
    full = {"format": FORMAT, "versions": versions(), **config}
    write_json(folder / CONFIG, full)
    return full


def read_config(folder: str | Path) -> dict[str, Any]:
    """What config.json of a run folder says.

    Raises:  ConvError: when it is missing, no JSON object, or of a newer format.
    """
    config = _read_json(_inside(Path(folder), CONFIG))
    _check_format(config, "the run folder")
    return config


def _check_format(held: Mapping[str, Any], what: str) -> None:
    if held.get("format") != FORMAT:
        raise conv_error("load", f"the format of {what} must be {FORMAT}", got={"format": held.get("format")},
                         do="Upgrade reconv to read a newer one.", also=ValueError)  # fmt: skip


def is_run(path: str | Path) -> bool:
    """Whether the path is a run folder."""
    return placed(Path(path), CONFIG).is_file()


def load(
    folder: str | Path, base: nn.Module | Callable[[], nn.Module] | None = None, trust_code: bool = False
) -> nn.Module:
    """Rebuilds the network of a run folder, in evaluation mode.

    Args:    folder: that `rewrite`, `Result.save` or the command line wrote.
             base: the structure that the run began with, or what returns it; its weights do not matter. None: what
             the folder names, if that is a file, or reconv's own, timm's, torchvision's or transformers'; anything else
             is code, which needs `trust_code`.
    Raises:  ConvError: when a file is missing, cut short, of a newer format or does not fit the structure.
    Example:
             >>> import reconv, tempfile, torch
             >>> net, folder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), tempfile.mkdtemp()
             >>> x = torch.rand(1, 3, 9, 9)
             >>> result = reconv.rewrite(net, x, rules="exact", out=folder)
             >>> torch.equal(load(folder, base=net)(x), result.model(x))
             True
    """
    folder = Path(folder)
    config = read_config(folder)
    plan, weights = Plan.load(_inside(folder, PLAN)), read_weights(_inside(folder, WEIGHTS))
    _check_sizes(plan, sum(tensor.numel() for tensor in weights.values()))
    named = config.get("model")
    named = named if isinstance(named, Mapping) else {}
    structure = base_of(base, named.get("ref"), trust_code)
    expected, found = named.get("hash"), structure_hash(structure)
    if expected is not None and expected != found:
        raise conv_error("load", "base must have the structure that the run began with", also=ValueError,
                         got={"hash": found, "expected": expected, "model": repr(named.get("ref")),
                              **differing(plan, structure)},
                         do="Its state dict must have the same names, shapes and dtypes.")  # fmt: skip
    model = restructure(structure, plan)
    fit(model, weights, folder / WEIGHTS, same_dtype=True)
    return model.eval()


def _check_sizes(plan: Plan, held: int) -> None:
    """No layer of the plan, which is made before its weights are put in, has far more of them than the folder holds."""
    for edit in plan.edits:
        if (size := params(edit.block, in_channels(edit.block) or 1)) > LARGER * held + 2**20:
            raise conv_error("load", "the plan's layers must be those of the weights", also=ValueError,
                             got={"site": edit.site, "its weights": size, "in the folder": held},
                             do="Give the folder that reconv rewrite wrote.")  # fmt: skip


def base_of(base: nn.Module | Callable[[], nn.Module] | None, ref: object, trust_code: bool) -> nn.Module:
    """The network that a run began with: what is given, or else what the folder's reference names."""
    if base is None:
        if not isinstance(ref, str):
            raise conv_error("load", "base must be given where the run folder names no network", got={"base": None},
                             do="Give base=…: the network's structure, or a function that returns it.",
                             also=ValueError)  # fmt: skip
        if is_run(ref):  # a run that began with the network of another run
            return _of_run(ref, trust_code)
        return build_model(ref) if trust_code else build_trusted(ref)
    built = base if isinstance(base, nn.Module) or not callable(base) else base()
    if not isinstance(built, nn.Module):
        raise conv_error("load", "base must be a torch.nn.Module or return one", got={"base": type(built).__name__},
                         also=TypeError)  # fmt: skip
    return built


def _of_run(ref: str, trust_code: bool) -> nn.Module:
    try:
        return load(ref, trust_code=trust_code)
    except RecursionError as error:
        raise conv_error("load", "a run folder must not begin with itself", got={"model": repr(ref)},
                         also=ValueError) from error  # fmt: skip


def weights_hash(model: nn.Module) -> str:
    """The same for networks whose state dicts hold the same values under the same names."""
    seen = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            seen.update(f"{name} ".encode())
            update(seen, tensor)
    return seen.hexdigest()[:16]


def versions() -> dict[str, str]:
    return {"reconv": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise conv_error("load", "the file must be readable JSON", got={"file": path, "error": repr(str(error))},
                         also=ValueError) from error  # fmt: skip
    if not isinstance(data, dict):
        raise conv_error("load", "the file must hold a JSON object", got={"file": path}, also=ValueError)
    return data


def _inside(folder: Path, name: str) -> Path:
    """A file of the run folder; a link that leads out of it is none."""
    path = placed(folder, name)
    if not path.is_file():
        stopped = name in (WEIGHTS, SUMMARY) and (folder / CHECKPOINT).exists()
        raise conv_error("load", f"a run folder must hold {name}", got={"folder": folder}, also=FileNotFoundError,
                         do="Its run was stopped: finish it with --resume." if stopped
                         else "Give the folder that reconv rewrite wrote.")  # fmt: skip
    if path.resolve().parent != path.parent.resolve():
        raise conv_error("load", f"{name} must lie in the run folder", got={"leads to": path.resolve()},
                         also=PermissionError)  # fmt: skip
    return path
