"""Where a run's events go: one line of JSON each, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconv.errors import conv_error
from reconv.writing import told

FILE, BOARD = "log.jsonl", "tensorboard"
LOGS = ("json", BOARD)
Log = Callable[[dict[str, Any]], None]


def logger(folder: Path | None, kind: str = "json") -> Log | None:
    """Appends each event to the folder's log.jsonl; "tensorboard": draws its numbers, too, in a folder of that name.

    Raises:  ConvError: for another kind, and where tensorboardX is not installed.
    """
    if kind not in LOGS:
        raise conv_error("log", f"log must be one of {', '.join(LOGS)}", got={"log": repr(kind)}, also=ValueError)
    if folder is None:
        return None
    board = _board(folder) if kind == BOARD else None

    def log(event: dict[str, Any]) -> None:
        with told(folder / FILE, "log"), (folder / FILE).open("ab+") as file:
            torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"  # the disk was full
            file.write(b"\n" * bool(torn) + json.dumps(event).encode() + b"\n")
        if board is not None:
            _draw(board, event)

    return log


def _board(folder: Path) -> Any:
    """Writes at once: SummaryWriter would leave it to a thread, which an end of the process may cut short."""
    try:
        from tensorboardX import event_file_writer
    except ImportError as error:
        raise conv_error("log", "tensorboardX must be installed", got={"log": repr(BOARD)},
                         do="pip install 'reconv[tensorboard]', or log json only.",
                         also=ImportError) from error  # fmt: skip
    (folder / BOARD).mkdir(parents=True, exist_ok=True)
    return event_file_writer.EventsWriter(str(folder / BOARD / "events"))


def _draw(board: Any, event: dict[str, Any]) -> None:
    """Each number over the epochs, the stages of a run apart."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    stage = f"stage{event['stage']}/" if "stage" in event else ""
    for name, value in event.items():
        if isinstance(value, int | float) and name not in ("epoch", "stage", "gained"):
            summary = scalar(f"{stage}{name}", value)
            board.write_event(Event(wall_time=time.time(), step=event["epoch"], summary=summary))
    board.flush()
