"""The flags, each described once, and what makes them wrong usage (exit status 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reconv.errors import ConvError, conv_error

MOST_YAML, DEEPEST = 2**18, 8  # bytes of a --config file, and lists within lists


class Format(StrEnum):
    """Of what goes to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


@contextmanager
def usage(flag: str) -> Iterator[None]:
    """What a flag's own text makes wrong is wrong usage."""
    try:
        yield
    except ConvError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error


def _from_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Values of the YAML file become the defaults of the flags."""
    if path is not None:
        flags = {opt[2:]: p for p in ctx.command.params for opt in getattr(p, "opts", ()) if opt.startswith("--")}
        for never in ("config", "trust-code", "help"):
            flags.pop(never, None)
        with usage("--config"):
            ctx.default_map = {flags[key].name: value for key, value in _read_yaml(path, sorted(flags)).items()}
    return path


def _read_yaml(path: Path, flags: list[str]) -> dict[str, Any]:
    import yaml

    try:
        if path.stat().st_size > MOST_YAML:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and may have {MOST_YAML:,}")
        text = path.read_text(encoding="utf-8")
        _check_flat(text)
        held = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise conv_error("config", "the file must be readable YAML",
                         got={"file": path, "error": repr(" ".join(str(error).split()))},
                         also=ValueError) from error  # fmt: skip
    if not isinstance(held, dict | None):
        raise conv_error("config", "the file must hold names and values", got={"type": type(held).__name__},
                         do="Write a flag a line, as in budget: latency=0.5.", also=ValueError)  # fmt: skip
    named = {str(key).replace("_", "-"): value for key, value in (held or {}).items()}
    unknown = sorted(named.keys() - set(flags))
    if unknown:
        raise conv_error("config", "each name must be that of a flag", got={"unknown": ", ".join(unknown)},
                         do=f"This command knows {', '.join(flags)}.", also=ValueError)  # fmt: skip
    return {key: _as_flag(key, value) for key, value in named.items() if value is not None}


def _check_flat(text: str) -> None:
    """No repetition, a few lines of which stand for billions, and no depth, in which the parser is slow."""
    import yaml

    begins = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken,
              yaml.BlockMappingStartToken)  # fmt: skip
    ends = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, begins) - isinstance(token, ends)
        if depth > DEEPEST:
            raise ValueError(f"it must not be nested more than {DEEPEST} times")
        if isinstance(token, yaml.AliasToken):
            raise ValueError("it must repeat nothing by *name")


def _as_flag(key: str, value: Any) -> Any:
    """As it would be written on the command line; a list may stand for commas, and names for NAME=VALUE."""
    if isinstance(value, dict):
        value = [f"{name}={part}" if isinstance(part, str | int | float) else part for name, part in value.items()]
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int | float) for part in parts):
        raise conv_error("config", "a value must be text, a number, or a list of such",
                         got={key: type(value).__name__}, also=ValueError)  # fmt: skip
    return [str(part) for part in parts] if key == "input" else ",".join(map(str, parts))


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help=(
            "package.module:callable, file.py:callable (their code is run), "
            "timm:, torchvision: or transformers:NAME, a .pt2 or .onnx file, or a run folder"
        ),
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="a run folder")]
Base = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="the network that the run began with, else what it names")
]
Weights = Annotated[Path | None, typer.Option(help="a .safetensors file, or a .pt that holds tensors only")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="1x3x224x224", help="shape of an input, with :DTYPE where it is not float32; once for each"
    ),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|FILE.npz|module:callable", help="images, arrays x and y, or what returns a Dataset"),
]
Mean = Annotated[str | None, typer.Option(metavar="0.5,0.5,0.5", help="subtracted from the data, per channel")]
Std = Annotated[str | None, typer.Option(metavar="0.2,0.2,0.2", help="divides the data, per channel")]
Evaluate = Annotated[
    str | None, typer.Option(metavar="module:callable", help="gives a number for a network, higher is better")
]
Holdout = Annotated[float, typer.Option(help="share of the data that recovery does not see, but is judged on")]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="latency=0.5,error=0.1",
        help="latency, macs, params, memory: a fraction of now, or 12ms 1.2G 50M 64MiB; error: a fraction",
    ),
]
TargetName = Annotated[str, typer.Option("--target", help="the engine that is measured; torch:1 for one thread")]
MaybeTarget = Annotated[str | None, typer.Option("--target", help="the engine to time on; not timed without it")]
Rules = Annotated[str, typer.Option(help="names or groups, with commas")]
Sites = Annotated[str, typer.Option(help="which layers: names, * allowed, with commas")]
Epochs = Annotated[int, typer.Option(min=0, help="of recovery; 0 for none")]
Seed = Annotated[int, typer.Option(help="of everything random")]
Stages = Annotated[int, typer.Option(min=1, help="the edits in so many parts, recovered after each")]
PrecisionName = Annotated[
    str | None,
    typer.Option("--precision", help="to train in: float32, bfloat16, float16; else what accelerate was launched with"),
]
Ema = Annotated[float, typer.Option(help="decay of the moving average of the weights that is kept; 0: none")]
LogKind = Annotated[str, typer.Option("--log", help="json, or tensorboard, too")]
Config = Annotated[
    Path | None,
    typer.Option(
        callback=_from_file, is_eager=True, metavar="FILE.yaml", help="values for these flags; the command line wins"
    ),
]
Front = Annotated[
    int, typer.Option(min=0, max=64, help="so many plans besides, from the fastest to the network as it is, and a plot")
]
WishesFile = Annotated[
    Path | None, typer.Option("--wishes", metavar="PLAN.json", help="a plan: what it pins, forbids and forces holds")
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="PLAN.json", help="the plan to carry out, instead of choosing one")
]
Explain = Annotated[
    str | None,
    typer.Option(metavar="SITE", help="show every proposal for this layer, and why it was or was not taken"),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="runs/NAME", help="the run folder to write")]
PlanOut = Annotated[Path, typer.Option("--out", "-o", metavar="PLAN.json", help="file or folder to write the plan to")]
OutFormat = Annotated[Format, typer.Option("--format", help="of what is printed on stdout")]
MaybeFormat = Annotated[Format | None, typer.Option("--format", help="prints the result on stdout")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="run code that a run folder or a --config file names")]
