"""Five bugs that must be found: each is planted in a copy of the source tree, and the fuzzing of CI must fail there.

    python trust/planted.py [--bugs NAME ...]

The copy lies in a folder for the time of the run; tests/test_fuzzed.py runs in it under the Hypothesis profile `ci`,
with the examples that CI has. A bug in a kernel means that the kernels are built there first, which takes minutes.
Without a bug it must pass.

trust/results/planted.json: a row for each bug, and one for none: what failed first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import told

from reconv.ops.native import _file

ROOT = Path(__file__).parents[1]
# an installed reconv must not stand before the copy
HERE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, "src")
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "tests/test_fuzzed.py"]))
"""


@dataclass(frozen=True)
class Bug:
    """`old` stands once in the file, and becomes `new`."""

    what: str
    file: str
    old: str
    new: str


BUGS = {
    "tail": Bug("a wrong tail: a kernel leaves out the last channel of an unfilled vector", "csrc/dense.cpp",
                "const std::int64_t left = smaller(lane.size(), plan.outputs - lane.begin);",
                "const std::int64_t left = smaller(lane.size(), plan.outputs - lane.begin - (plan.outputs % 4 != 0));"),
    "stride": Bug("swapped strides: a kernel is told those of the axes in the other order",
                  "src/reconv/ops/families.py", "zip(problem.stride, problem.dilation,",
                  "zip(problem.stride[::-1], problem.dilation,"),
    "bias": Bug("a lost bias: that of a convolution whose batch norm is folded",
                "src/reconv/ruleset/fold_batch_norm.py", 'result["bias"] = float64(tensors["bias"]) * scale',
                'result["bias"] = float64(tensors["bias"]) * 0'),
    "permutation": Bug("a permutation not undone: the outputs of shuffled groups stay in the groups' order",
                       "src/reconv/ruleset/shuffled_group.py", '.index"] = outputs.argsort()', '.index"] = outputs'),
    "padding": Bug("a wrong padding mode: reflect is computed as replicate", "src/reconv/layers/conv.py",
                   'mode = "constant" if self.padding_mode == "zeros" else self.padding_mode',
                   'mode = {"zeros": "constant", "reflect": "replicate"}.get(self.padding_mode, self.padding_mode)'),
}  # fmt: skip


def copied(folder: Path) -> None:
    """What the tests need."""
    for name in ("src", "tests", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)


def plant(folder: Path, bug: Bug) -> None:
    path = folder / bug.file
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise ValueError(f"planted: {bug.file} must have it once: {bug.old}")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def built(folder: Path) -> str:
    """The library of the kernels, built from the copy; without flags for tests, as in a wheel."""
    bin_ = Path(sys.executable).parent
    make = [str(bin_ / "cmake"), "-S", str(folder), "-B", str(folder / "build"), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={bin_ / 'ninja'}"]  # fmt: skip
    for command in (make, [make[0], "--build", str(folder / "build"), "--target", "_kernels"]):
        subprocess.run(command, check=True, capture_output=True)
    return str(folder / "build" / "_kernels.so")


def failed(folder: Path, kernels: str) -> tuple[int, str]:
    """The exit code of the fuzzing, and what it said first."""
    settings = {"RECONV_KERNELS": kernels, "HYPOTHESIS_PROFILE": "ci", "CI": "1", "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(folder / "src")}  # fmt: skip
    run = subprocess.run([sys.executable, "-c", HERE], cwd=folder, env=os.environ | settings, capture_output=True,
                         text=True)  # fmt: skip
    said = re.search(r"^FAILED tests/(\S+)", run.stdout, re.MULTILINE)
    return run.returncode, said[1] if said else run.stdout.strip().split("\n")[-1]


def tried(bug: Bug | None) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        kernels = _file() or "none"
        if bug is not None:
            plant(folder, bug)
            kernels = built(folder) if bug.file.startswith("csrc") else kernels
        return failed(folder, kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bugs", nargs="*", default=["none", *BUGS], choices=["none", *BUGS])
    given = parser.parse_args()
    rows = {row["bug"]: row for row in told.held("planted").get("rows", [])}
    for name in given.bugs:
        bug, began = BUGS.get(name), time.monotonic()
        code, said = tried(bug)
        right = code == (0 if bug is None else 1)  # other codes: nothing ran
        rows[name] = {
            "what": bug.what if bug else "no bug: the fuzzing passes", "tried": 1, "failures": int(not right),
            "bug": name, "found by": said if bug else "", "seconds": round(time.monotonic() - began),
        }  # fmt: skip
        print(f"{name}: exit {code}, {said}", flush=True)
        told.keep("planted", [rows[name] for name in ("none", *BUGS) if name in rows])


if __name__ == "__main__":
    main()
