"""Code to copy, written line by line: layers first, then what is done with x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reconv.spec import Block, Branches, Chain, out_channels

USUAL = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "depth_multiplier": 1, "output_padding": 0,
         "offset_groups": 1, "bias": True, "strides": 1, "dilation_rate": 1, "use_bias": True}  # fmt: skip


def call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A call with what is not the default."""
    given = [repr(arg) for arg in args]
    given += [f"{key}={value!r}" for key, value in kwargs.items() if value != USUAL.get(key, object())]
    return f"{name}({', '.join(given)})"


class Writer:
    """Straight lines of code. `make` writes one part that is no chain; `channels` are those of x."""

    def __init__(self, channels: int, make: Callable[[Writer, Block, str], str]) -> None:
        self.layers: list[str] = []
        self.lines: list[str] = []
        self.channels, self.make, self.count = channels, make, 0

    def layer(self, name: str, made: str) -> str:
        """Names a layer, and returns the name."""
        self.count += 1
        self.layers.append(f"{name}{self.count} = {made}")
        return f"{name}{self.count}"

    def apply(self, name: str, made: str, x: str) -> str:
        """A layer, and what it makes of x."""
        return self.say(f"{self.layer(name, made)}({x})")

    def block(self, block: Block, x: str) -> str:
        """Writes a block applied to the variable x; returns the variable that holds what it gives."""
        if isinstance(block, Chain):
            for part in block.blocks:
                x = self.block(part, x)
            return x
        given = self.channels
        x = self.make(self, block, x)
        self.channels = out_channels(block, given)
        return x

    def say(self, expression: str, into: str = "x") -> str:
        self.lines.append(f"{into} = {expression}")
        return into

    def branches(self, block: Branches, x: str) -> list[str]:
        """Writes each branch; returns the variables that hold what they give."""
        outs, given = [], self.channels
        for i, part in enumerate(block.blocks):
            before, self.channels = len(self.lines), given
            out = self.block(part, x)
            if len(self.lines) > before:  # a variable of its own, so that the next branch still finds x
                self.lines[before:] = _renamed(self.lines[before:], x, name := f"y{i + 1}")
                out = name
            outs.append(out)
        return outs


def _renamed(lines: list[str], x: str, name: str) -> list[str]:
    """Lines that write x write the new name; all but the first read it, too."""
    out = []
    for i, line in enumerate(lines):
        if " = " not in line:
            out.append(line)
            continue
        into, expression = line.split(" = ", 1)
        if i:
            expression = expression.replace(f"({x}", f"({name}")
        out.append(f"{name if into == x else into} = {expression}")
    return out


def program(head: list[str], writer: Writer, last: str) -> str:
    """All lines of a program whose function `layer` gives the variable `last`."""
    body = [f"    {line}" for line in writer.lines]
    return "\n".join([*head, "", *writer.layers, "", "def layer(x):", *body, f"    return {last}"])


def one(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all are alike."""
    return values[0] if len(set(values)) == 1 else values
