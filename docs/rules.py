"""Writes the computed parts of docs/rules/: what a rule's own text says, its picture, its figures and its example.

python docs/rules.py            all pages, the index, and the table in README.md
python docs/rules.py --check    fails where one is stale

A page is docs/rules/NAME.md. What stands between the marks is made here; all else in it is written by hand, and stays.
A new rule gets its page by running this; then its three parts "In plain words", "When it helps" and "When it does
not" must be written. Where the usual layer does not suit the rule, `LAYERS` names the one that does; a rule that works
on more than one layer is in `BY_HAND`: its page has no computed figures.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import reconv
from reconv.drawing.blocks import svg
from reconv.ruleset import GROUPS, RULES, Proposal, Rule, rules_named
from reconv.spec import Block, describe
from reconv.surgery import Site, find_sites
from reconv.surgery.regions import region

PAGES = Path(__file__).with_name("rules")
BEGIN, END = "<!-- {} : made by docs/rules.py -->", "<!-- end -->"
HAND = ("In plain words", "When it helps", "When it does not")
TO_WRITE = "(to be written)"
WHAT = {
    "exact": "The same function, cheaper: kept where it measured faster, no budget needed.",
    "smaller": "The closest fit that costs less, within a budget.",
    "stronger": "The same function at first, with more that can be learned: for training.",
    "denser": "The same values on a finer grid: only by name.",
}


class Layer(NamedTuple):
    """The layer that a page shows, as Python; `first`: rules applied to it before."""

    net: str = "nn.Conv2d(64, 64, 3, padding=1)"
    shape: tuple[int, ...] = (1, 64, 56, 56)
    first: tuple[str, ...] = ()

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*eval(f"[{self.net}]", {"nn": nn})).eval()


LARGE = Layer("nn.Conv2d(64, 64, 7, padding=3)")
LAYERS = {  # where it is not the usual one
    "fold_batch_norm": Layer("nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)"),
    "fold_branches": Layer(first=("expand_branches",)),
    "trim": Layer(first=("widen_kernel",)),
    "fuse_activation": Layer("nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()"),
    "kernel": Layer("nn.Conv2d(64, 64, 7, padding=3, groups=64)"),
    "subpixel": Layer("nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)", (1, 64, 28, 28)),
    "stacked": LARGE,
    "multi_dilated": LARGE,
    "low_rank_pointwise": Layer("nn.Conv2d(256, 256, 1)", (1, 256, 14, 14)),
    "merge_linear": Layer(first=("pointwise_after",)),
    "atrous": Layer("nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)"),
    "prune_channels": Layer("nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1)"),
}
BY_HAND: tuple[str, ...] = ()
UNEXAMPLED = {"kernel"}  # whether it serves depends on the machine: its example is written by hand


# -- one rule on its layer ----------------------------------------------------------------------------------
class Shown(NamedTuple):
    layer: Layer
    site: Site
    before: tuple[Proposal, ...]
    proposals: tuple[Proposal, ...]

    @property
    def picked(self) -> Proposal:
        """The one in the middle is drawn and applied."""
        return self.proposals[len(self.proposals) // 2]

    @property
    def was(self) -> Block:
        """What stood there: the site, or the network where the rule changes other modules, too."""
        return whole(self.layer.made()) if self.widely else self.site.block

    def now(self, proposal: Proposal) -> Block:
        """What stands there afterwards."""
        if not self.widely:
            return proposal.block
        plan = reconv.Plan.from_dict({"format": 1, "edits": [edit_of(proposal)]})
        return whole(reconv.apply(self.layer.made(), plan, torch.zeros(self.layer.shape)))

    @property
    def widely(self) -> bool:
        return any(p.absorbs or p.also for p in self.proposals)


def whole(net: nn.Module) -> Block:
    """All of a network as one block."""
    found = region(net)
    assert not isinstance(found, str), found
    return found.block


def shown(rule: Rule) -> Shown:
    layer = LAYERS.get(rule.name, Layer())
    site, *_ = find_sites(layer.made(), torch.zeros(layer.shape)).sites
    before = []
    for earlier in rules_named(layer.first):
        before.append(list(earlier.propose(site))[-1])
        site = site.after(before[-1].block, earlier.init(site, before[-1]).tensors)
    if rule.name == "kernel":  # which serves where something was measured on this machine
        return Shown(layer, site, (), (Proposal(rule.name, site.block),))
    return Shown(layer, site, tuple(before), tuple(rule.propose(site)))


def evenly(proposals: tuple[Proposal, ...], most: int = 4) -> list[Proposal]:
    """Some of them, from the first to the last, the one that is drawn among them."""
    last, middle = len(proposals) - 1, len(proposals) // 2
    return [proposals[i] for i in sorted({0, last, middle, middle // 2} if last >= most else range(last + 1))]


# -- the parts of a page ------------------------------------------------------------------------------------
def doc_of(rule: Rule) -> tuple[str, str]:
    """What the rule's own text says, and its sources."""
    text, _, source = inspect.cleandoc(type(rule).__doc__ or "").partition("\nSource:")
    parts = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = part.splitlines()
        formula = all(line.startswith("    ") for line in lines)
        parts.append("```text\n" + "\n".join(line[4:] for line in lines) + "\n```" if formula else " ".join(lines))
    return "\n\n".join(parts), " ".join(source.split())


def facts(rule: Rule) -> str:
    text, _ = doc_of(rule)
    parts = [f"Group **{rule.group}**: {WHAT[rule.group][0].lower()}{WHAT[rule.group][1:]}", text]
    if rule.name not in BY_HAND:
        parts += [f"![{rule.name}: before and after]({rule.name}.svg)", figures(shown(rule))]
    return "\n\n".join(parts)


def figures(case: Shown) -> str:
    """Shapes, parameters and multiply-accumulates before and after."""
    lines = ["| | block | output | parameters | MACs |", "|---|---|---|---|---|"]
    was = describe(case.was, case.layer.shape)
    for title, block in [("before", case.was), *(("after", case.now(p)) for p in evenly(case.proposals))]:
        now = describe(block, case.layer.shape)
        lines.append(f"| {title} | `{cell(block)}` | {'×'.join(map(str, now.output_shape[1:]))} "
                     f"| {now.params:,}{ratio(now.params, was.params, title)} "
                     f"| {now.macs:,}{ratio(now.macs, was.macs, title)} |")  # fmt: skip
    many = len(case.proposals) - len(evenly(case.proposals))
    more = f"\n\nIt offers {len(case.proposals)} blocks here, of which these are some." if many else ""
    return f"On an input of {'×'.join(map(str, case.layer.shape))}:\n\n" + "\n".join(lines) + more


def cell(block: Block) -> str:
    return str(block).replace("|", "\\|")


def ratio(now: int, was: int, title: str) -> str:
    return "" if title == "before" else f" ({now / was:.3g} ×)"


def example(rule: Rule) -> str:
    _, source = doc_of(rule)
    parts = [f"Source: {source}."]
    if rule.name not in {*BY_HAND, *UNEXAMPLED}:
        parts.append("## Example\n\n```python\n" + session(rule, shown(rule)) + "\n```")
    return "\n\n".join(parts)


def session(rule: Rule, case: Shown) -> str:
    """A plan written by hand, applied: what is run as a doctest."""
    edits = ["    " + repr(edit_of(p)) for p in (*case.before, case.picked)]
    start = [">>> import torch", ">>> from torch import nn", ">>> import reconv", ">>> _ = torch.manual_seed(0)",
             f">>> net = nn.Sequential({case.layer.net}).eval()", f">>> x = torch.randn({case.layer.shape})",
             ">>> plan = reconv.Plan.from_dict({\"format\": 1, \"edits\": [",
             *[f"... {edit}," for edit in edits], "... ]})", ">>> student = reconv.apply(net, plan, x)"]  # fmt: skip
    if rule.group == "smaller":
        after = describe(case.picked.block, case.layer.shape)
        return "\n".join([*start, ">>> student(x).shape == net(x).shape", "True",
                          ">>> sum(p.numel() for p in student[0].parameters())", str(after.params)])  # fmt: skip
    there = "[..., ::2, ::2]" if rule.group == "denser" else ""
    return "\n".join([*start, f">>> torch.allclose(student(x){there}, net(x), atol=1e-4)", "True"])


def edit_of(proposal: Proposal) -> dict[str, Any]:
    edit: dict[str, Any] = {"site": "0", "rule": proposal.rule, "block": str(proposal.block)}
    edit |= {"absorbs": list(proposal.absorbs)} if proposal.absorbs else {}
    return edit | ({"also": dict(proposal.also)} if proposal.also else {})


def picture(rule: Rule) -> str:
    case = shown(rule)
    rows = [("before", case.was, case.layer.shape), ("after", case.now(case.picked), case.layer.shape)]
    return svg(rows, f"{rule.name}: before and after")


# -- pages --------------------------------------------------------------------------------------------------
def page(rule: Rule, now: str | None) -> str:
    """The page with its computed parts made anew; what was written by hand stays."""
    if now is None:
        hand = "\n\n".join(f"## {title}\n\n{TO_WRITE}" for title in HAND)
        now = f"# `{rule.name}`\n\n{BEGIN.format('facts')}\n{END}\n\n{hand}\n\n{BEGIN.format('example')}\n{END}\n"
    for name, text in (("facts", facts(rule)), ("example", example(rule))):
        now = filled(now, name, text)
    return now


def short(now: str) -> str:
    """The README with its table made anew."""
    lines = ["| rule | group | idea |", "|---|---|---|"]
    for group in GROUPS:
        lines += [f"| [`{rule.name}`](docs/rules/{rule.name}.md) | {group} | {idea(rule)} |"
                  for rule in RULES if rule.group == group]  # fmt: skip
    return filled(now, "index", "\n".join(lines))


def filled(now: str, name: str, text: str) -> str:
    """A page with this text between the marks of this name."""
    head, begin, rest = now.partition(BEGIN.format(name))
    return f"{head}{begin}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def index(now: str) -> str:
    """The index with its tables made anew."""
    lines = []
    for group in GROUPS:
        if mine := [rule for rule in RULES if rule.group == group]:
            lines += [f"## {group}", "", WHAT[group], "", "| rule | idea |", "|---|---|"]
            lines += [f"| [`{rule.name}`]({rule.name}.md) | {idea(rule)} |" for rule in mine] + [""]
    return filled(now, "index", "\n".join(lines).rstrip())


def idea(rule: Rule) -> str:
    """The first sentence of the rule's module: what it makes of a convolution."""
    said = (sys.modules[type(rule).__module__].__doc__ or "").splitlines()[0]
    return said.partition(": ")[2].rstrip(".").replace("|", "\\|")


def made() -> dict[Path, str]:
    """Every file as it should be."""
    files = {}
    for rule in RULES:
        path = PAGES / f"{rule.name}.md"
        files[path] = page(rule, path.read_text() if path.exists() else None)
        if rule.name not in BY_HAND:
            files[PAGES / f"{rule.name}.svg"] = picture(rule)
    contents, readme = PAGES / "README.md", PAGES.parent.parent / "README.md"
    return files | {contents: index(contents.read_text()), readme: short(readme.read_text())}


def main(check: bool) -> int:
    stale = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(("stale: " if check else "written: ") + path.name)
    if not check:
        for path, text in made().items():
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
