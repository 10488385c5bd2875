"""Files that others may have written, read within bounds: a small one must not ask for large memory."""

from __future__ import annotations

import json
import mmap
import zipfile
from pathlib import Path
from typing import Any

MOST_JSON = 256 * 2**20  # bytes; the largest plan of a real network has a few MiB
UNPACKED, RATIO = 2**30, 20  # bytes that an archive may always hold, and how much more than its own size
CALLS_FOR_BYTES = b"\nbytearray\n"  # in a pickle: the only call that torch admits which fills memory by itself


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:  OSError, ValueError: when it is no regular file, larger than any that reconv writes, nested without end,
             or no JSON.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    if (size := path.stat().st_size) > MOST_JSON:
        raise ValueError(f"it has {size:,} bytes, and may have {MOST_JSON:,}")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """What JSON text holds; a ValueError where it is none, or nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_stored(path: Path) -> None:
    """Nothing, where torch may read the file: it is no archive, or one of entries that lie in it as they are.

    torch.save and torch.export.save do not compress; what does unpacks to any size.

    Raises:  OSError, ValueError: when an entry is compressed or claims to be larger than it can be, when the file calls
             for memory that it does not fill, or is no regular file.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if packed := [one.filename for one in entries if one.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"its entries must not be compressed, as {packed[0]!r} is")
        claimed = sum(one.file_size for one in entries)
        if claimed > path.stat().st_size:
            raise ValueError(f"its entries claim {claimed:,} bytes, and it has {path.stat().st_size:,}")
    if path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            if held.find(CALLS_FOR_BYTES) >= 0:
                raise ValueError("it calls for memory by bytearray")


def check_unpacked(path: Path) -> None:
    """Nothing, where a compressed archive unpacks to what its size lets one expect.

    Raises:  OSError, ValueError, zipfile.BadZipFile: when it does not, or is no archive.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    with zipfile.ZipFile(path) as archive:
        claimed = sum(one.file_size for one in archive.infolist())
    if claimed > max(UNPACKED, RATIO * path.stat().st_size):
        raise ValueError(f"it has {path.stat().st_size:,} bytes and unpacks to {claimed:,}; write it uncompressed")
