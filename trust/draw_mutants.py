"""mutmut on a sample of its mutants, in the copy that trust/mutants.py makes: writes found.json there.

python trust/draw_mutants.py MUTMUT_FOLDER EACH SEED WORKERS
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Any

# the copy's reconv stands before an installed one; mutmut comes last, as it brings packages that are here too
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.append(sys.argv[1])

import mutmut.__main__ as mutmut  # noqa: E402
from mutmut.runners.harness import PytestRunner  # noqa: E402
from mutmut.state import state  # noqa: E402
from mutmut.utils.file_utils import change_cwd  # noqa: E402

NOT_NOTICED = ("survived", "no tests", "suspicious")
each, seed, workers = map(int, sys.argv[2:])
every, plain = mutmut.collect_source_file_mutation_data, PytestRunner.run_tests
drawn: list[Any] = []
LONGEST = 60.0  # seconds of tests for a mutant
CACHES = tempfile.mkdtemp(dir=Path().resolve())


def some(*, mutant_names: Any) -> Any:
    mutants, files = every(mutant_names=())
    told = sorted(mutants, key=lambda mutant: mutant[1])
    drawn[:] = [len(told), Random(seed).sample(told, min(each, len(told)))]
    return drawn[1], files


def quickest(mutant_names: Any) -> list[str]:
    """For the unchanged code: that all of them pass was seen when it was learnt what they call."""
    times = state().duration_by_test
    return [min(times, key=lambda test: times[test])]


class Only:
    """These tests and no others, of each file the quickest, then of each the second, that take so long together: those
    of quick files are run first. Thousands of names are no arguments for pytest.
    """

    def __init__(self, tests: Iterable[str]) -> None:
        times, total, self.seconds = state().duration_by_test, 0.0, dict[str, float]()
        by_file: dict[str, list[str]] = {}
        for test in sorted(tests, key=lambda test: times[test]):
            by_file.setdefault(test.partition("::")[0], []).append(test)
        for test in filter(None, chain.from_iterable(zip_longest(*by_file.values()))):
            if not self.seconds or total + times[test] <= LONGEST:
                self.seconds[test] = times[test]
                total += times[test]
        long = dict.fromkeys((test.partition("::")[0] for test in self.seconds), 0.0)
        for test, seconds in self.seconds.items():
            long[test.partition("::")[0]] += seconds
        self.files = sorted(long, key=long.__getitem__)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self.seconds]

    def pytest_runtest_setup(self) -> None:
        """What one test measured is not remembered for another: without those between them it might fail by itself."""
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=CACHES)


def run_only(self: Any, *, mutant_name: str | None, tests: Iterable[str]) -> int:
    if not tests:
        return plain(self, mutant_name=mutant_name, tests=tests)
    only = Only(tests)
    with change_cwd("mutants"):
        return int(self.execute_pytest(["-x", "-q", *only.files], plugins=[only]))


mutmut.collect_source_file_mutation_data = some
mutmut.tests_for_mutant_names = quickest
PytestRunner.run_tests = run_only
mutmut._run((), workers)
count, mutants = drawn
found = {name: mutmut.status_by_exit_code[data.exit_code_by_key[name]] for data, name, _ in mutants}
left = {name: mutmut.get_diff_for_mutant(name, path=data.path) for data, name, _ in mutants
        if found[name] in NOT_NOTICED}  # fmt: skip
Path("found.json").write_text(json.dumps({"all": count, "found": found, "left": left}), encoding="utf-8")
