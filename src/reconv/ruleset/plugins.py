"""Rules of installed packages: entry points of the group `reconv.rules`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from reconv.plugins import Plugins, without
from reconv.ruleset.rule import Rule

PLUGINS = Plugins("reconv.rules", "rules", "Rule")


def plugin(name: str, groups: Collection[str]) -> Rule | None:
    """The rule of this name that an installed package offers, or that its class makes; None where there is none.

    Raises:  ConvError: as `Plugins.load`.
    """

    def lacks(rule: Any) -> str | None:
        if missing := without(rule, ("refuse", "propose", "init")):
            return missing
        if getattr(rule, "name", None) != name:
            return f"its name must be that of its entry point, {name}"
        if getattr(rule, "group", None) not in groups:
            return f"its group must be one of {', '.join(groups)}"
        return None if isinstance(getattr(rule, "source", None), str) else "its source must be text"

    rule: Rule | None = PLUGINS.load(name, lambda found: found() if isinstance(found, type) else found, lacks)
    return rule
