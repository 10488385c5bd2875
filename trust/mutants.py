"""Small errors are put into the code, one at a time, and the tests must notice: mutmut, on a sample of its mutants.

    python -m pip install --target /tmp/mutmut --no-deps mutmut==3.8.1 libcst setproctitle coverage textual
    python trust/mutants.py /tmp/mutmut [--each 200] [--seed 0] [--packages spec ruleset planning]

For each package mutmut makes all its mutants in a copy (a `+` becomes a `-`, a default another one, a string another
string), and learns which tests call which function. Of the mutants that are drawn, each is then tried by the tests that
call its function, some of each file, until one fails or they have taken a minute. `TESTS` are those of the package:
other tests, slower ones, those in processes of their own, and those of torch.compile, which cannot see through mutmut's
switches, might find more. What only takes an assertion away, `strict=` of a zip, is left out of the count; nothing else
is held to be of equal meaning.

trust/results/mutants.json: a row a package: mutants tried, those that no test noticed as `failures`, and their names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import told

from reconv.ops.native import _file

ROOT = Path(__file__).parents[1]
TESTS = {
    "spec": "spec kinds kinds_laws kinds_refused laws layers receptive summary build names onnx_block features memory "
            "drawing draw",
    "ruleset": "rules rules_exact rules_smaller rules_stronger rules_refused rules_random rule_table norms regions "
               "regions_rules regions_planned dead_channels channels moments responses gathering following subpixel "
               "atrous sequence plugins offers",
    "planning": "planning planner measured budget plan_files search probe wishes certain stages bounds made_for "
                "remembered additions compress regions_planned unable gathering subpixel",
}  # fmt: skip
SETTINGS = """[mutmut]
source_paths=src/
only_mutate=src/reconv/{package}/*
also_copy=
    tests
    docs
    benchmarks
    examples
    trust
    README.md
pytest_add_cli_args_test_selection=
    {tests}
pytest_add_cli_args=
    -k
    not compile and not export
process_isolation=forkserver
timeout_multiplier=4
timeout_constant=20
"""


def copied(folder: Path) -> None:
    """What git knows of, as it lies here; and the native libraries, which lie where reconv was installed."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    subprocess.run(["cp", "--parents", "-t", str(folder), *filter(None, files.split("\0"))], cwd=ROOT, check=True)
    for name in ("_kernels.so", "_calls.abi3.so"):
        (folder / "src/reconv" / name).symlink_to(Path(_file() or "").parent / name)


def only_strict(diff: str) -> bool:
    """Whether nothing but `strict=` changes."""
    sides = ([line[1:] for line in diff.splitlines() if line[:1] == sign and line[:3] != 3 * sign] for sign in "-+")
    before, after = (re.sub(r"strict=\w+|[\s,]", "", "".join(side)) for side in sides)
    return before == after


def tried(package: str, mutmut: Path, each: int, seed: int, workers: int) -> dict[str, Any]:
    """The row of a package, tried in a copy."""
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        copied(folder)
        tests = "\n    ".join(f"tests/test_{name}.py" for name in TESTS[package].split())
        (folder / "setup.cfg").write_text(SETTINGS.format(package=package, tests=tests))
        driver = ["trust/draw_mutants.py", mutmut.resolve(), each, seed, workers]
        surroundings = os.environ | {"OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "first"}
        subprocess.run([sys.executable, *map(str, driver)], cwd=folder, env=surroundings,
                       check=True)  # fmt: skip
        return row(package, json.loads((folder / "found.json").read_text()), seed)


def row(package: str, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """What came out, without what is left out; the survivors are shown."""
    statuses = list(data["found"].values())
    same = [name for name, diff in data["left"].items() if only_strict(diff)]
    survivors = {name: diff for name, diff in data["left"].items() if name not in same}
    for name, diff in survivors.items():
        print(f"{data['found'][name]}: {name}\n{diff}", flush=True)
    return {"what": f"small errors in {package}/, of the {data['all']:,} that mutmut makes; failures: not noticed",
            "tried": len(statuses) - len(same), "failures": len(survivors), "package": package, "seed": seed,
            "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
            "survivors": sorted(survivors), "left_out": sorted(same)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mutmut", type=Path, help="the folder where it was installed")
    parser.add_argument("--each", type=int, default=200, help="mutants of a package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--packages", nargs="+", choices=TESTS, default=list(TESTS), metavar="NAME")
    given = parser.parse_args()
    rows = {row["package"]: row for row in told.held("mutants").get("rows", [])}
    for package in given.packages:
        rows[package] = tried(package, given.mutmut, given.each, given.seed, given.workers)
        told.keep("mutants", [rows[name] for name in TESTS if name in rows])
        print(f"{package}: {rows[package]['statuses']}", flush=True)


if __name__ == "__main__":
    main()
