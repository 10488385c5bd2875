"""docs/trust.md says what the results in trust/ say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))
import page

RESULTS = sorted(page.RESULTS.glob("*.json"))


def test_the_page_is_of_these_results():
    text = page.PAGE.read_text(encoding="utf-8")
    for name, part in page.pages().items():
        assert f"<!-- {name} -->\n{part}<!-- end -->" in text, f"python trust/page.py ({name})"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_their_script_and_something_was_tried(path):
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert page.command(path.stem).startswith(f"python trust/{path.stem}.py")
    assert rows
    assert all(row["tried"] > 0 for row in rows)
