"""Random calls and random networks at scale: the properties of tests/test_fuzzed.py, tried until they fail.

    python trust/fuzz.py [--ops N] [--rules N] [--networks N] [--seconds S] [--seed FIRST] [--again] [--merge FILE ...]

Each seed is one case: a call of an op or a rule (tests/fuzzed.py), or a network that goes through the whole of reconv
(tests/fuzzed_networks.py). What the file has of the same versions is added to, so that several sessions, each with
seeds of its own, make one table. Seeds that were tried are passed over, those that failed can be tried `--again`.
RECONV_ISA=avx2 or baseline tries the kernels of another instruction set, in rows of their own.

Cases run in a child process, so that one that ends the process is a failure as well.

trust/results/fuzz.json: `seeds` that were tried, `failed` seeds with their reasons, and a row for each kind of case:
tried, failures, comparisons, and how often each thing was compared.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}  # threads that spin keep each other from working

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import fuzzed
import fuzzed_folds
import fuzzed_networks
import fuzzed_promises
import told

from reconv.ops.native import native_isa

CHUNK = {"ops": 2000, "rules": 500, "networks": 50}  # cases a process
PART = {"ops": 50, "rules": 10, "networks": 5}  # cases that are told together
MINUTES = 30  # without an answer, the one that is tried has failed
EVERY = 100  # networks: how many to an export
SAID = {
    "call": "random convolutions and transposed convolutions by the functional entrances and their gradients",
    "kernels": "random convolutions by every kernel that serves them, forward and both gradients, against float64",
    "separable": "random separable convolutions, by the entrance and by the native kernel, against float64",
    "deform": "random deformable convolutions, all gradients, against float64",
    "layer": "random blocks as layers, against the reference in NumPy",
    "mistake": "random wrong calls: an error of PyTorch's type, or PyTorch's result",
    "rule": "random convolutions under every rule: refused, or replaced by what is as near as the rule says",
    "network": "random networks through summary, plan, apply, save and load",
}
Tried = tuple[str, int, str | None, Counter[str]]  # kind of case, seed, why it failed, what was compared


def op_case(seed: int) -> tuple[str, Callable[[], Counter[str]]]:
    call = fuzzed.drawn(Random(seed))
    return call.kind, lambda: fuzzed_folds.check(call)


def network_case(seed: int) -> tuple[str, Callable[[], Counter[str]]]:
    return "network", lambda: fuzzed_promises.check(fuzzed_networks.drawn(Random(seed)), exports=seed % EVERY == 0)


def rule_case(seed: int) -> tuple[str, Callable[[], Counter[str]]]:
    call = fuzzed.drawn(Random(seed), "rule")
    return call.kind, lambda: fuzzed_folds.check(call)


CASES = {"ops": op_case, "rules": rule_case, "networks": network_case}


# -- in a child process ---------------------------------------------------------------------------
def work(what: str, seeds: list[int], at: Any, channel: Any) -> None:
    """Tries the seeds; `at` holds the place of the one that is tried."""
    parent = os.getppid()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: list[Tried] = []
    with fuzzed_folds.every_way(), fuzzed_promises.nothing_remembered(), tempfile.TemporaryDirectory() as cache:
        os.environ["RECONV_CACHE"] = cache
        for place, seed in enumerate(seeds):
            if os.getppid() != parent:  # it was stopped
                return
            at.value = place
            found.append(one(what, seed))
            if len(found) == PART[what] or place + 1 == len(seeds):
                channel.send(found)
                found = []
    channel.close()


def one(what: str, seed: int) -> Tried:
    kind, run = CASES[what](seed)
    try:
        return kind, seed, None, run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:1500]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return kind, seed, f"{type(error).__name__}: {said} ({at})", Counter()


def tried(what: str, seeds: list[int]) -> Iterator[list[Tried]]:
    """What came out for the seeds, also where one ended its process."""
    fork = multiprocessing.get_context("fork")
    while seeds:
        mine, theirs = fork.Pipe(duplex=False)
        at = fork.Value("q", 0)
        process = fork.Process(target=work, args=(what, seeds, at, theirs))
        process.start()
        theirs.close()
        done: set[int] = set()
        late = ""
        try:
            while True:
                if not mine.poll(MINUTES * 60):
                    late = f"no answer in {MINUTES} minutes"
                    process.kill()
                part = mine.recv()
                done |= {seed for _, seed, _, _ in part}
                yield part
        except EOFError:
            process.join()
        if process.exitcode:
            seed = seeds[at.value]
            reason = late or f"the process ended with {process.exitcode}"
            yield [(CASES[what](seed)[0], seed, reason, Counter())]
            done.add(seed)
        seeds = [seed for seed in seeds if seed not in done]


# -- the file -------------------------------------------------------------------------------------
class Table:
    """What trust/results/fuzz.json says, and what is added to it."""

    def __init__(self) -> None:
        data = told.held("fuzz")
        self.seeds: dict[str, list[list[int]]] = data.get("seeds", {})
        self.failed: dict[str, dict[str, str]] = data.get("failed", {})
        self.rows: dict[tuple[str, str], dict[str, Any]] = {(r["kind"], r["isa"]): r for r in data.get("rows", [])}
        self.isa = native_isa() or "none"

    def new(self, what: str, first: int, count: int) -> list[int]:
        known = {s for low, high in self.seeds.get(f"{what} {self.isa}", []) for s in range(low, high)}
        return [seed for seed in range(first, first + count) if seed not in known]

    def again(self, what: str) -> list[int]:
        return [int(seed) for seed in self.failed.get(f"{what} {self.isa}", {})]

    def add(self, what: str, part: list[Tried]) -> None:
        key = f"{what} {self.isa}"
        failed = self.failed.setdefault(key, {})
        for kind, seed, reason, compared in part:
            start = {"what": SAID[kind], "tried": 0, "failures": 0, "kind": kind, "isa": self.isa, "compared": {}}
            row = self.rows.setdefault((kind, self.isa), start)
            before = failed.pop(str(seed), None)
            row["tried"] += before is None
            row["failures"] += (reason is not None) - (before is not None)
            if reason is not None:
                failed[str(seed)] = reason
            row["compared"] = dict(Counter(row["compared"]) + compared)
        every = {s for low, high in self.seeds.get(key, []) for s in range(low, high)} | {
            seed for _, seed, _, _ in part
        }
        self.seeds[key] = spans(every)

    def merge(self, path: Path) -> None:
        """Adds what another run of the same versions found, of seeds that were not tried here."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["versions"] != told.versions():
            raise ValueError(f"fuzz: {path} must be of {told.versions()}, not {data['versions']}.")
        for key, ranges in data["seeds"].items():
            mine, theirs = ({s for low, high in r for s in range(low, high)} for r in (self.seeds.get(key, []), ranges))
            if mine & theirs:
                raise ValueError(f"fuzz: {path} must have other seeds of {key}; {len(mine & theirs)} are the same.")
            self.seeds[key] = spans(mine | theirs)
            self.failed.setdefault(key, {}).update(data["failed"].get(key, {}))
        for row in data["rows"]:
            known = self.rows.setdefault((row["kind"], row["isa"]), {**row, "tried": 0, "failures": 0, "compared": {}})
            known["tried"] += row["tried"]
            known["failures"] += row["failures"]
            known["compared"] = dict(Counter(known["compared"]) + Counter(row["compared"]))

    def keep(self) -> None:
        rows = [row | {"compared": dict(sorted(row["compared"].items()))} for row in self.rows.values()]
        rows = [row | {"comparisons": sum(row["compared"].values())} for row in rows]
        failed = {key: reasons for key, reasons in self.failed.items() if reasons}
        told.keep("fuzz", rows, seeds=self.seeds, failed=failed)


def spans(numbers: set[int]) -> list[list[int]]:
    """The numbers as ranges, the end of each excluded."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=0)
    parser.add_argument("--rules", type=int, default=0)
    parser.add_argument("--networks", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="first those that failed")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results of other runs, added first")
    given = parser.parse_args()
    table, end = Table(), time.monotonic() + given.seconds
    for path in given.merge:
        table.merge(path)
    for what in CASES:
        seeds = table.new(what, given.seed, getattr(given, what))
        seeds = (table.again(what) if given.again else []) + seeds
        began, count, kept = time.monotonic(), 0, time.monotonic()
        for start in range(0, len(seeds), CHUNK[what]):
            if time.monotonic() > end:
                break
            for part in tried(what, seeds[start : start + CHUNK[what]]):
                table.add(what, part)
                count += len(part)
                for kind, seed, reason, _ in part:
                    if reason:
                        print(f"{kind} {seed}: {reason}", flush=True)
                if time.monotonic() > kept + 20:
                    table.keep()
                    kept = time.monotonic()
                    print(f"{what}: {count} of {len(seeds)}, {count / (kept - began):.0f} a second", flush=True)
        table.keep()


if __name__ == "__main__":
    main()
