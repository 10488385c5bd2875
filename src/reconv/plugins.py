"""What installed packages add to reconv: entry points, found by name.

A package is imported only when what it offers is asked for by its name, which must be none of reconv's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from reconv.errors import ConvError, conv_error


@dataclass(frozen=True)
class Plugins:
    """One kind of things that packages add.

    Args:    group: of the entry points. place: what errors begin with. kind: the type, as in "Rule".
    """

    group: str
    place: str
    kind: str

    def offers(self) -> dict[str, list[EntryPoint]]:
        """The entry points by name; nothing is imported."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point not in found.setdefault(point.name, []):
                found[point.name].append(point)
        return found

    def check_unclaimed(self, name: str) -> None:
        """A name of reconv's own must not be that of a plug-in as well.

        Raises:  ConvError (a ValueError): which says whose it is.
        """
        if points := self.offers().get(name):
            raise conv_error(self.place, "a plug-in must not take a name of reconv's own",
                             got=self._got(name, points),
                             do=f"Uninstall it, or pass the {self.kind} itself.", also=ValueError)  # fmt: skip

    def load(self, name: str, make: Callable[[Any], Any], lacks: Callable[[Any], str | None]) -> Any:
        """What an installed package offers by this name; None where there is nothing.

        Args:    make: turns what the entry point names into the thing. lacks: why that is not of the kind.
        Raises:  ConvError: when several packages offer it (a ValueError), when it cannot be imported (an ImportError)
                 or made (a RuntimeError), or is of another kind (a TypeError); one of the package's own is let through.
        """
        points = self.offers().get(name)
        if not points:
            return None
        got = self._got(name, points)
        if len(points) > 1:
            raise conv_error(self.place, "one plug-in alone may have this name", got=got, do="Uninstall all but one.",
                             also=ValueError)  # fmt: skip
        found = self._run(points[0].load, "a plug-in must be importable", got, ImportError)
        made = self._run(lambda: make(found), f"a plug-in must give a {self.kind}", got, RuntimeError)
        if wrong := lacks(made):
            raise conv_error(self.place, f"a plug-in must be a {self.kind}: {wrong}", got=got | {"object": repr(made)},
                             do="Its author must mend it.", also=TypeError)  # fmt: skip
        return made

    def _run(self, code: Callable[[], Any], must: str, got: Mapping[str, object], also: type[Exception]) -> Any:
        try:
            return code()
        except ConvError:
            raise
        except Exception as error:  # whatever foreign code may raise
            got = {**got, "error": repr(f"{type(error).__name__}: {error}")}
            raise conv_error(self.place, must, got=got, do="Update or uninstall it.", also=also) from error

    def _got(self, name: str, points: list[EntryPoint]) -> dict[str, object]:
        whose = [f"{point.value} of {point.dist.name if point.dist else 'an unknown package'}" for point in points]
        return {self.kind.lower(): name, "plug-in": ", ".join(whose)}


def without(thing: Any, methods: tuple[str, ...]) -> str | None:
    """Which of these methods a thing lacks, if any."""
    missing = [method for method in methods if not callable(getattr(thing, method, None))]
    return f"it has no {', '.join(missing)}" if missing else None
