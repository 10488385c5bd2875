"""`Plan`: which site becomes what, and why the others stay; a JSON that a person can read and edit."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any

from reconv.errors import ConvError, conv_error
from reconv.files import read_json
from reconv.planning.considered import Considered
from reconv.planning.wishes import Wish, Wishes
from reconv.shown import show
from reconv.spec import Block, parse
from reconv.surgery.kin import Also
from reconv.surgery.sites import within
from reconv.targets import LAYOUTS
from reconv.writing import write_text

FORMAT = 1
FITS = ("weights", "responses")


@dataclass(frozen=True)
class Edit:
    """A chosen proposal: `block`, fitted by `rule`, stands in for `site`.

    Args:    site: the name of a module. rule: that of the rule. block: what it becomes.
             error: ‖student − teacher‖ / ‖teacher‖ of the network's output with this edit alone, right after the fit.
             latency_ms: measured for all runs of the site in one forward pass; None where it was not.
             absorbs: modules that become identities, because the block does their work.
             whole: whether `site` is a module of several layers, which `block` stands in for; such edits come first.
             also: other modules that change with it, and what they become: `norm(48)`, a convolution's text, …
    Example:
             >>> edit = Edit("conv1", "kernel", parse("ic8oc8k1x1"))
             >>> edit.to_dict()["block"]
             'ic8oc8k1x1'
    """

    site: str
    rule: str
    block: Block
    error: float | None = None
    latency_ms: float | None = None
    absorbs: tuple[str, ...] = ()
    whole: bool = False
    also: Also = ()

    def to_dict(self) -> dict[str, Any]:
        known: dict[str, Any] = {"site": self.site, "rule": self.rule, "block": str(self.block),
                 "error": self.error, "latency_ms": self.latency_ms}  # fmt: skip
        known |= {"absorbs": list(self.absorbs)} if self.absorbs else {}
        known |= {"also": dict(self.also)} if self.also else {}
        return known | ({"whole": True} if self.whole else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Edit:
        """The inverse of `to_dict`; raises KeyError, TypeError, ValueError or ConvError where it is none."""
        error, latency = data.get("error"), data.get("latency_ms")
        absorbs, whole = data.get("absorbs", []), data.get("whole", False)
        if not isinstance(absorbs, list):
            raise TypeError(f"absorbs must be a list, not {absorbs!r}")
        if not isinstance(whole, bool):
            raise TypeError(f"whole must be true or false, not {whole!r}")
        also = data.get("also", {})
        if not isinstance(also, dict) or not all(isinstance(text, str) for text in also.values()):
            raise TypeError(f"also must be an object of texts, not {also!r}")
        return cls(str(data["site"]), str(data["rule"]), parse(data["block"]),
                    None if error is None else float(error), None if latency is None else float(latency),
                    tuple(map(str, absorbs)), whole, tuple(also.items()))  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """Why a rule did not change a site."""

    site: str
    rule: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return {"site": self.site, "rule": self.rule, "reason": self.reason}


@dataclass(frozen=True)
class Point:
    """A rewritten network that was measured as a whole, before any recovery.

    Args:    layers: how many of them change.
             error: ‖student − teacher‖ / ‖teacher‖ of its output, each layer fitted to the unedited network; `apply`
             fits each to what the network has become, which ends near it, mostly below.
             score: what `evaluate` gave; None where it was not asked.
    """

    latency_ratio: float
    latency_ms: float
    error: float
    macs: float
    params: float
    memory: float
    layers: int = 0
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Edits in the order in which they are applied, and the refusals.

    Args:    model: {"ref": what the command line called it, "hash": of its structure, "sites": what the convolutions
             were that the edits change}.
             budget: as given, in its text form; None for none.
             layout: memory format in which the whole network measured fastest.
             fit: what the errors of its edits were measured after: a fit on the "responses" of the layers to real
             inputs, or, without data, to their "weights" alone.
             met, reason: whether the budget holds, as measured on the whole network, and if not, why.
             wishes: what a person settled before the search. measured: the whole network with these edits.
             front: of all networks that the search measured those that no other beats in latency and error.
             considered: every proposal for every site, with its figures and why it was or was not taken.
             alternatives: the plans of such a front, from fast to slow, where one was asked for; each has a file of
             its own.
    Example:
             >>> Plan.from_dict(Plan().to_dict()) == Plan()
             True
    """

    edits: tuple[Edit, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    budget: str | None = None
    target: str = "torch"
    layout: str = "contiguous"
    met: bool = True
    reason: str | None = None
    latency_ratio: float | None = None
    fit: str = "weights"
    wishes: Wishes = field(default_factory=Wishes)
    measured: Point | None = None
    front: tuple[Point, ...] = ()
    considered: tuple[Considered, ...] = ()
    alternatives: tuple[Plan, ...] = field(default=(), compare=False, repr=False)

    @property
    def sites(self) -> dict[str, str]:
        """The convolutions that its edits change, as they were, by name; a plan written by hand may tell none."""
        return dict(self.model.get("sites") or {})

    @property
    def wholes(self) -> tuple[Edit, ...]:
        """The edits of whole modules, which are applied before any other."""
        return tuple(edit for edit in self.edits if edit.whole)

    @property
    def matches(self) -> list[str]:
        """The names of edited modules whose outputs mean the same as those of the original's module of that name."""
        wholes = {edit.site for edit in self.wholes}
        return sorted({e.site for e in self.edits if not _inside(e.site, wholes)} - {""})

    @property
    def pinned(self) -> tuple[Wish, ...]:
        """What it has at the sites that it pins."""
        return tuple(Wish(e.site, e.rule, e.block, e.absorbs, e.also) for e in self.edits
                     if not e.whole and self.wishes.pins(e.site))  # fmt: skip

    def explain(self, site: str) -> tuple[Considered, ...]:
        """Every proposal for a site, with its figures and why it was or was not taken.

        Raises:  ConvError (a ValueError): for a site of which the plan knows none.
        """
        found = tuple(one for one in self.considered if one.site == site)
        if not found:
            names = dict.fromkeys(one.site for one in self.considered)
            raise conv_error("Plan", "the site must be one for which proposals were considered", got={"site": site},
                             do=f"There are {', '.join(names)}." if names else "This plan has none.",
                             also=ValueError)  # fmt: skip
        return found

    def _repr_html_(self) -> str | None:
        return show("plan", self)

    def to_dict(self) -> dict[str, Any]:
        known = {
            "format": FORMAT, "model": dict(self.model), "budget": self.budget, "target": self.target,
            "layout": self.layout, "met": self.met, "reason": self.reason, "latency_ratio": self.latency_ratio,
            "fit": self.fit, "wishes": self.wishes.to_dict(), "measured": self.measured and self.measured.to_dict(),
        }  # fmt: skip
        return known | {name: [one.to_dict() for one in getattr(self, name)] for name in _LISTS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`; raises ConvError (a ValueError) that names the part that is wrong."""
        if not isinstance(data, Mapping):
            raise _wrong("a plan is a JSON object", {"type": type(data).__name__})
        if data.get("format") != FORMAT:
            raise _wrong(
                f"format must be {FORMAT}", {"format": data.get("format")}, "Upgrade reconv to read a newer one."
            )
        known = {name: _typed(data, name) for name in _TYPES if name in data}
        sites = known.get("model", {}).get("sites", {})
        if not isinstance(sites, dict) or not all(isinstance(text, str) for text in sites.values()):
            raise _wrong("model.sites must be an object of texts", {"sites": repr(sites)})
        if known.get("layout", LAYOUTS[0]) not in LAYOUTS:
            raise _wrong(f"layout must be one of {', '.join(LAYOUTS)}", {"layout": known["layout"]})
        if known.get("fit", FITS[0]) not in FITS:
            raise _wrong(f"fit must be one of {', '.join(FITS)}", {"fit": known["fit"]})
        for name, read in _LISTS.items():
            known[name] = tuple(_read(read, each, f"{name}[{i}]") for i, each in enumerate(known.get(name, [])))
        known["wishes"] = Wishes.of(known.get("wishes"))
        if known.get("measured") is not None:
            known["measured"] = _read(_point, known["measured"], "measured")
        return cls(**known)

    def text(self) -> str:
        """The plan as JSON, an edit or a proposal a line."""
        parts = []
        for name, value in self.to_dict().items():
            rows = ",\n  ".join(map(_json, value)) if name in _LISTS else ""
            parts.append(f'"{name}": [\n  {rows}\n ]' if rows else f'"{name}": {_json(value)}')
        return "{\n " + ",\n ".join(parts) + "\n}\n"

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_text(path, self.text())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan from JSON; raises ConvError where it is not one."""
        return cls.from_dict(read_plan_json(path))


def read_plan_json(path: str | Path) -> Any:
    """What a file holds; raises ConvError where it is no JSON."""
    try:
        return read_json(Path(path))
    except (OSError, ValueError) as error:
        raise _wrong("the file must hold a plan as JSON", {"path": path, "error": repr(str(error))}) from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wrong(must: str, got: Mapping[str, object], do: str = "") -> ConvError:
    return conv_error("Plan", must, got=got, do=do, also=ValueError)


_TYPES: dict[str, tuple[type, ...]] = {
    "edits": (list,), "refusals": (list,), "model": (dict,), "budget": (str, NoneType), "target": (str,),
    "layout": (str,), "met": (bool,), "reason": (str, NoneType), "latency_ratio": (int, float, NoneType),
    "fit": (str,), "wishes": (dict,), "measured": (dict, NoneType), "front": (list,), "considered": (list,),
}  # fmt: skip


def _typed(data: Mapping[str, Any], name: str) -> Any:
    value, types = data[name], _TYPES[name]
    if not isinstance(value, types):
        names = " or ".join("null" if t is NoneType else t.__name__ for t in types)
        raise _wrong(f"{name} must be {names}", {name: repr(value)})
    return value


def _read(read: Any, data: Any, where: str) -> Any:
    try:
        return read(data)
    except ConvError as error:
        raise _wrong(f"{where} must be readable", {"error": repr(str(error))}) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _wrong(f"{where} must have its fields, of their types", {"error": repr(error)}) from error


def _inside(name: str, modules: Collection[str]) -> bool:
    """Whether a name lies in one of the modules, and is none of them."""
    return any(name != module and within(name, [module]) for module in modules)


def _refusal(data: Mapping[str, Any]) -> Refusal:
    return Refusal(str(data["site"]), str(data["rule"]), str(data["reason"]))


def _point(data: Mapping[str, Any]) -> Point:
    known = {one.name: data[one.name] for one in fields(Point) if one.name in data}
    if not all(isinstance(value, int | float | NoneType) for value in known.values()):
        raise TypeError(f"a point is made of numbers, not {known!r}")
    return Point(**known)


_LISTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "edits": Edit.from_dict, "refusals": _refusal, "front": _point, "considered": Considered.from_dict,
}  # fmt: skip
