"""How many lines of the package the tests reach: what coverage.py found is put into the page.

    make coverage    # runs every test, then: python trust/lines.py build/coverage.json

Lines that run in other processes alone (jobs that are killed, spawned workers, the command line as a program) count as
not reached. trust/results/lines.json: a row for all of src/, and one for each folder of it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import told


def main(path: Path) -> None:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    lines, missed = Counter[str](), Counter[str]()
    for name, found in files.items():
        room = next(iter(Path(name).relative_to("src/reconv").parts))
        for key in ("all of src/", f"{room}/" if not room.endswith(".py") else "the modules beside the folders"):
            lines[key] += found["summary"]["num_statements"]
            missed[key] += found["summary"]["missing_lines"]
    rows = [{"what": f"lines of {key}; failures: reached by no test", "tried": lines[key], "failures": missed[key],
             "percent": round(100 - 100 * missed[key] / lines[key], 2)} for key in sorted(lines)]  # fmt: skip
    told.keep("lines", rows)
    print(f"{rows[0]['percent']} % of {rows[0]['tried']:,} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
