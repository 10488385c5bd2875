"""Whether what follows a convolution is certain, though the network's forward pass decides by values.

One forward pass has shown that a module alone reads another one's output. Where values decide, another pass may go
another way. It cannot, so far as these two are concerned, where the smallest module that holds both is traced by
torch.fx, which fails at each decision; or where the source of that module says nothing else of them than
`follower(first(…))`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import fx, nn

from reconv.surgery.clone import names_of

REACHES = ("_modules", "children", "named_children", "modules", "named_modules", "get_submodule", "__dict__")


def doubt(model: nn.Module, first: nn.Module, follower: nn.Module,
          within: Iterable[Container[nn.Module]]) -> str | None:  # fmt: skip
    """Why `follower` may not be what always and alone reads `first`, and reads nothing else; None where it is.

    Args:    within: the modules that were running at each run of `first` that was seen.
    """
    names = [names_of(model, module)[0].split(".") for module in (first, follower)]
    inside = next(i for i, (a, b) in enumerate(zip(*names, strict=False)) if a != b)
    path, local = names[0][:inside], [".".join(name[inside:]) for name in names]
    holder = model.get_submodule(".".join(path))
    named = len(names_of(model, holder))
    if any(len(names_of(model, m)) > named * len(names_of(holder, m)) for m in (first, follower)):
        return "they are parts of several modules"
    if not all(holder in running for running in within):
        return f"they run outside of {type(holder).__name__}"
    if reason := _reached(model, path, {name[-1] for name in names}):
        return reason
    reason = _by_trace(holder, *local)
    if reason and all("." not in name for name in local) and "forward" not in vars(holder):
        return _by_source(type(holder), *local)
    return reason


# -- by tracing -------------------------------------------------------------------------------------------
class _Tracer(fx.Tracer):
    """Stops at the two modules."""

    def __init__(self, *leaves: str) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.leaves or super().is_leaf_module(module, name)


def _by_trace(holder: nn.Module, first: str, follower: str) -> str | None:
    """Why the traced graph of the module that holds both does not tell that one follows the other; None: it does."""
    try:
        graph = _Tracer(first, follower).trace(holder)
    except Exception as error:  # whatever a forward pass may raise that is given a proxy
        return (
            f"{type(holder).__name__} cannot be traced ({' '.join(str(error).split())[:100] or type(error).__name__})"
        )
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        return f"{type(holder).__name__} takes several inputs"
    runs = {name: [node for node in graph.nodes if node.op == "call_module" and node.target == name]
            for name in (first, follower)}  # fmt: skip
    follows = all(list(node.users) and set(node.users) <= set(runs[follower]) for node in runs[first])
    alone = all(len(node.args) == 1 and node.args[0] in runs[first] for node in runs[follower])
    others = any(node.op == "get_attr" and str(node.target).startswith((f"{first}.", f"{follower}."))
                 for node in graph.nodes)  # fmt: skip
    known = runs[first] and follows and alone and not others
    return None if known else f"{type(holder).__name__} uses them in other ways, too"


# -- by the source ----------------------------------------------------------------------------------------
def _by_source(holder: Any, first: str, follower: str) -> str | None:
    """Why the source of a class does not tell that `self.follower` always and alone reads `self.first`."""
    classes = _sources(holder)
    if classes is None:
        return f"the source of {holder.__name__} is not at hand"
    uses, pairs = {first: 0, follower: 0}, 0
    for node in (node for method in _methods(classes) for node in _parts(method)):
        if isinstance(node, _Bare) or (isinstance(node, ast.Attribute) and node.attr in REACHES):
            return f"{holder.__name__} hands its parts on"
        if isinstance(node, ast.Attribute) and node.attr in uses:
            uses[node.attr] += 1
        pairs += _is_pair(node, first, follower)
    known = pairs and uses == {first: pairs, follower: pairs}
    return None if known else f"{holder.__name__} uses them in other ways, too"


def _is_pair(node: Part, first: str, follower: str) -> bool:
    """`self.follower(self.first(…))`; or `y = self.first(…)`, then a `y = …` where y is only in `self.follower(y)`."""
    if isinstance(node, ast.Call):
        return _calls(node, follower) and len(node.args) == 1 and not node.keywords and _calls(node.args[0], first)
    if not isinstance(node, tuple):
        return False
    match node:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=given),
            ast.Assign(targets=[ast.Name(id=again)], value=taken),
        ) if name == again and _calls(given, first):
            reads = [n for n in ast.walk(taken) if isinstance(n, ast.Name) and n.id == name]
            follows = [n for n in ast.walk(taken) if _calls(n, follower) and n.args == reads and not n.keywords]
            return len(reads) == len(follows) == 1
    return False


def _calls(node: object, name: str) -> TypeGuard[ast.Call]:
    """Whether it is `self.name(…)`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=attr)):
            return attr == name
    return False


# -- from outside -----------------------------------------------------------------------------------------
def _reached(model: nn.Module, path: Sequence[str], leaves: set[str]) -> str | None:
    """Whether a module above the one at `path` may call one of its parts past it; None where none does."""
    numbered = any(leaf.isdigit() for leaf in leaves)
    held = next((name for name in reversed(path) if not name.isdigit()), None)
    for depth in range(len(path)):
        above: Any = type(model.get_submodule(".".join(path[:depth])))
        if above.__module__.startswith("torch.nn."):
            continue
        classes = _sources(above)
        if classes is None:
            return f"the source of {above.__name__} is not at hand"
        for node in (node for method in _methods(classes) for node in _parts(method)):
            match node:
                case ast.Attribute(value=ast.Name(id="self")) if node.attr != held:
                    continue
                case ast.Attribute() if node.attr in leaves:
                    return f"{above.__name__} reaches into its parts"
                case _Held() if numbered and node.name == held:
                    return f"{above.__name__} takes {held} apart"
    return None


# -- sources ----------------------------------------------------------------------------------------------
class _Bare:
    """`self` in another place than before a dot."""


@dataclass(frozen=True)
class _Held:
    """An attribute that is not called."""

    name: str


Pair = tuple[ast.stmt, ast.stmt]
Part = ast.AST | Pair | _Bare | _Held


def _parts(method: ast.AST) -> Iterator[Part]:
    """All nodes, and what they are to each other: statements that follow one another, `_Bare` and `_Held`."""
    nodes = list(ast.walk(method))
    dotted = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        yield node
        if isinstance(node, ast.Name) and node.id == "self" and id(node) not in dotted:
            yield _Bare()
        if isinstance(node, ast.Attribute) and id(node) not in called:
            yield _Held(node.attr)
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                yield from itertools.pairwise(body)


def _methods(classes: Sequence[ast.Module]) -> Iterator[ast.AST]:
    """What may run in a forward pass: all but the making."""
    for tree in classes:
        (kind,) = tree.body
        for node in ast.iter_child_nodes(kind):
            if not (isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__repr__", "extra_repr")):
                yield node


@functools.cache
def _sources(kind: Any) -> list[ast.Module] | None:
    """The parsed sources of a class and of those it comes from, up to nn.Module; None where one is not at hand."""
    found = []
    for each in kind.__mro__:
        if each in (nn.Module, object):
            continue
        try:
            lines, start = inspect.getsourcelines(each)
            found.append(ast.parse(textwrap.dedent("".join(lines))))
        except (OSError, TypeError, SyntaxError):
            return None
        for method in filter(inspect.isfunction, vars(each).values()):  # one set later is somewhere else
            code = method.__code__
            if code.co_filename != inspect.getfile(each) or not start <= code.co_firstlineno < start + len(lines):
                return None
    return found
