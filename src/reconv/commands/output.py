"""Where output goes: results to stdout, in the format asked for; tables, progress and notes for people to stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reconv.commands.options import Format
from reconv.plain import cell, plain

WIDE = 200  # columns of a table that is written to a file


@dataclass(frozen=True)
class Sheet:
    """A table of text, and the same facts as plain data."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]

    def to_dict(self) -> Mapping[str, Any]:
        return self.data

    def to_csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([list(map(plain, row)) for row in (self.heads, *self.rows)])
        return out.getvalue()

    def to_markdown(self) -> str:
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return "".join("| " + " | ".join(map(cell, line)) + " |\n" for line in lines)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for head in self.heads:
            table.add_column(head, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(plain(cell)) for cell in row))  # as it is: a layer's name is no markup
        return table


def first() -> bool:
    """Whether this is the one of several processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


def emit(result: Any, wanted: Format | None) -> None:
    """Writes a Sheet or a Summary to stdout; without a format as a table to the terminal on stderr, if it is one."""
    from rich.console import Console

    if wanted is None:
        console = Console(stderr=True)
        if console.is_terminal:
            console.print(result)
    elif wanted is Format.TABLE:
        console = Console()
        console.print(result) if console.is_terminal else Console(width=WIDE).print(result)
    elif wanted is Format.JSON:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1) + "\n")
    else:
        sys.stdout.write(result.to_csv() if wanted is Format.CSV else result.to_markdown())


def say(text: str, each: bool = False) -> None:
    """One line on stderr, of the first process or of each."""
    if each or first():
        print(" ".join(plain(text).split()), file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Takes (stage, done, total) and shows a bar for each stage; None where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (console.is_terminal and first()):
        yield None
        return
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def number(value: float | None) -> str:
    """For a table: a count as it is, a measure to four digits, or "unknown"."""
    if value is None:
        return "unknown"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
