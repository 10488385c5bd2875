"""The original network as a teacher: what it answers, and which of its inner activations a student can match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_structure

from reconv.data import Batch, Feed
from reconv.errors import conv_error
from reconv.planning.plan import Plan
from reconv.surgery import fresh
from reconv.surgery.norms import evaluating
from reconv.surgery.outputs import tensors_in

MEMORY = 2 * 2**30  # bytes of answers that a teacher may keep
COARSE = torch.bfloat16  # of inner activations that do not fit otherwise: 0.2 % off, far less than a student is


@dataclass(frozen=True)
class Answer:
    """Floating tensors of a network's output, and of its matched modules."""

    outputs: list[Tensor]
    inner: list[Tensor]
    structure: TreeSpec | None = None


class Watched:
    """A network that also gives the outputs of some of its modules, of each of their runs."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self.seen: dict[str, list[Tensor]] = {}
        self.handles = [model.get_submodule(n).register_forward_hook(partial(self._keep, n)) for n in names]

    def __call__(self, batch: Batch) -> Answer:
        output, seen = self.run(batch)
        return Answer(tensors_in(output), [t for name in self.names for t in seen[name]], tree_structure(output))

    def run(self, batch: Batch) -> tuple[Any, dict[str, list[Tensor]]]:
        self.seen = {name: [] for name in self.names}
        output, seen = self.model(*fresh(batch.inputs)), self.seen
        self.seen = {}
        return output, seen

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if name in self.seen:  # else somebody else runs the network
            self.seen[name] += tensors_in(output)


class Teacher:
    """Answers without gradient; from memory, once `remember` has seen that the data repeat and the answers fit."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.watched = Watched(model, names)
        self.known: dict[bytes, Answer] = {}
        self.dtypes: list[torch.dtype] = []  # of the inner activations, as the network gives them

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Answer:
        keys = _keys(batch) if self.known else []
        if not keys or any(key not in self.known for key in keys):
            return self.watched(batch)
        rows = [self.known[key] for key in keys]
        inner = [t.to(dtype) for t, dtype in zip(_joined(r.inner for r in rows), self.dtypes, strict=True)]
        return Answer(_joined(r.outputs for r in rows), inner)

    @torch.no_grad()
    def remember(self, feed: Feed, batch_size: int) -> None:
        """Answers all of `feed` in its plain order, so that answers do not depend on what was asked before."""
        first = next(iter(feed.batches(batch_size)))
        if first.digest() != next(iter(feed.batches(batch_size))).digest():
            return  # augmented or shuffled: what comes next is something else
        answer = self.watched(first)
        if any(t.ndim == 0 or len(t) != len(first) for t in answer.outputs + answer.inner):
            return
        self.dtypes = [t.dtype for t in answer.inner]
        kept = _dtypes_that_fit(answer, MEMORY // feed.count(batch_size))
        if kept is None:
            return
        for batch in feed.batches(batch_size):
            answer = self.watched(batch)
            inner = [t.to(dtype) for t, dtype in zip(answer.inner, kept, strict=True)]
            for row, key in enumerate(_keys(batch)):
                self.known[key] = Answer(_row(answer.outputs, row), _row(inner, row))


def _dtypes_that_fit(answer: Answer, most: int) -> list[torch.dtype] | None:
    """How to keep the inner activations of a batch in so many bytes: as they are, or coarsely; None: not at all."""
    outputs = sum(t.nbytes for t in answer.outputs)
    for dtypes in ([t.dtype for t in answer.inner], [COARSE] * len(answer.inner)):
        inner = sum(t.numel() * dtype.itemsize for t, dtype in zip(answer.inner, dtypes, strict=True))
        if outputs + inner <= most:
            return dtypes
    return None


def _keys(batch: Batch) -> list[bytes]:
    return [batch.rows(slice(row, row + 1)).digest() for row in range(len(batch))]


def _row(tensors: list[Tensor], row: int) -> list[Tensor]:
    """One sample, still with the dimension of the batch, by which it keeps its memory format."""
    return [t[row : row + 1].clone() for t in tensors]


def _joined(rows: Iterable[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def named_sites(student: nn.Module, teacher: nn.Module, match: Sequence[str] | None, batch: Batch) -> tuple[str, ...]:
    """The modules to match: those asked for, or else every rewritten one whose output can be compared.

    Raises:  ConvError: when a network lacks a module that was asked for, or the outputs have other shapes.
    """
    names = _rewritten(student, teacher, batch) if match is None else match
    for name in names:
        lacking = [who for who, net in (("student", student), ("model", teacher)) if name not in _modules(net)]
        if lacking:
            raise conv_error("recover", "match must name modules of both networks", got={"match": repr(name)},
                             do=f"The {lacking[0]} has none of that name.", also=ValueError)  # fmt: skip
    ours, theirs = _shapes(student, names, batch), _shapes(teacher, names, batch)
    wrong = [name for name in names if ours[name] != theirs[name]]
    if match is not None and wrong:
        first = wrong[0]
        raise conv_error("recover", "matched modules must give the same shapes", also=ValueError,
                         got={"match": repr(first), "student": ours[first], "model": theirs[first]})  # fmt: skip
    return tuple(name for name in names if name not in wrong)


def matched(made: Plan, student: nn.Module, teacher: nn.Module, feed: Feed) -> list[str]:
    """What a plan edited, and can be compared: not what has lost channels, but what reads those that are left."""
    names = {*made.matches, *(name for edit in made.edits for name, text in edit.also if not text.startswith("norm("))}
    few = next(iter(feed.batches(2))).rows(slice(2))
    known = [name for name in sorted(names) if name in _modules(student) and name in _modules(teacher)]
    with evaluating(student), evaluating(teacher), torch.no_grad():
        ours, theirs = _shapes(student, known, few), _shapes(teacher, known, few)
    return [name for name in known if ours[name] == theirs[name]]


def _rewritten(student: nn.Module, teacher: nn.Module, batch: Batch) -> list[str]:
    """Modules of another type; of two that follow each other (a folded batch norm) only the later one."""
    theirs = _modules(teacher)
    names = [n for n, m in student.named_modules() if n in theirs and type(m) is not type(theirs[n])]
    made: dict[int, str] = {}  # id of an output -> the module that made it
    alive: list[object] = []  # so that no id is used twice
    superseded: set[str] = set()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        superseded.update(made[id(x)] for x in args if id(x) in made)
        made[id(output)] = name
        alive.append(output)

    handles = [theirs[n].register_forward_hook(partial(note, n)) for n in names]
    try:
        with torch.no_grad():
            teacher(*fresh(batch.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return [n for n in names if n not in superseded]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if name}


@torch.no_grad()
def _shapes(model: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, list[tuple[int, ...]]]:
    watched = Watched(model, names)
    try:
        return {name: [tuple(t.shape) for t in tensors] for name, tensors in watched.run(batch)[1].items()}
    finally:
        watched.close()
