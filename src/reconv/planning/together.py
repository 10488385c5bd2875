"""Edits that change several modules, beside each other: which exclude each other, and what they add up to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from reconv.planning.plan import Edit
from reconv.spec import ConvSpec, parse
from reconv.surgery import Site
from reconv.surgery.kin import text_of
from reconv.surgery.spaces import narrowed_spec

_NUMBERS = re.compile(r"\d+")
Costs = dict[str, float]
Apart = Mapping[tuple[Edit, Edit], Mapping[str, float]]  # what two edits cost together, beyond the sum of their rows


def touched(edit: Edit) -> set[str]:
    """All modules that an edit changes."""
    return {edit.site, *edit.absorbs, *(name for name, _ in edit.also)}


def exclude(one: Edit, other: Edit) -> bool:
    """Whether two edits of different sites cannot both be made.

    What changes several modules says how much it takes off each, so that two such edits add up, unless both take of the
    same channels; a module that another rule replaces as a whole has nothing to be taken off.
    """
    if one.also and other.also:
        return _same_channels(one, other)
    return bool(one.also or other.also) and bool(touched(one) & touched(other))


def _same_channels(one: Edit, other: Edit) -> bool:
    """Whether each of two edits takes outputs of the other's site: else it leaves more of them than the other does."""
    there, here = dict(other.also).get(one.site), dict(one.also).get(other.site)
    if there is None or here is None:
        return False
    pairs = ((parse(there), one.block), (parse(here), other.block))
    return not all(isinstance(a, ConvSpec) and isinstance(b, ConvSpec) and a.out_channels > b.out_channels
                   for a, b in pairs)  # fmt: skip


def excluding(edits: Iterable[Edit]) -> list[tuple[Edit, Edit]]:
    """The pairs that cannot both be made."""
    edits = list(edits)
    several = [e for e in edits if e.also]
    if not several:
        return []
    return [(a, b) for a, b in combinations(edits, 2) if a.site != b.site and exclude(a, b)]


def in_turn(edits: Sequence[Edit], sites: Mapping[str, Site]) -> tuple[Edit, ...]:
    """Edits made each for the network as it is, as they read when they are made one after the other.

    Args:    sites: of the network as it is.
    """
    if sum(bool(e.also) for e in edits) < 2:
        return tuple(edits)
    before: dict[str, str] = {}
    now: dict[str, str] = {}
    result = []
    for edit in edits:
        if not edit.also:
            result.append(edit)
            continue
        around = sites[edit.site].around
        assert around is not None  # the rule has looked into it
        changes = {edit.site: str(edit.block), **dict(edit.also)}
        for name in changes:
            if name not in before:
                before[name] = now[name] = text_of(around.model.get_submodule(name)) or ""
        now |= {name: _moved(now[name], before[name], text) for name, text in changes.items()}
        result.append(replace(edit, block=parse(now[edit.site]), also=tuple((n, now[n]) for n, _ in edit.also)))
    return tuple(result)


def beyond_sums(edits: Iterable[Edit], now: Callable[[str], str],
                spent: Callable[[str, str], Costs]) -> dict[tuple[Edit, Edit], Costs]:  # fmt: skip
    """What each two edits that change the same modules cost together, beyond the sum of what each of them changes.

    Half of the inputs and half of the outputs of a convolution are a quarter of its work, where the sum says none.

    Args:    now: the text of a module as it is; spent: what a module of this text costs in the place of one. The
             latency of a module that both change is taken to shrink by the product of what it shrank by for each.
    """
    of: dict[str, list[tuple[Edit, str]]] = defaultdict(list)
    for edit in edits:
        if edit.also:
            for name, text in ((edit.site, str(edit.block)), *edit.also):
                of[name].append((edit, text))
    found: dict[tuple[Edit, Edit], Costs] = {}
    for name, changes in of.items():
        if len({edit.site for edit, _ in changes}) < 2:
            continue
        whole, each = spent(name, now(name)), {text: spent(name, text) for _, text in changes}
        for (one, a), (other, b) in combinations(changes, 2):
            if one.site == other.site:
                continue
            both = spent(name, _moved(a, now(name), b))
            both["latency"] = each[a]["latency"] * each[b]["latency"] / max(whole["latency"], 1e-300)
            total = found.setdefault((one, other), dict.fromkeys(whole, 0.0))
            for cost in whole:
                total[cost] += both[cost] - each[a][cost] - each[b][cost] + whole[cost]
    return found


def _moved(now: str, before: str, after: str) -> str:
    """`now`, changed as `before` was to `after`."""
    if "(" in now:  # a pool's grid is stretched
        numbers = zip(*(map(int, _NUMBERS.findall(text)) for text in (now, before, after)), strict=True)
        pool = "pool(" in now
        moved = iter([(n * a // b if b else n) if pool else n + a - b for n, b, a in numbers])
        return _NUMBERS.sub(lambda _: str(next(moved)), now)
    here, old, new = map(ConvSpec.parse, (now, before, after))
    sized = narrowed_spec(here, here.in_channels + new.in_channels - old.in_channels,
                          here.out_channels + new.out_channels - old.out_channels)  # fmt: skip
    return str(sized.replace(
        stride=[n * b // a for n, b, a in zip(here.stride, new.stride, old.stride, strict=True)],
        dilation=[n * b // a for n, b, a in zip(here.dilation, new.dilation, old.dilation, strict=True)],
        padding=[tuple(n * b // a if a else n for n, b, a in zip(*ends, strict=True))
                 for ends in zip(here.padding, new.padding, old.padding, strict=True)],
    ))  # fmt: skip
