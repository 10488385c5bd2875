"""Files appear whole or not at all, and what the disk refuses is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from reconv.errors import ConvError, conv_error

PART = ".part-"  # in the name of what is not yet written
_FULL = "Free some space"
_CLOSED = "Choose a place that can be written to"
_ADVICE = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: "Raise the limit on the size of files",
    errno.EROFS: _CLOSED, errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EISDIR: "Give the name of a file",
    errno.ENOENT: "Make its folder first", errno.ENOTDIR: "Choose a folder for it", errno.EIO: "Check the disk",
}  # fmt: skip


@contextmanager
def replacing(path: str | Path, name: str = "save") -> Iterator[Path]:
    """A temporary neighbour of `path` to write to; it takes the place of `path` only once all went well.

    A device or a pipe is written to as it is.

    Raises:  ConvError: (an OSError too) where the disk does not take it; what stood at `path` stands.
    """
    path = Path(path)
    with told(path, name):
        if path.exists() and not path.is_file():
            yield path
            return
        part = path.with_name(f".{path.name}{PART}{token_hex(4)}{path.suffix}")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield part
            _reach_the_disk(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes | memoryview, name: str = "save") -> None:
    with replacing(path, name) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str, name: str = "save") -> None:
    write_bytes(path, text.encode(), name)


@contextmanager
def told(path: Path, name: str) -> Iterator[None]:
    """Errors of the disk, with the file and what to do."""
    try:
        yield
    except ConvError:
        raise
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        advice = f"{_ADVICE[error.errno]}; what stood there stands."
        raise conv_error(name, "the file must be writable", got={"file": path, "error": repr(error.strerror)},
                         do=advice, also=type(error)) from error  # fmt: skip


def _reach_the_disk(part: Path) -> None:
    """Before its name does: else a power cut may leave an empty file under it."""
    handle = os.open(part, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
