"""What is public says what it does: in one form, with arguments that exist, and an example that runs (as a doctest)."""

import ast
import inspect
import re
import textwrap
from importlib import import_module

import pytest
from api import MODULES, REFERENCE, resolved

SECTIONS = ("Args", "Weights", "Returns", "Gives", "Yields", "Raises", "Source", "Example")
SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):(?=\s)", re.MULTILINE)
NAMED = re.compile(r"(?:^|(?<=[.;] ))([a-z_]\w*(?:, [a-z_]\w*)*): ")  # "a, b: …. c: …", as the house writes it
# Nobody makes these: the examples are where they come from.
GIVEN_BACK = {"reconv.ConvError", "reconv.Result", "reconv.costing.summary.Row", "reconv.networks.Entry",
              "reconv.rewriting.export.ExportReport"}  # fmt: skip
WHERE_THERE_ARE_DEVICES = {"reconv.nn.split_groups"}


def _public() -> dict[str, object]:
    names = [f"{room}.{name}" for room in MODULES for name in import_module(room).__all__]
    names += re.findall(r"^::: (\S+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: thing for name in names if callable(thing := resolved(name))}


PUBLIC = _public()
everything = pytest.mark.parametrize("name", PUBLIC)


def _parts(name: str) -> dict[str, str]:
    """The sections of a docstring; what stands before them has no name."""
    first, *rest = SECTION.split(inspect.getdoc(PUBLIC[name]) or "")
    return {"": first.strip()} | {head: textwrap.dedent(body) for head, body in zip(rest[::2], rest[1::2], strict=True)}


def _known(thing: object) -> set[str]:
    """All that may be documented of a thing: parameters of it, or of a layer's call; properties."""
    calls = [thing]
    if inspect.isclass(thing):  # settings that are passed on, `**settings`, are those of the classes above
        calls += [k.__init__ for k in thing.__mro__ if k.__module__.startswith("reconv") and "__init__" in vars(k)]
        calls += [thing.forward] if hasattr(thing, "forward") else []
    names = {name for call in calls for name in inspect.signature(call).parameters}
    return names | {name for name, value in inspect.getmembers(thing) if isinstance(value, property)}


def _raises(thing: object) -> bool:
    body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    return any(isinstance(node, ast.Raise) for node in ast.walk(body))


@everything
def test_begins_with_a_sentence(name):
    first = _parts(name)[""].split("\n\n")[0]
    assert first, "it has no docstring"
    assert first.endswith((".", ":")), first
    assert len(first.splitlines()) < 3, "the first paragraph is to be a sentence"


@everything
def test_sections_stand_in_their_order(name):
    places = [SECTIONS.index(part) for part in _parts(name) if part]
    assert places == sorted(places)
    assert not re.search(r"^(Arguments|Parameters|Return|Examples|Note):", inspect.getdoc(PUBLIC[name]), re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in PUBLIC if "Args" in _parts(name)])
def test_arguments_that_are_told_exist(name):
    lines = re.sub(r"\([^()]*\)", "", _parts(name)["Args"])
    told = {each for found in NAMED.findall(" ".join(lines.split())) for each in found.split(", ")}
    assert told
    assert told <= _known(PUBLIC[name])


@pytest.mark.parametrize("name", [n for n, thing in PUBLIC.items() if inspect.isfunction(thing)])
def test_what_is_raised_is_told(name):
    assert "Raises" in _parts(name) or not _raises(PUBLIC[name])


@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in GIVEN_BACK | WHERE_THERE_ARE_DEVICES])
def test_has_an_example(name):
    thing = PUBLIC[name]
    assert ">>> " in _parts(name).get("Example", "") or getattr(thing, "_is_protocol", False)
