"""docs/rules.md: what each rule does in each case, from the table that tests/test_rule_table.py runs.

python docs/rule_table.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).with_name("rules.md")
sys.path.append(str(PAGE.parents[1] / "tests"))

from rule_cases import RULE_CASES, RULE_TABLE, TOLERANCES  # noqa: E402

from reconv.ruleset import GROUPS, RULES  # noqa: E402

HEAD = """# What each rule does, case by case

Made by `python docs/rule_table.py` from the table in `tests/rule_cases.py`, which `tests/test_rule_table.py` runs:
every cell is a small network (a convolution, the layer in question, batch norm, ReLU, another convolution) that the
rule rewrites through `reconv.apply`, beside the network as it was.

- **exact**: the network's output stays, for every form that the rule knows (at full rank, where it has ranks), to
  {tolerances}, relative.
- **≤ x**: the relative error of the network's output with a form in the middle of what the rule offers, fitted to the
  weights alone, without data or training. The weights are random, the least compressible that there are.
- **at the stem**: the rule rewrites the layer in question together with the convolution before it, at whose name it is
  asked for.
- **—**: refused. The numbers lead to the reasons below; one in brackets says that no single
  convolution could do it, the others are gaps.

{shares}
"""


def page() -> str:
    """The whole page."""
    notes: dict[str, int] = {}
    tables = [f"## {group}\n\n{table(group, notes)}" for group in GROUPS if any(r.group == group for r in RULES)]
    tolerances = ", ".join(f"{bound:.0e}".replace("e-0", "e-") + f" in {str(dtype).removeprefix('torch.')}"
                           for dtype, bound in TOLERANCES.items())  # fmt: skip
    reasons = [f"- {number}: {reason}" for reason, number in notes.items()]
    parts = [HEAD.format(tolerances=tolerances, shares=shares()), *tables, "## Reasons\n\n" + "\n".join(reasons)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def shares() -> str:
    """How many cells are refused, for good and for want of work."""
    cells = len(RULE_TABLE) * len(RULE_CASES)
    count = Counter(refused.never for row in RULE_TABLE.values() for refused in row.cells.values())
    return (
        f"Of {cells} cells {sum(count.values())} are refused ({sum(count.values()) / cells:.1%}): {count[True]} "
        f"impossibilities ({count[True] / cells:.1%}) and {count[False]} gaps ({count[False] / cells:.1%})."
    )


def table(group: str, notes: dict[str, int]) -> str:
    """The rules of a group beside each other, a case a line. `notes`: reasons and their numbers, added to."""
    names = [rule.name for rule in RULES if rule.group == group]
    lines = ["| case | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for case in RULE_CASES:
        lines.append(f"| {case} | " + " | ".join(cell(name, case, notes) for name in names) + " |")
    return "\n".join(lines)


def cell(name: str, case: str, notes: dict[str, int]) -> str:
    row = RULE_TABLE[name]
    if case not in row.cells:
        return row.cell(case).replace("error ", "")
    reason, never = row.cells[case]
    number = notes.setdefault(reason, len(notes) + 1)
    return f"— ({number})" if never else f"— {number}"


if __name__ == "__main__":
    PAGE.write_text(page())
