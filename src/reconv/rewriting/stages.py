"""Rewriting in stages: a part of the edits is applied, the network recovers, then comes the next part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from reconv.data import Feed
from reconv.errors import conv_error
from reconv.planning.edits import current
from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import altering, edited, finish, opened
from reconv.rewriting.logs import Log
from reconv.rewriting.recovery import Stopped, recover
from reconv.rewriting.teacher import matched
from reconv.ruleset import Rule
from reconv.surgery import clone
from reconv.surgery.sites import within
from reconv.targets import Target, check_runs, to_layout


def check_stages(stages: int, epochs: int, data: object) -> None:
    """Each stage is recovered for an epoch at least."""
    for name, value in (("stages", stages), ("epochs", epochs)):
        if not isinstance(value, Integral):
            raise conv_error("rewrite", f"{name} must be an integer", got={name: repr(value)}, also=ValueError)
    if stages != 1 and not (1 <= stages <= epochs and data is not None):
        raise conv_error("rewrite", "stages must be between 1 and epochs, with data to recover on",
                         got={"stages": stages, "epochs": epochs, "data": type(data).__name__},
                         do="Each stage is recovered for an epoch at least.", also=ValueError)  # fmt: skip


def parts_of(edits: Sequence[Edit], stages: int) -> list[list[Edit]]:
    """The edits in at most so many parts: the cheapest in error first, those that share a module in one part.

    Example:
             >>> from reconv.spec import parse
             >>> conv, errors = parse("ic4oc4k3"), {"a": 0.3, "b": 0.1, "c": 0.2}
             >>> edits = [Edit(site, "separable", conv, error) for site, error in errors.items()]
             >>> [[edit.site for edit in part] for part in parts_of(edits, 2)]
             [['b'], ['a', 'c']]
    """
    groups = sorted(_together(edits), key=lambda group: sum(e.error or 0.0 for e in group))
    parts = [[e for group in groups[start:end] for e in group] for start, end in _cuts(len(groups), stages)]
    order = {id(edit): place for place, edit in enumerate(edits)}
    return [sorted(part, key=lambda edit: order[id(edit)]) for part in parts if part]


def _together(edits: Sequence[Edit]) -> list[list[Edit]]:
    """Groups of edits that name the same modules, or modules within each other."""
    groups: list[tuple[set[str], list[Edit]]] = []
    for edit in edits:
        names, members = {edit.site, *edit.absorbs, *dict(edit.also)}, [edit]
        apart = []
        for known, others in groups:
            if any(_nested(a, b) for a in names for b in known):
                names, members = names | known, others + members
            else:
                apart.append((known, others))
        groups = [*apart, (names, members)]
    return [members for _, members in groups]


def _nested(a: str, b: str) -> bool:
    return within(a, [b]) or within(b, [a])


def _cuts(total: int, parts: int) -> Iterator[tuple[int, int]]:
    """Where to cut so many things into so many parts, the later ones being the larger."""
    for part in range(parts):
        yield total * part // parts, total * (part + 1) // parts


@dataclass
class Stages:
    """A network on its way through the edits of a plan.

    Args:    teacher: the network as given. train, held: None: no recovery. folder: of checkpoints; None: none are kept.
             engine: that must run both networks, where the plan was not just made on it. options: of `recover`.
    """

    teacher: nn.Module
    plan: Plan
    inputs: tuple[Any, ...]
    rules: Sequence[Rule]
    train: Feed | None
    held: Feed | None
    seed: int
    count: int = 1
    folder: Path | None = None
    log: Log | None = None
    engine: Target | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, epochs: int) -> nn.Module:
        """The network with all edits, recovered after each part of them for its share of the epochs.

        Raises:  Stopped: for Ctrl-C, with the best so far and the plan of the edits that it has.
        """
        student, sites = opened(self.teacher, self.plan, self.inputs, self.train, self.rules, self.seed)
        parts = parts_of(altering(self.plan, self.rules), self.count) or [[]]
        for number, (part, (start, end)) in enumerate(zip(parts, _cuts(epochs, len(parts)), strict=True), 1):
            sites = current(student, sites) if number > 1 else sites
            student, sites = edited(student, sites, part, self.train, self.rules, self.seed)
            student = to_layout(student, self.plan.layout)  # which trains faster, too
            if self.engine is not None:
                for network in (self.teacher, student):
                    check_runs(self.engine, clone(network), self.inputs)
            try:
                student = self.recovered(student, end - start, number, len(parts))
            except Stopped as stop:
                stop.plan = self.plan if number == len(parts) else self.so_far(parts[:number])
                stop.model = finish(stop.model, sites, stop.plan, self.rules).eval()
                raise
        return finish(student, sites, self.plan, self.rules).eval()

    def recovered(self, student: nn.Module, epochs: int, number: int, of: int) -> nn.Module:
        """After one part of the edits."""
        if self.train is None or self.held is None or epochs == 0:
            return student
        folder, log = self.folder, self.log
        if of > 1:
            folder, log = folder and folder / f"stage{number}", log and partial(_noted, log, number)
        return recover(student, self.teacher, self.train, epochs, holdout=self.held, seed=self.seed,
                       example_inputs=self.inputs, match=matched(self.plan, student, self.teacher, self.train),
                       checkpoint=folder, log=log, **self.options)  # fmt: skip

    def so_far(self, parts: Sequence[Sequence[Edit]]) -> Plan:
        """The plan without the edits that were still to come."""
        done = {id(edit) for part in parts for edit in part}
        kept = tuple(edit for edit in self.plan.edits if edit.whole or id(edit) in done)
        return replace(self.plan, edits=kept, met=False, reason="it was stopped before the last of its stages")


def _noted(log: Log, stage: int, event: dict[str, Any]) -> None:
    log({**event, "stage": stage})
