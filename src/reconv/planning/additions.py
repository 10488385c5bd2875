"""Edits that no budget asks for: rules that add capacity, wherever they are not refused."""

from __future__ import annotations

from collections.abc import Sequence

from reconv.planning.plan import Edit, Refusal
from reconv.planning.together import exclude
from reconv.ruleset import Rule
from reconv.surgery import Site

DENSER = "denser"
ADDING = ("stronger", DENSER)  # groups of rules that need not gain anything


def additions(sites: Sequence[Site], rules: Sequence[Rule], every: bool = True) -> tuple[list[Edit], list[Refusal]]:
    """For each site the first proposal of the first of the rules that serves it; why the others do not.

    Never two at one site: the second would have to be made for the block of the first; and none where an edit of
    several modules changes it.

    Args:    every: whether denser rules serve every site, not just the last that they can: see `last_of`.
    """
    edits, refusals = list[Edit](), list[Refusal]()
    only = {} if every else last_of(sites, rules)
    for site in sites:
        taken: str | None = None
        for rule in rules:
            reason = f"{taken} stands there already, one addition a site" if taken else None
            if only.get(rule.name, site.name) != site.name:
                reason = f"unless sites are named, it serves the last alone that it can: {only[rule.name]}"
            reason = reason or rule.refuse(site)
            proposal = None if reason else next(iter(rule.propose(site)), None)
            if proposal is None:
                refusals.append(Refusal(site.name, rule.name, reason or "it has no proposal"))
                continue
            edit = Edit(site.name, rule.name, proposal.block, absorbs=proposal.absorbs, also=proposal.also)
            if other := next((e for e in edits if e.site != site.name and exclude(e, edit)), None):
                refusals.append(Refusal(site.name, rule.name, f"{other.rule} at {other.site} changes the same modules"))
                continue
            taken = rule.name
            edits.append(edit)
    denser = {rule.name for rule in rules if rule.group == DENSER}
    return sorted(edits, key=lambda edit: edit.rule not in denser), refusals  # which look into the network as it was


def last_of(sites: Sequence[Site], rules: Sequence[Rule]) -> dict[str, str]:
    """The last site that each denser rule serves: each further stride makes the whole network several times dearer."""
    found: dict[str, str] = {}
    for rule in rules:
        if rule.group == DENSER:
            last = next((site.name for site in reversed(sites) if rule.refuse(site) is None), None)
            found |= {} if last is None else {rule.name: last}
    return found
