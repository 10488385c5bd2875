"""`Wishes`: what a person settles before the search: sites that stay, rules that may not serve, proposals that must."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from reconv.errors import ConvError, conv_error
from reconv.ruleset import RULES, Rule, rule_named
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, parse
from reconv.surgery import Site
from reconv.surgery.kin import Also
from reconv.surgery.sites import chosen

FORM = '{"pin": [SITE, …], "forbid": [{"site": SITE, "rule": RULE}, …], \
"force": [{"site": SITE, "rule": RULE, "block": BLOCK}, …]}, * allowed in SITE and in a forbidden RULE'
KEYS = {"site", "rule", "block", "absorbs", "also", "error", "latency_ms"}  # those of an edit: its line may be copied


@dataclass(frozen=True)
class Wish:
    """A rule, and the sites at which it is forbidden or forced.

    Args:    site: a name, * allowed. rule: likewise; a forced one by its name. block: None: any of the rule's.
             absorbs, also: as in the edit of a plan.
    """

    site: str
    rule: str
    block: Block | None = None
    absorbs: tuple[str, ...] = ()
    also: Also = ()

    def to_dict(self) -> dict[str, Any]:
        known: dict[str, Any] = {"site": self.site, "rule": self.rule}
        known |= {} if self.block is None else {"block": str(self.block)}
        known |= {"absorbs": list(self.absorbs)} if self.absorbs else {}
        return known | ({"also": dict(self.also)} if self.also else {})

    def at(self, site: str) -> bool:
        return fnmatchcase(site, self.site)


@dataclass(frozen=True)
class Wishes:
    """What the search has to keep to.

    Args:    pin: sites, * allowed, that stay as the plan has them: with its edit, or else untouched.
             forbid: rules that may not serve some sites. force: proposals that must be taken, slower or not.
    Example:
             >>> Wishes.of({"forbid": [{"site": "*", "rule": "bottleneck"}]}).forbid[0].at("layer1.conv2")
             True
    """

    pin: tuple[str, ...] = ()
    forbid: tuple[Wish, ...] = ()
    force: tuple[Wish, ...] = ()

    @classmethod
    def of(cls, given: Wishes | Mapping[str, Any] | None) -> Wishes:
        """Reads the form that plans have in JSON.

        Raises:  ConvError (a ValueError): where it has another form, which is shown.
        """
        if isinstance(given, Wishes):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping) or not given.keys() <= {"pin", "forbid", "force"}:
            raise _wrong(given)
        try:
            lists = {name: _list(given.get(name, [])) for name in ("pin", "forbid", "force")}
            pin = tuple(_text(name) for name in lists["pin"])
            return cls(pin, tuple(map(_wish, lists["forbid"])), tuple(map(_wish, lists["force"])))
        except (KeyError, TypeError, ConvError) as error:
            raise _wrong(given, error) from error

    def __bool__(self) -> bool:
        return bool(self.pin or self.forbid or self.force)

    def to_dict(self) -> dict[str, Any]:
        return {"pin": list(self.pin), "forbid": [w.to_dict() for w in self.forbid],
                "force": [w.to_dict() for w in self.force]}  # fmt: skip

    def pins(self, site: str) -> bool:
        return chosen(site, self.pin)

    def needed(self, rules: Sequence[Rule]) -> tuple[Rule, ...]:
        """The rules, and those that are forced but were not asked for.

        Raises:  ConvError (a ValueError): when a forced rule is not known, or adds what no budget can ask for.
        """
        found = {rule.name: rule for rule in rules}
        for wish in self.force:
            rule = found.get(wish.rule) or rule_named(wish.rule)
            if rule is None or rule.group not in ("smaller", "stronger"):
                names = ", ".join(r.name for r in RULES if r.group in ("smaller", "stronger"))
                raise conv_error("plan", "a forced rule must be one of those that change what a layer computes",
                                 got={"site": wish.site, "rule": wish.rule}, do=f"There are {names}.",
                                 also=ValueError)  # fmt: skip
            found.setdefault(rule.name, rule)
        return tuple(found.values())

    def check(self, sites: Sequence[Site], rules: Sequence[Rule]) -> None:
        """Raises ConvError (a ValueError) where a wish names no site or rule there is, or forces what is refused."""
        names = [site.name for site in sites]
        for pattern in (*self.pin, *(wish.site for wish in (*self.forbid, *self.force))):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise conv_error("plan", "each wish must name a convolution of the network", got={"site": pattern},
                                 do=f"It has {', '.join(names)}.", also=ValueError)  # fmt: skip
        known = {rule.name for rule in (*RULES, *rules)}
        for wish in self.forbid:
            if not any(fnmatchcase(name, wish.rule) for name in known):
                raise conv_error("plan", "a forbidden rule must be known", got={"rule": wish.rule},
                                 do=f"There are {', '.join(sorted(known))}.", also=ValueError)  # fmt: skip


class Guided:
    """A rule that keeps to a person's wishes; all else is the rule's own.

    Args:    pinned: what the plan has at pinned sites.
    """

    def __init__(self, rule: Rule, wishes: Wishes, pinned: Iterable[Wish] = ()) -> None:
        self.rule, self.wishes, self.pinned = rule, wishes, tuple(pinned)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def group(self) -> str:
        return self.rule.group

    @property
    def source(self) -> str:
        return self.rule.source

    def refuse(self, site: Site) -> str | None:
        inside = next((n for part in site.modules if self.wishes.pins(n := f"{site.name}.{part}".lstrip("."))), None)
        pinned = None if inside is None else f"the plan pins {inside}, which is in it"
        return pinned or self._settled(site.name) or self.rule.refuse(site)

    def propose(self, site: Site) -> Iterable[Proposal]:
        wanted = [w for w in self._meant(site.name) if w.block is not None]
        if wanted and self.group != "exact":
            return [Proposal(self.name, w.block, w.absorbs, w.also) for w in wanted if w.block is not None]
        return [p for p in self.rule.propose(site) if not any(self.wishes.pins(name) for name in _beside(p))]

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        return self.rule.init(site, proposal, activations)

    def _meant(self, site: str) -> list[Wish]:
        """The wishes by which this rule must serve a site."""
        return [w for w in (*self.wishes.force, *self.pinned) if w.rule == self.name and w.at(site)]

    def _settled(self, site: str) -> str | None:
        if any(w.at(site) and fnmatchcase(self.name, w.rule) for w in self.wishes.forbid):
            return "the plan forbids it there"
        if self._meant(site):
            return None
        if self.wishes.pins(site):
            return "the plan pins the site: it stays as it is"
        other = next((w.rule for w in self.wishes.force if w.at(site)), None)
        return f"the plan forces {other} there" if other and self.group != "exact" else None


def guided(rules: Sequence[Rule], wishes: Wishes, pinned: Sequence[Wish] = ()) -> tuple[Rule, ...]:
    """The rules, each keeping to the wishes; as they are where there are none."""
    return tuple(Guided(rule, wishes, pinned) for rule in rules) if wishes else tuple(rules)


def required(sites: Sequence[Site], rules: Sequence[Rule], wishes: Wishes, pinned: Sequence[Wish]) -> dict[str, str]:
    """The sites that must change, and the rules that must serve them.

    Raises:  ConvError (a ValueError): when such a rule refuses, with its reason.
    """
    found: dict[str, str] = {}
    smaller = {rule.name: rule for rule in rules if rule.group != "exact"}
    for site in sites:
        wish = next((w for w in (*wishes.force, *pinned) if w.rule in smaller and w.at(site.name)), None)
        if wish is None:
            continue
        if reason := smaller[wish.rule].refuse(site):
            raise conv_error("plan", "a forced rule must serve the site", got={"site": site.name, "rule": wish.rule},
                             do=f"It refuses: {reason}.", also=ValueError)  # fmt: skip
        if wish.block is not None and not wish.also:
            _check_fits(site, wish.rule, wish.block)
        found[site.name] = wish.rule
    return found


def _check_fits(site: Site, rule: str, block: Block) -> None:
    """Raises ConvError (a ValueError) unless the block takes and gives what the site does."""
    call = site.calls[0]
    try:
        gives: object = call.shape_by(block)
    except ConvError as error:
        gives = repr(str(error))
    if gives != call.output_shape:
        raise conv_error("plan", "a forced block must give what the site gives",
                         got={"site": site.name, "rule": rule, "gives": gives}, also=ValueError, spec=block,
                         do=f"Of {call.input_shape} the site makes {call.output_shape}.")  # fmt: skip


def _beside(proposal: Proposal) -> tuple[str, ...]:
    """Modules that a proposal changes elsewhere."""
    return (*proposal.absorbs, *(name for name, _ in proposal.also))


def _wish(data: Any) -> Wish:
    if not isinstance(data, Mapping) or not data.keys() <= KEYS:
        raise TypeError(f"{data!r} is no wish")
    block, also = data.get("block"), data.get("also", {})
    if not isinstance(also, Mapping):
        raise TypeError(f"also must be an object, not {also!r}")
    return Wish(_text(data["site"]), _text(data["rule"]), None if block is None else parse(_text(block)),
                tuple(map(_text, _list(data.get("absorbs", [])))),
                tuple((name, _text(text)) for name, text in also.items()))  # fmt: skip


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is no list")
    return list(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _wrong(given: object, error: Exception | None = None) -> ConvError:
    why = {} if error is None else {"error": repr(str(error))}
    return conv_error("plan", "wishes must have their form", got={"wishes": repr(given), **why}, do=f"Write {FORM}.",
                      also=ValueError)  # fmt: skip
