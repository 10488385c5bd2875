"""What each rule offers, from which weights it starts, and why it refuses: whoever changes it sees it in offers.txt.

RECONV_OFFERS=write pytest tests/test_offers.py    writes the file anew
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from correlated import seen_of
from handmade import input_of, site_for
from torch import Tensor

from reconv.ruleset import RULES, Proposal, Rule
from reconv.surgery import Site

FILE = Path(__file__).with_name("offers.txt")
BLOCKS = [
    "ic6oc8k3x3p1", "ic8oc8k5x5p2", "ic6oc8k3x3s2p1nb", "ic8oc4k3x5p1:0x2g2", "ic6oc6k4x3p3x1d2x1", "ic8oc12k1x1",
    "ic8oc8k3x3p1g8", "ic6oc9k5p2", "ic4oc8k2x3x3p1", "ic6oc8k3x3s2p1top1", "ic8oc8k4x4s2x1p1g2t",
    "ic4oc8k7x7p3mreflect",
]  # fmt: skip


def norms(tensors: dict[str, Tensor]) -> str:
    return " ".join(f"{name}={float(t.double().norm()):.6g}" for name, t in sorted(tensors.items()))


def told(rule: Rule, block: str) -> Iterator[str]:
    """Lines about a rule at a convolution: what it offers, and what the first and the last of it start from."""
    torch.manual_seed(0)  # of what stands around the convolution
    site = site_for(rule, block)
    if reason := rule.refuse(site):
        yield f"{rule.name} | {block} | refused: {reason}"
        return
    offers = list(rule.propose(site))
    yield f"{rule.name} | {block} | {'; '.join(offer(one) for one in offers)}"
    for one in dict.fromkeys(offers[:1] + offers[-1:]):
        yield f"{rule.name} | {block} | {offer(one)} | {started(rule, site, one)}"


def offer(one: Proposal) -> str:
    more = [*(f"absorbs {name}" for name in one.absorbs), *(f"{name}: {text}" for name, text in one.also)]
    return ", ".join([str(one.block), *more])


def started(rule: Rule, site: Site, one: Proposal) -> str:
    plain = rule.init(site, one)
    said = f"error={plain.error:.6g} {norms(plain.tensors)}"
    if rule.group != "smaller" or site.spec.transposed or one.also:
        return said
    fitted = rule.init(site, one, seen_of(site, input_of(site.block)))
    return f"{said} seen: error={fitted.error:.6g} {norms(fitted.tensors)}"


def same(line: str, known: str) -> bool:
    """The same words, and numbers as near as another processor's rounding leaves them."""
    pairs = zip_longest(line.split(), known.split(), fillvalue="")
    return all(one == other or _near(one, other) for one, other in pairs)


def _near(one: str, other: str) -> bool:
    (name, _, value), (known, _, wanted) = one.rpartition("="), other.rpartition("=")
    try:
        return name == known and math.isclose(float(value), float(wanted), rel_tol=1e-3, abs_tol=1e-6)
    except ValueError:
        return False


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_offers_what_it_offered(rule, monkeypatch):
    monkeypatch.setattr("reconv.ruleset.kernel._gains", lambda *_: True)
    found = [line for block in BLOCKS for line in told(rule, block)]
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.is_file() else []
    if os.environ.get("RECONV_OFFERS") == "write":
        others = [line for line in lines if line.partition(" | ")[0] != rule.name]
        FILE.write_text("".join(f"{line}\n" for line in sorted(others + found)), encoding="utf-8")
        return
    known = [line for line in lines if line.partition(" | ")[0] == rule.name]
    for line, wanted in zip(sorted(found), known, strict=True):
        assert same(line, wanted), f"{line}\nit was\n{wanted}"


def test_all_lines_are_of_rules_that_there_are():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert {line.partition(" | ")[0] for line in lines} == {rule.name for rule in RULES}
