"""Processes that begin where this one stands, with all of torch loaded, and may be killed at any moment."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TOUCHING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def call(job: Callable[[], T]) -> T:
    """What the job gives in a process of its own; an error there is one here."""
    back, forth = os.pipe()
    if not (child := os.fork()):
        os.close(back)
        try:
            told = (True, job())
        except BaseException:
            told = (False, traceback.format_exc())
        try:
            with os.fdopen(forth, "wb") as pipe:
                pickle.dump(told, pipe)
        finally:  # whatever happens, there is one of us
            os._exit(0)
    os.close(forth)
    with os.fdopen(back, "rb") as pipe:
        data = pipe.read()
    status = os.waitpid(child, 0)[1]
    if not data:
        raise RuntimeError(f"the process ended with status {status}")
    well, value = pickle.loads(data)
    if not well:
        raise RuntimeError(value)
    result: T = value
    return result


def killed(job: Callable[[], object], after: float | None = None, at: int | None = None) -> bool:
    """Runs the job in a process that is ended by SIGKILL; False where it had ended before that.

    Args:    after: so many seconds. at: instead, before it touches the disk for the so-many-th time.
    """
    if not (child := os.fork()):
        try:
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
            if at is not None:
                touches(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == at else None)
            job()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the job failed by itself")
    return os.WIFSIGNALED(status)


def touches(tell: Callable[[int], object]) -> None:
    """From now on tells the number of each moment at which a file is about to be opened to write, written by Python's
    own hands (half of it is there by then), synchronised, renamed, removed or made.
    """
    seen = 0

    def next_one() -> None:
        nonlocal seen
        seen += 1
        tell(seen)

    def hook(event: str, args: Any) -> None:
        if event in TOUCHING or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
            next_one()

    def in_halves(whole: Callable[..., int]) -> Callable[..., int]:
        def write(path: Any, data: Any, *more: Any) -> int:
            with open(path, "wb") as file:
                file.write(bytes(data)[: len(data) // 2])
            next_one()
            return whole(path, data, *more)

        return write

    def synchronised(handle: int, whole: Callable[[int], None] = os.fsync) -> None:
        next_one()
        whole(handle)

    Path.write_bytes = in_halves(Path.write_bytes)  # type: ignore[method-assign]
    os.fsync = synchronised  # type: ignore[assignment]
    sys.addaudithook(hook)
