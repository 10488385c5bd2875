"""Rule × case, each on a network: exact, within its error, or refused with its reason; never silently wrong."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from rule_cases import RULE_CASES, RULE_TABLE, TOLERANCES, RuleCase, RuleRow
from torch import Tensor, nn

from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.ruleset import RULES, Proposal, Rule, rules_named
from reconv.surgery import find_sites
from reconv.surgery.outputs import distance

CONV, STEM = "conv", "stem"  # the site in question, and what is before it


@pytest.fixture(autouse=True)
def every_kernel_gains(monkeypatch):
    """The rules are tested as where every convolution has a faster kernel."""
    monkeypatch.setattr("reconv.ruleset.kernel._gains", lambda *_: True)


def test_every_rule_has_its_row():
    assert list(RULE_TABLE) == [rule.name for rule in RULES]
    assert {case for row in RULE_TABLE.values() for case in row.cells} <= set(RULE_CASES)


@pytest.mark.parametrize("case", RULE_CASES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_cell_is_what_the_table_says(rule, case):
    row = RULE_TABLE[rule.name]
    model = RULE_CASES[case].build(row.kernel_size, row.with_norm, row.transposed, row.strided)
    ways = [Way(model, RULE_CASES[case], before) for before in firsts(model, RULE_CASES[case], row)]
    refused = {way.refusal(rule) for way in ways}
    if case in row.cells:
        assert refused == {row.cells[case].reason}
        return
    if case in row.elsewhere:
        assert refused == {row.elsewhere[case]}
        ways = [Way(model, RULE_CASES[case], (), STEM)]
        refused = {way.refusal(rule) for way in ways}
        assert all(CONV in dict(proposal.also) for way in ways for proposal in rule.propose(way.site))
    assert refused == {None}
    for way in ways:
        full = rule.full(way.site)
        assert row.exact == bool(full)
        for proposal in full:
            assert way.error(proposal) <= TOLERANCES[RULE_CASES[case].dtype], proposal.block
        if row.rank is not None:
            offers = [p for p in rule.propose(way.site) if not p.absorbs]
            assert offers
            assert 1e-3 < way.error(offers[len(offers) // 2]) <= row.rank


class Way:
    """The network, and edits that come before the rule's own."""

    def __init__(self, model: nn.Module, case: RuleCase, before: tuple[Proposal, ...], site: str = CONV) -> None:
        self.model, self.case, self.before, self.name = model, case, before, site
        network = find_sites(model, case.input)
        self.refusals = {name: reason for name, reason in network.refusals}
        self.site = next((site for site in network.sites if site.name == self.name), None)
        for proposal in before:
            (rule,) = rules_named(proposal.rule)
            weights = rule.init(self.site, proposal)
            self.site = self.site.after(proposal.block, weights.tensors, proposal.absorbs)

    def refusal(self, rule: Rule) -> str | None:
        if self.site is None:
            (reason,) = self.refusals.values()
            return reason
        return rule.refuse(self.site)

    def error(self, proposal: Proposal) -> float:
        """How far the output moves, the larger of both ways through the network, by the public path."""
        edits = [Edit(self.name, p.rule, p.block, absorbs=p.absorbs, also=p.also) for p in (*self.before, proposal)]
        plan = Plan.from_dict(Plan(tuple(edits)).to_dict())
        student, x = apply(self.model, plan, self.case.input), self.case.input
        return max(moved(student, self.model, each) for each in (x, -x))


def firsts(model: nn.Module, case: RuleCase, row: RuleRow) -> list[tuple[Proposal, ...]]:
    """The edits that may come first, each way by itself."""
    if row.first is None:
        return [()]
    (rule,) = rules_named(row.first)
    site = Way(model, case, ()).site
    return [()] if site is None else [(proposal,) for proposal in rule.full(site)]


def moved(student: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        old, new = model(x.clone()).double(), student(x.clone()).double()
        if new.shape != old.shape:  # a finer map
            new = new[tuple(slice(None, None, -(-now // n)) for now, n in zip(new.shape, old.shape, strict=True))]
        return distance(new, old)


def test_the_page_shows_this_table():
    """Else: python docs/rule_table.py"""
    docs = Path(__file__).parents[1] / "docs"
    assert (docs / "rules.md").read_text() == runpy.run_path(str(docs / "rule_table.py"))["page"]()


def test_refusals_are_few():
    refused = [cell for row in RULE_TABLE.values() for cell in row.cells.values()]
    cells = len(RULE_TABLE) * len(RULE_CASES)
    assert len(refused) <= 0.25 * cells
    assert sum(not cell.never for cell in refused) <= 0.1 * cells
