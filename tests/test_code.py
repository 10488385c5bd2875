"""What the library's own code must not do: nothing in it turns data into code, but for the calls that are listed."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reconv"

# what may stand where, and why
ALLOWED = {
    ("models.py", "import pickle"): "the name of the error that torch raises; nothing is unpickled",
    ("rewriting/export.py", "import subprocess"): "an exported file is run by itself, once, in a process of its own",
    ("rewriting/export.py", "subprocess.run"): "the same, by a list of arguments and no shell",
    ("rewriting/export.py", "text torch.export.load"): "there, of the file that was written just before",
}
NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess",
                  "pty", "code", "codeop", "runpy"}  # fmt: skip
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load",
                "torch.export.load", "torch.package.PackageImporter", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
                "yaml.load_all", "add_safe_globals", "torch.serialization.add_safe_globals"}  # fmt: skip
NEVER_SAID = (
    "torch.export.load",
    "torch.jit.load",
    "pickle.load",
    "weights_only=False",
    "allow_pickle=True",
    "os.system",
)
KEYWORDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def dotted(node: ast.AST) -> str:
    """a.b.c of a name or an attribute; a method of anything else is ?.c."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def docstrings(tree: ast.AST) -> set[int]:
    """The strings that are nobody's value."""
    alone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {id(value) for value in alone if isinstance(value, ast.Constant)}


def found_in(text: str) -> set[str]:
    """What of the above a module does."""
    tree, found = ast.parse(text), set()
    unused = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {f"import {one.name}" for one in node.names if one.name.partition(".")[0] in NEVER_IMPORTED}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in NEVER_IMPORTED:
            found.add(f"import {node.module}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unused:
            found |= {f"text {word}" for word in NEVER_SAID if word in node.value}
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
            if name in NEVER_CALLED or name.startswith("subprocess.") or given.get("shell"):
                found.add(name)
            if name in KEYWORDS and given.get(KEYWORDS[name][0], ...) is not KEYWORDS[name][1]:
                found.add(f"{name} without {KEYWORDS[name][0]}={KEYWORDS[name][1]}")
    return found


def test_nothing_turns_data_into_code():
    found = {(str(path.relative_to(SOURCE)), what) for path in SOURCE.rglob("*.py")
             for what in found_in(path.read_text(encoding="utf-8"))}  # fmt: skip
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "line, what",
    [
        ("import pickle as p", "import pickle"), ("from pickle import loads", "import pickle"),
        ("import torch\ntorch.load(f)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=w)", "torch.load without weights_only=True"),
        ("np.load(f)", "np.load without allow_pickle=False"), ("eval(x)", "eval"), ("yaml.load(f)", "yaml.load"),
        ("do(x, shell=True)", "do"), ("subprocess.run(x)", "subprocess.run"), ("torch.hub.load(f)", "torch.hub.load"),
        ("run('import pickle; pickle.load(f)')", "text pickle.load"), ("import marshal", "import marshal"),
    ],
)  # fmt: skip
def test_what_is_forbidden_is_seen(line, what):
    assert what in found_in(line)


@pytest.mark.parametrize(
    "line", ["torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "yaml.safe_load(f)", "m().eval()",
             'def f():\n    """Not torch.export.load."""', "re.compile(x)", "torch.compile(x)", "json.load(f)"]
)  # fmt: skip
def test_what_is_harmless_is_not(line):
    assert found_in(line) == set()


def test_every_claim_on_security_names_tests_that_are_there():
    page = (SOURCE.parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`tests/(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 12
    for file, test in named:
        assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), (file, test)
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert all("::test_" in row for row in rows)
