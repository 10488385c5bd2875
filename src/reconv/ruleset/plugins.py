"""Rules of installed packages: entry points of the group `reconv.rules`, found by name.

A package is imported only when its rule is asked for by a name that is none of reconv's own.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from reconv.errors import conv_error
from reconv.ruleset.rule import Rule

ENTRY_POINTS = "reconv.rules"
METHODS = ("refuse", "propose", "init")


def installed() -> dict[str, list[EntryPoint]]:
    """What installed packages offer, by name; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point not in found.setdefault(point.name, []):
            found[point.name].append(point)
    return found


def check_unclaimed(name: str) -> None:
    """A name of reconv's own must not be that of a plug-in as well.

    Raises:  ConvError (a ValueError): which says whose it is.
    """
    if points := installed().get(name):
        raise conv_error("rules", "a plug-in must not take a name of reconv's own",
                         got={"rule": name, "plug-in": _whose(points)}, do="Uninstall it, or pass the Rule itself.",
                         also=ValueError)  # fmt: skip


def plugin(name: str, groups: Collection[str]) -> Rule | None:
    """The rule of this name that an installed package offers; None where there is none.

    Raises:  ConvError: when several packages offer it (a ValueError), when it cannot be imported (an ImportError), or
             is no Rule (a TypeError).
    """
    points = installed().get(name)
    if not points:
        return None
    got: dict[str, object] = {"rule": name, "plug-in": _whose(points)}
    if len(points) > 1:
        raise conv_error("rules", "one plug-in alone may have this name", got=got, do="Uninstall all but one.",
                         also=ValueError)  # fmt: skip
    try:
        rule: Any = points[0].load()
        rule = rule() if isinstance(rule, type) else rule
    except Exception as error:  # whatever foreign code may raise
        raise conv_error("rules", "a plug-in must be importable",
                         got=got | {"error": repr(f"{type(error).__name__}: {error}")}, do="Update or uninstall it.",
                         also=ImportError) from error  # fmt: skip
    if wrong := _lacks(rule, name, groups):
        raise conv_error("rules", f"a plug-in must be a Rule: {wrong}", got=got | {"object": repr(rule)},
                         do="Its author must mend it.", also=TypeError)  # fmt: skip
    return cast(Rule, rule)


def _lacks(rule: Any, name: str, groups: Collection[str]) -> str | None:
    if missing := [method for method in METHODS if not callable(getattr(rule, method, None))]:
        return f"it has no {', '.join(missing)}"
    if getattr(rule, "name", None) != name:
        return f"its name must be that of its entry point, {name}"
    if getattr(rule, "group", None) not in groups:
        return f"its group must be one of {', '.join(groups)}"
    return None if isinstance(getattr(rule, "source", None), str) else "its source must be text"


def _whose(points: list[EntryPoint]) -> str:
    return ", ".join(f"{point.value} of {point.dist.name if point.dist else 'an unknown package'}" for point in points)
