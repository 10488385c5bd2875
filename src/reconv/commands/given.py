"""What the flags name, made: the network, its example inputs, the data and the judge."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from reconv.commands.data import check_data_ref, load_data
from reconv.commands.options import usage
from reconv.data import Feed
from reconv.errors import ConvError, conv_error
from reconv.models import check_ref, resolve
from reconv.rewriting.references import check_callable_ref, foreign_error, load_callable
from reconv.rewriting.store import is_run, read_config

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)}  # fmt: skip
_INPUT = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")


@dataclass(frozen=True)
class InputShape:
    """One --input.

    Example:
             >>> InputShape.parse("1x20:int64")
             InputShape(shape=(1, 20), dtype=torch.int64)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def parse(cls, text: str) -> InputShape:
        found = _INPUT.fullmatch(text)
        dtype = DTYPES.get(found[2] or "float32") if found else None
        shape = tuple(map(int, found[1].split("x"))) if found else ()
        if dtype is None or 0 in shape:
            raise conv_error("input", "the input must be sizes with x between them, and maybe a dtype",
                             got={"input": repr(text)}, do="Write 1x3x224x224, or 1x20:int64.",
                             also=ValueError)  # fmt: skip
        return cls(shape, dtype)

    @classmethod
    def of(cls, x: Tensor) -> InputShape:
        return cls(tuple(x.shape), x.dtype)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return "x".join(map(str, self.shape)) + ("" if name == "float32" else f":{name}")

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Normal random numbers; zeros for whole ones, which any table of symbols has."""
        try:
            if not self.dtype.is_floating_point:
                return torch.zeros(self.shape, dtype=self.dtype)
            return torch.randn(self.shape, generator=generator).to(self.dtype)
        except RuntimeError as error:  # torch has no other for want of memory, or a size beyond 64 bits
            raise conv_error("input", "its values must fit in memory", got={"input": repr(str(self))},
                             do="Give a smaller batch or size.", also=MemoryError) from error  # fmt: skip


@dataclass(frozen=True)
class Given:
    """Made from the flags, in the order in which they can fail."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    data: Any = None
    evaluate: Callable[[nn.Module], float] | None = None
    shapes: tuple[str, ...] = field(default=())


def floats(flag: str, text: str | None) -> tuple[float, ...]:
    """Numbers with commas between them."""
    if text is None:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
        if not all(map(math.isfinite, found)):
            raise ValueError
        return found
    except ValueError as error:
        raise typer.BadParameter(f"must be numbers with commas between them, not {text!r}", param_hint=flag) from error


def scaling(mean: str | None, std: str | None, data: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """--mean and --std as numbers, which are for --data."""
    for flag, text in (("--mean", mean), ("--std", std)):
        if text is not None and data is None:
            raise typer.BadParameter("it is for --data, which is not given", param_hint=flag)
    found = floats("--mean", mean), floats("--std", std)
    if any(value <= 0 for value in found[1]):
        raise typer.BadParameter(f"must be positive, not {std!r}", param_hint="--std")
    return found


def check_flags(
    ctx: typer.Context, model: str, inputs: Sequence[str], data: str | None, evaluate: str | None, trust_code: bool
) -> tuple[InputShape, ...]:
    """Finds wrong usage before anything runs; returns the shapes of the inputs."""
    with usage("MODEL"):
        check_ref(model)
    with usage("--input"):
        shapes = tuple(map(InputShape.parse, inputs))
    if not shapes and data is None and not is_run(model):
        raise _no_input()
    if data is not None:
        with usage("--data"):
            check_data_ref(data)
    if evaluate is not None:
        with usage("--evaluate"):
            check_callable_ref(evaluate)
    for name, value in (("data", data), ("evaluate", evaluate)):
        _check_trust(ctx, name, value, trust_code)
    return shapes


def _check_trust(ctx: typer.Context, name: str, value: str | None, trust_code: bool) -> None:
    """Code that a --config file names is run only with --trust-code; what the command line names is meant."""
    if value is None or trust_code or Path(value).is_dir() or Path(value).suffix == ".npz":
        return
    source = ctx.get_parameter_source(name)
    if source is not None and source.name == "DEFAULT_MAP":
        raise typer.BadParameter(f"the --config file names code, {value!r}: run it with --trust-code, or name it on "
                                 "the command line", param_hint=f"--{name}")  # fmt: skip


def give(
    model: str,
    shapes: Sequence[InputShape],
    *,
    weights: Path | None = None,
    data: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    evaluate: str | None = None,
    seed: int = 0,
    trust_code: bool = False,
    network: nn.Module | None = None,
) -> Given:
    """Makes what the flags name. Without --input, the inputs are like the run folder's or the first of the data."""
    torch.manual_seed(seed)  # a network with random weights is the same one next time
    network = network or resolve(model, weights, trust_code)
    if not shapes and is_run(model):
        shapes = recorded_shapes(read_config(model))
    loaded = None if data is None else load_data(data, shapes[0].shape if shapes else None, mean, std)
    judge = None if evaluate is None else _judge(evaluate)
    inputs = _inputs(shapes, loaded, seed)
    return Given(network, inputs, loaded, judge, tuple(str(InputShape.of(x)) for x in inputs))


def _judge(ref: str) -> Callable[[nn.Module], float]:
    """What --evaluate names; an error of its own is said as such."""
    function = load_callable(ref)

    def judge(network: nn.Module) -> float:
        try:
            value: float = function(network)
        except (ConvError, OSError, MemoryError):
            raise
        except Exception as error:
            raise foreign_error(ref, error) from error
        return value

    return judge


def recorded_shapes(config: dict[str, Any]) -> tuple[InputShape, ...]:
    """The inputs of a run, as its config.json has them."""
    settings = config.get("settings")
    texts = settings.get("input") if isinstance(settings, dict) else None
    return tuple(map(InputShape.parse, map(str, texts))) if isinstance(texts, list) else ()


def _inputs(shapes: Sequence[InputShape], data: Any, seed: int) -> tuple[Tensor, ...]:
    if shapes:
        generator = torch.Generator().manual_seed(seed)
        return tuple(shape.tensor(generator) for shape in shapes)
    if data is None:
        raise _no_input()
    return tuple(x[:1] for x in Feed.of(data).head(1)[0].inputs)


def _no_input() -> typer.BadParameter:
    return typer.BadParameter("give the shape of the network's input, as in 1x3x224x224", param_hint="--input")
