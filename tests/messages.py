"""Messages that the tests bring about, word for word: whoever changes one sees it in tests/messages.txt, a line each.

RECONV_MESSAGES=write pytest -p no:xdist tests/…    adds those that are new; remove the file first for all anew
"""

from __future__ import annotations

import os
from pathlib import Path

FILE = Path(__file__).with_name("messages.txt")
KNOWN = set(FILE.read_text(encoding="utf-8").splitlines()) if FILE.is_file() else set()


def told(message: object) -> None:
    """Fails where the message is not among the known ones."""
    line = str(message).replace("\n", " ")
    if os.environ.get("RECONV_MESSAGES") == "write":
        KNOWN.add(line)
        FILE.write_text("".join(f"{known}\n" for known in sorted(KNOWN)), encoding="utf-8")
    assert line in KNOWN, f"{line!r} is not in {FILE.name}: see {Path(__file__).name}"
