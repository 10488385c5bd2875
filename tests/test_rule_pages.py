"""Every rule has its page, each page says what the rule says now, and what it shows runs."""

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from cases import BUILT

from reconv.drawing.blocks import svg
from reconv.ruleset import RULES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = DOCS / "rules"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_rules", DOCS / "rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def test_every_page_is_of_a_rule():
    names = {rule.name for rule in RULES}
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert names <= pages <= names | set(GENERATOR.BY_HAND)
    assert {path.stem for path in PAGES.glob("*.svg")} == names - set(GENERATOR.BY_HAND)


@each_rule
def test_is_made_anew_by_docs_rules(rule):
    path = PAGES / f"{rule.name}.md"
    assert path.read_text() == GENERATOR.page(rule, path.read_text()), "python docs/rules.py"
    if rule.name not in GENERATOR.BY_HAND:
        assert path.with_suffix(".svg").read_text() == GENERATOR.picture(rule), "python docs/rules.py"


@pytest.mark.parametrize("path, make", [(PAGES / "README.md", GENERATOR.index),
                                        (DOCS.parent / "README.md", GENERATOR.short)])  # fmt: skip
def test_the_tables_are_made_anew(path, make):
    now = path.read_text()
    assert now == make(now), "python docs/rules.py"
    for rule in RULES:
        assert f"`{rule.name}`" in now


@each_rule
def test_is_written_by_hand_where_it_must_be(rule):
    text = (PAGES / f"{rule.name}.md").read_text()
    assert GENERATOR.TO_WRITE not in text
    for title in GENERATOR.HAND:
        assert len(re.search(rf"## {title}\n\n(.*?)\n\n(##|<!--)", text, re.DOTALL)[1]) > 40


@each_rule
def test_what_it_shows_runs(rule):
    page = doctest.DocTestParser().get_doctest((PAGES / f"{rule.name}.md").read_text().replace("\n```", "\n\n```"), {},
                                               rule.name, None, 0)  # fmt: skip
    assert page.examples or rule.name in GENERATOR.BY_HAND
    assert any(example.want for example in page.examples) or rule.name in GENERATOR.BY_HAND
    failed = []
    doctest.DocTestRunner(verbose=False).run(page, out=failed.append)
    assert not failed, "".join(failed)


@pytest.mark.parametrize("case", BUILT.values(), ids=BUILT)
def test_every_block_has_a_picture(case):
    drawn = svg([("it", case.block, case.input_shape)], "a block & more")
    root = ElementTree.fromstring(drawn)
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    assert width > 100 < height + 60
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "it"
    assert "×".join(map(str, case.input_shape[1:])) in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) >= 3
