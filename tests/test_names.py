"""What layers may be called, and yet nobody's terminal, browser or table is steered by it."""

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from commanded import reconv
from reported import Checked
from rich.console import Console
from torch import nn

from reconv.commands.output import Sheet, say
from reconv.costing.render import Fitting
from reconv.costing.summary import summary
from reconv.drawing.plot import Panel, Series, plot
from reconv.drawing.strip import Cell, Strip, strip
from reconv.errors import conv_error
from reconv.plain import cell, plain
from reconv.planning.plan import Plan

INPUT = torch.zeros(1, 3, 8, 8)
NAMES = {
    "script": "<script>alert(1)</script>",
    "quotes": "a\"b'c`d",
    "tag in an attribute": '"><img src=x onerror=alert(1)>',
    "line": "a\nError: nothing is wrong",
    "return": "a\rError: nothing is wrong",
    "cdata": "]]><script/>",
    "comment": "--><script/>",
    "right to left": "a\u202egnp\u202c",
    "isolate": "a\u2066b\u2069",
    "clear": "a\x1b[2J\x1b]0;title\x07",
    "one byte": "a\x9b2J",
    "bell, back and zero": "a\x07\x08\x00\x7f",
    "link": "a\x1b]8;;http://x\x1b\\b",
    "bars": "a|b\\|c",
    "markup": "[bold red]a[/] {b} $(c) `d`",
    "surrogate": "a\udcffb",
    "line separator": "a\u2028b",
}
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def network(name: str) -> nn.Module:
    model = nn.Sequential()
    model.add_module(name.replace(".", "_"), nn.Conv2d(3, 4, 3))
    model.add_module("next", nn.Conv2d(4, 4, 1))
    return model.eval()


def on_terminal(shown: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=True, color_system=None).print(shown)
    return out.getvalue()


@each_name
def test_a_terminal_shows_names_and_does_not_obey_them(name, capsys):
    shown = summary(network(name), INPUT)
    texts = [on_terminal(Fitting(shown)), on_terminal(Sheet(["a"], [[name]], {})), shown.to_csv(), shown.to_markdown(),
             Sheet([name], [[name]], {}).to_csv(), Sheet([name], [[name]], {}).to_markdown(),
             str(conv_error("x", "y", got={"site": name}, also=ValueError))]  # fmt: skip
    say(f"Error: {name}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for text in (*texts, said):
        assert not STEERING.search(text), text
    assert plain(name.split("\n")[0])[:3] in texts[1]


@each_name
def test_a_table_keeps_its_rows_and_columns(name):
    shown = summary(network(name), INPUT)
    lines = shown.to_markdown().splitlines()
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert len(lines) == 2 + 2 + 2
    assert not re.search("<[a-z/!]", shown.to_markdown())
    assert [len(row) for row in csv.reader(io.StringIO(shown.to_csv()))] == [11] * 3
    assert next(csv.reader(io.StringIO(Sheet([name], [], {}).to_csv()))) == [plain(name)]


@each_name
def test_a_page_and_a_picture_are_whole(name):
    model = network(name)
    shown = summary(model, INPUT)
    found = Checked(f"<body>{shown._repr_html_()}</body>")
    assert plain(name.replace(".", "_")) in found.text
    points = [(0.5, 0.5, name), (1.0, 0.0, name)]
    pictures = [strip([Strip(name, [Cell(name, name, 1.0, name, name)])], name),
                plot([Panel(name, name, name, [Series(name, points)])], name)]  # fmt: skip
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert not [e for e in root.iter() if e.tag.endswith(("script", "image", "a"))]
        assert not STEERING.search(picture)
        assert plain(name) in "".join([*root.itertext(), *map(str, root.attrib.values())])


def test_from_the_command_line_to_the_report(tmp_path, monkeypatch):
    """Every name at once: tables of each format, the run folder, its report, its pictures."""
    monkeypatch.chdir(tmp_path)
    names = [name.replace(".", "_") for key, name in NAMES.items() if key != "surrogate"]
    layers = "".join(f"    m.add_module({name!r}, nn.Conv2d(3, 3, 1))\n    m.append(nn.ReLU())\n" for name in names)
    Path("net.py").write_text(f"from torch import nn\n\ndef make():\n    m = nn.Sequential()\n{layers}    return m\n")
    for form in ("table", "csv", "markdown"):
        shown = reconv("summary", "net.py:make", "--input", "1x3x5x5", "--format", form).stdout
        assert not STEERING.search(shown), form
    done = reconv("rewrite", "net.py:make", "--input", "1x3x5x5", "--rules", "fuse_activation", "--budget", "error=1",
                  "--epochs", "0", "--out", "run")  # fmt: skip
    page = Path("run/report.html").read_text(encoding="utf-8")
    for text in (done.stdout, done.stderr, page):
        assert not STEERING.search(text)
    assert all(plain(name) in Checked(page).text for name in names)
    assert {edit.site for edit in Plan.load("run/plan.json").edits} <= set(names)


def test_cells_of_markdown():
    assert cell("a|b\\|c\nd <e> & f") == "a\\|b\\\\\\|c d &lt;e> &amp; f"
