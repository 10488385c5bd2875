"""A run folder belongs to one process at a time, and what belongs together in it is replaced together."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock

from reconv.errors import ConvError, conv_error
from reconv.writing import PART, told

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, NEW, READY = ".lock", ".new", ".ready"
HELD = (errno.EAGAIN, errno.EACCES)  # by another process
_ours: ContextVar[frozenset[Path]] = ContextVar("_ours", default=frozenset())  # what the calls around this one have
_taken: dict[Path, str] = {}  # what this process has, and since when
_taking = Lock()


@contextmanager
def alone(folder: Path | None, name: str) -> Iterator[None]:
    """While it is open, no other process, nor another thread, gets the folder, which is made where it is not there.

    What a killed process has left half-written there is removed, and what it had written whole is put in place.

    Raises:  ConvError: (an OSError too) where another one has it, or nothing can be written there.
    """
    if folder is None or (path := folder.resolve()) in _ours.get():
        yield
        return
    with told(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        with _taking:
            if path in _taken:
                raise _busy(folder, name, _taken[path])
            handle = _locked(folder, name)
            _taken[path] = _who()
    token = _ours.set(_ours.get() | {path})
    try:
        with told(folder, name):
            os.truncate(handle, 0)
            os.pwrite(handle, _taken[path].encode(), 0)
            _sweep(folder)
        yield
    finally:
        _ours.reset(token)
        with _taking, suppress(OSError):
            del _taken[path]
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)


def _locked(folder: Path, name: str) -> int:
    """The lock's file, open and locked: by the process, so that what it forks has no part in it.

    The system unlocks it when the process ends, however that ends.
    """
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                holder = os.pread(handle, 200, 0).decode(errors="replace")
                os.close(handle)
                raise _busy(folder, name, holder) from error
            return handle  # this disk knows no locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
                return handle
        os.close(handle)  # who had it removed it a moment ago


def _who() -> str:
    return f"process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M:%S')}"


def _busy(folder: Path, name: str, holder: str) -> ConvError:
    return conv_error(name, "one process at a time may work in a run folder", also=OSError,
                      got={"folder": folder, "held by": holder or "another process"},
                      do="Wait for it or stop it, or give another folder.")  # fmt: skip


def _sweep(folder: Path) -> None:
    """Removes what was half-written when a process was killed, and puts in place what was written whole."""
    for place in (folder, *(f for f in folder.glob("checkpoint/**") if f.is_dir())):
        for part in place.glob(f".*{PART}*"):
            part.unlink()
    _settle(folder)


# -- files that belong together -------------------------------------------------------------------
@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A place to write files to, which then appear in the folder all at once, or not at all.

    Between its renaming and the last file's, a reader finds them by `placed`.
    """
    _settle(folder)
    (folder / NEW).mkdir()
    try:
        yield folder / NEW
        (folder / NEW).rename(folder / READY)
    finally:
        shutil.rmtree(folder / NEW, ignore_errors=True)
    _settle(folder)


def placed(folder: Path, name: str) -> Path:
    """Where a file of the folder is."""
    ready = folder / READY / name
    return ready if ready.exists() and not (folder / READY).is_symlink() else folder / name


def _settle(folder: Path) -> None:
    shutil.rmtree(folder / NEW, ignore_errors=True)
    ready = folder / READY
    if not ready.is_dir() or ready.is_symlink():
        return
    for file in sorted(f for f in ready.rglob("*") if not f.is_dir()):
        target = folder / file.relative_to(ready)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(ready)
