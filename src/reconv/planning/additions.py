"""Edits that no budget asks for: rules that add capacity, wherever they are not refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconv.planning.plan import Edit, Refusal
from reconv.ruleset import Rule
from reconv.surgery import Site

ADDING = ("stronger", "denser")  # groups of rules that need not gain anything


def additions(sites: Iterable[Site], rules: Sequence[Rule]) -> tuple[list[Edit], list[Refusal]]:
    """For each site the first proposal of the first of the rules that serves it; why the others do not.

    Never two at one site: the second would have to be made for the block of the first.
    """
    edits, refusals = list[Edit](), list[Refusal]()
    for site in sites:
        taken: str | None = None
        for rule in rules:
            reason = f"{taken} stands there already, one addition a site" if taken else rule.refuse(site)
            proposal = None if reason else next(iter(rule.propose(site)), None)
            if proposal is None:
                refusals.append(Refusal(site.name, rule.name, reason or "it has no proposal"))
                continue
            taken = rule.name
            edits.append(Edit(site.name, rule.name, proposal.block, absorbs=proposal.absorbs, also=proposal.also))
    return edits, refusals
