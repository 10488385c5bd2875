"""The book: its code runs, the command line knows its commands, its chapters are alike, and each has its twin."""

import doctest
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from kinds import ROWS

import reconv
from reconv.cli import COMMANDS, app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# a rule's page is run by test_rule_pages.py, a Chinese one has the code of its twin
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "zh" not in p.parts and
                                     (p.parent.name != "rules" or p.name == "README.md"))]  # fmt: skip
GLANCE, QUESTIONS = DOCS / "kinds" / "index.md", sorted((DOCS / "questions").glob("*.md"))
KINDS = sorted({*(DOCS / "kinds").glob("*.md")} - {GLANCE})
TWINS = [(page, DOCS / "zh" / page.relative_to(DOCS)) for page in [GLANCE, *KINDS, *QUESTIONS]]
PARTS = ["Formula", "Picture", "Worked numbers", "Shapes in 1D, 2D and 3D", "In reconv", "In PyTorch and TensorFlow",
         "When it helps", "When it does not", "Measured", "Where it comes from"]  # fmt: skip
COMMAND = re.compile(r"^(?:.*-m )?reconv (\w.*)$", re.MULTILINE)
FENCE = re.compile(r"^(?:```|<!-- )(\w*)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)


def _book() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_book", DOCS / "book.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


BOOK = _book()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
each_twin = pytest.mark.parametrize("page, twin", TWINS, ids=lambda p: str(p.relative_to(DOCS)))


def _fences(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def _prose(page: Path) -> str:
    """Without code, and with what is computed at the build as it is written."""
    return re.sub(r"^```.*?^```$|`[^`]*`|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


# -- what stands there runs -----------------------------------------------------------------------------------
@each_page
def test_code_runs(page, tmp_path, monkeypatch):
    """All code of a page in one namespace, in order; what a reader has already stands in a comment of the page."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, failed = {}, []
    for number, body in enumerate(_fences(page, "python")):
        if ">>>" in body:
            test = doctest.DocTestParser().get_doctest(body, names, f"{page.name} {number}", None, 0)
            flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=failed.append, clear_globs=False)
            names |= test.globs
        else:
            exec(compile(body, f"{page.name} {number}", "exec"), names)
    assert not failed, "".join(failed)


def _commands(page: Path) -> list[list[str]]:
    """The words after `reconv` in each command of a page."""
    lines = "\n".join(_fences(page, "sh", "")).replace("\\\n", " ")
    return [shlex.split(words.partition(" > ")[0], comments=True) for words in COMMAND.findall(lines)]


@each_page
def test_commands_are_known(page, tmp_path, monkeypatch):
    """Each names a command, and flags that it has, with values that they take; a YAML file's first line is its name."""
    monkeypatch.chdir(tmp_path)
    for body in _fences(page, "yaml"):
        Path(body.split()[1]).write_text(body, encoding="utf-8")
    commands = typer.main.get_command(app).commands
    for name, *words in _commands(page):
        given = [word for word in words if word != "…"] + ["what is left out"] * ("…" in words)
        commands[name].make_context(name, given)


def test_commands_are_found():
    commands = {words[0] for page in PAGES for words in _commands(page)}
    assert commands == {command.__name__ for command in COMMANDS}


# -- what stands there is computed ------------------------------------------------------------------------------
@pytest.mark.parametrize("page", [page for pair in TWINS for page in pair], ids=lambda p: str(p.relative_to(DOCS)))
def test_is_expanded(page):
    pictures = []
    text = BOOK.expanded(page.read_text(encoding="utf-8"), "en", lambda svg: pictures.append(svg) or "")
    assert "{{" not in text
    assert "draw:" not in text
    assert page.stem in ("index", "computing") or pictures
    for svg in pictures:
        assert re.search(r'aria-label="[^"]{12,}', svg)


@pytest.mark.parametrize("text, said", [('params("ic16oc32k3x3nb")', "4,608"), ('params("ic16oc16k3x3g16nb")', "144"),
                                        ('macs("ic16oc32k3x3p1nb", "1x16x28x28")', "3,612,672"), ("1 / 3", "0.333"),
                                        ("123456.7", "123,000"), ('field("ic1oc1k3 -> ic1oc1k3")', "5")])  # fmt: skip
def test_numbers(text, said):
    assert BOOK.expanded(f"a {{{{ {text} }}}} b", "en", str) == f"a {said} b"


def test_a_figure_that_was_not_measured_is_an_error():
    for text in ("ic1oc1k99 1x1x99", "ic32oc32k3x3p1g32 1x32x112x112"):
        with pytest.raises(KeyError):
            BOOK.ms(text, "elsewhere")


def test_measured_tables_have_the_faster_memory_format():
    problem = "ic768oc768k4p3g768 1x768x1024"
    engines = BOOK.results()[problem, 1]["engines"]
    least = min(timed["ms"] for name, timed in engines.items() if name.startswith("torch "))
    assert f"| {least:.3g} |" in BOOK.measured(f"it: {problem}\n", "en")
    assert least == BOOK.ms(problem)


def test_styles_are_bound_to_their_picture():
    css = ".a { fill: red } @keyframes go { to { x: 1px } } .b { animation: go 1s }"
    css += " @media (prefers-color-scheme: dark) { .a { fill: blue } }"
    styled = BOOK.styled(css, "p1")
    assert styled.splitlines()[0].startswith("@keyframes p1-go")
    assert "animation: p1-go 1s" in styled
    assert "prefers" not in styled
    assert '[data-md-color-scheme="slate"] #p1 { .a { fill: blue } }' in styled
    assert styled.count("{") == styled.count("}")


# -- chapters are alike -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", KINDS, ids=lambda p: p.stem)
def test_kinds_have_the_same_parts(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == PARTS
    for part in ("```text\n", "](draw:", "```shapes\n", "```python\n", "```measured\n"):
        assert part in text, part
    assert re.search(r"\b(19|20)\d\d\b", text.split("## Where it comes from")[1])


@pytest.mark.parametrize("page", QUESTIONS, ids=lambda p: p.stem)
def test_questions_begin_with_their_answer(page):
    parts = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert (parts[0], parts[-1]) == ("In short", "Sources")


def test_every_kind_is_at_a_glance():
    links = re.findall(r"\((\w+)\.md\)", GLANCE.read_text(encoding="utf-8"))
    assert set(links) == {page.stem for page in KINDS}


def test_every_block_of_the_library_is_in_a_chapter():
    texts = "\n".join(page.read_text(encoding="utf-8") for page in KINDS)
    for name in (row.kind for row in ROWS.values()):
        assert f"reconv.nn.{name}2d(" in texts, name


def test_the_reference_has_every_public_name():
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    rooms = {"classic", "functional", "networks", "nn", "tensorflow", "rules", "Block"}
    assert {f"reconv.{name}" for name in set(reconv.__all__) - rooms} <= shown
    assert {f"reconv.nn.{row.kind}2d" for row in ROWS.values()} <= shown
    assert {f"reconv.networks.{name}" for name in set(reconv.networks.__all__) - {"CATALOGUE"}} <= shown
    for room in (reconv.functional, reconv.classic):
        names = {re.sub("[13]d$", "2d", name) for name in room.__all__ if not name.startswith("_")}
        assert {f"{room.__name__}.{name}" for name in names} <= shown


# -- in Chinese, too --------------------------------------------------------------------------------------------
def _facts(page: Path) -> dict[str, list[str]]:
    """All of a chapter that does not depend on its language."""
    text, prose = page.read_text(encoding="utf-8"), _prose(page)
    rows = "\n".join(_fences(page, "shapes", "measured"))
    return {
        "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
        "code": _fences(page, "python", "sh", "text"),
        "tables": re.findall(r": (.+)$", rows, re.MULTILINE),
        "pictures": re.findall(r"\]\(((?:draw|plot):.*)\)$", text, re.MULTILINE),
        "links": sorted(re.findall(r"([\w.]+\.md)\)", prose)),
        "computed": sorted(re.findall(r"\{\{ .+? \}\}", text)),
        "numbers": sorted(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"\{\{.*?\}\}|\(draw:.*", "", prose))),
    }


@each_twin
def test_has_its_twin(page, twin):
    assert _facts(page) == _facts(twin)


def test_every_chinese_page_is_a_twin():
    pages = {path.relative_to(DOCS / "zh") for path in (DOCS / "zh").rglob("*.md")}
    assert pages == {page.relative_to(DOCS) for page, _ in TWINS} | {Path("index.md")}
