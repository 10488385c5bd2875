"""Where a run's events go: one line of JSON each, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconv.errors import conv_error

FILE, BOARD = "log.jsonl", "tensorboard"
LOGS = ("json", BOARD)
Log = Callable[[dict[str, Any]], None]


def logger(folder: Path | None, kind: str = "json") -> Log | None:
    """Appends each event to the folder's log.jsonl; "tensorboard": draws its numbers, too, in a folder of that name.

    Raises:  ConvError: for another kind, and where tensorboardX is not installed.
    """
    if kind not in LOGS:
        raise conv_error("log", f"it must be one of {', '.join(LOGS)}", got={"log": repr(kind)}, also=ValueError)
    if folder is None:
        return None
    board = _board(folder) if kind == BOARD else None

    def log(event: dict[str, Any]) -> None:
        with (folder / FILE).open("a") as file:
            file.write(json.dumps(event) + "\n")
        if board is not None:
            _draw(board, event)

    return log


def _board(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise conv_error("log", "tensorboardX must be installed", got={"log": repr(BOARD)},
                         do="pip install 'reconv[tensorboard]', or log json only.",
                         also=ImportError) from error  # fmt: skip
    return SummaryWriter(str(folder / BOARD))


def _draw(board: Any, event: dict[str, Any]) -> None:
    """Each number over the epochs, the stages of a run apart."""
    stage = f"stage{event['stage']}/" if "stage" in event else ""
    for name, value in event.items():
        if isinstance(value, int | float) and name not in ("epoch", "stage", "gained"):
            board.add_scalar(f"{stage}{name}", value, event["epoch"])
    board.flush()
