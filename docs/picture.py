"""Draws docs/demo.svg, the README's picture, from a run folder: what each convolution took before and after.

python docs/picture.py runs/demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LABEL, ROW, BAR = 760, 230, 34, 11
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .small { fill: #57606a; font-size: 11px }
.before { fill: #b8c0c8 } .after { fill: #0072b2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9da7b1 } .before { fill: #59636e }
.after { fill: #56b4e9 } }
"""


def sites(run: Path) -> list[tuple[str, str, str, float, float]]:
    """(site, old spec, new block, ms before, ms after) of each convolution, in order."""
    summary = json.loads((run / "summary.json").read_text())
    blocks = {edit["site"]: edit["block"] for edit in json.loads((run / "plan.json").read_text())["edits"]}
    rows = []
    for row in summary["before"]["rows"]:
        name = row["name"]
        parts = [r for r in summary["after"]["rows"] if r["name"] == name or r["name"].startswith(f"{name}.")]
        rows.append((name, row["spec"], blocks.get(name, row["spec"]), row["latency_ms"]["value"],
                     sum(part["latency_ms"]["value"] for part in parts)))  # fmt: skip
    return rows


def svg(run: Path) -> str:
    rows, summary = sites(run), json.loads((run / "summary.json").read_text())
    totals = [summary[when]["network"]["latency_ms"]["value"] for when in ("before", "after")]
    longest, height = max(max(row[3:]) for row in rows), 74 + ROW * len(rows)
    scale = (WIDTH - LABEL - 70) / longest
    target = summary["before"]["target"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           f'aria-label="Milliseconds of each convolution before and after the rewrite">', f"<style>{STYLE}</style>",
           f'<text x="0" y="16" font-weight="600">Each convolution of the demo network: milliseconds before '
           f'(grey) and after (blue), target {escape(target)}, batch 1</text>',
           f'<text class="small" x="0" y="36">the whole network: {totals[0]:.1f} ms before, {totals[1]:.2f} ms '
           "after</text>"]  # fmt: skip
    for i, (name, old, new, before, after) in enumerate(rows):
        y = 56 + i * ROW
        out += [f"<text x='0' y='{y + 10}'>{escape(name)}<title>{escape(new)}</title></text>",
                f"<text class='small' x='0' y='{y + 23}'>{old}</text>"]  # fmt: skip
        for k, (kind, ms) in enumerate((("before", before), ("after", after))):
            top = y + k * (BAR + 1)
            out += [f"<rect class='{kind}' x='{LABEL}' y='{top}' width='{max(1, ms * scale):.1f}' height='{BAR}'/>",
                    f"<text class='small' x='{LABEL + ms * scale + 5:.1f}' y='{top + 9}'>{ms:.2f}</text>"]  # fmt: skip
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("demo.svg").write_text(svg(Path(sys.argv[1] if sys.argv[1:] else "runs/demo")))
