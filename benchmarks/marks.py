"""Fills a page's marked places: what a benchmark found, between `<!-- name -->` and the next `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Writes each part into its place in the page, in one go.

    Raises:  SystemExit: where the page does not have just one place of a part's name.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, part=part: m[1] + part + m[2], text,
                              flags=re.DOTALL)  # fmt: skip
        if count != 1:
            raise SystemExit(f"{page} must have one place for {name}: <!-- {name} --> … <!-- end -->")
    page.write_text(text, encoding="utf-8")
