"""Whatever a text or a file holds, reading it succeeds or raises the error that its reader promises: coverage-guided.

    python -m pip install --target /tmp/atheris atheris        # a wheel without dependencies; of no use elsewhere
    PYTHONPATH=/tmp/atheris python trust/parsers.py [--seconds 120] [--seed 0] [--readers NAME ...]

Each reader runs in a process of its own, instrumented by atheris (libFuzzer), which mutates valid examples and keeps
what reaches new code. What was read must come back from its own text or JSON. Inputs that raise anything else are
printed, one for each line of code that raised, and count as failures.

trust/results/parsers.json: a row for each reader: inputs tried, of them accepted, failures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import atheris

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import told

with atheris.instrument_imports(include=["reconv.spec", "reconv.planning.budget", "reconv.planning.plan",
                                         "reconv.planning.wishes", "reconv.planning.considered",
                                         "reconv.explorer.state", "reconv.commands.options", "reconv.rewriting.store",
                                         "reconv.costing.render"]):  # fmt: skip
    from reconv.commands.options import _read_yaml
    from reconv.errors import ConvError
    from reconv.explorer.state import read
    from reconv.planning.budget import Budget
    from reconv.planning.plan import Plan
    from reconv.rewriting.store import CONFIG, PLAN, SUMMARY, read_run
    from reconv.spec import ConvSpec, parse

from cases import BLOCKS, CONVS

EVERY = 500  # inputs to a note of how many there were
FLAGS = ["budget", "data", "epochs", "holdout", "input", "rules", "seed", "sites", "target", "weights"]
Reader = Callable[[bytes], bool]  # whether it was accepted; raises what it must not


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# -- the readers ----------------------------------------------------------------------------------
def spec(data: bytes) -> bool:
    try:
        found = ConvSpec.parse(text_of(data))
    except ConvError:
        return False
    assert ConvSpec.parse(str(found)) == found
    return True


def block(data: bytes) -> bool:
    try:
        found = parse(text_of(data))
    except ConvError:
        return False
    assert parse(str(found)) == found
    return True


def budget(data: bytes) -> bool:
    try:
        found = Budget.of(text_of(data))
    except ConvError:
        return False
    assert Budget.of(found.text) == found
    return True


def plan(data: bytes) -> bool:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        path = Path(folder, PLAN)
        path.write_bytes(json_of(data, PLAN_EXAMPLE))
        try:
            found = Plan.load(path)
        except ConvError:
            return False
    assert Plan.from_dict(json.loads(found.text())).text() == found.text()
    return True


def run_folder(data: bytes) -> bool:
    """One of its three files is changed."""
    which = data[0] % 3 if data else 0
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        for place, (name, example) in enumerate(RUN_EXAMPLE.items()):
            text = json_of(data[1:], example) if place == which else json.dumps(example).encode()
            Path(folder, name).write_bytes(text)
        try:
            read_run(folder)
        except ConvError:
            return False
    return True


def config(data: bytes) -> bool:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        path = Path(folder, "given.yaml")
        path.write_bytes(data)
        try:
            _read_yaml(path, FLAGS)
        except ConvError:
            return False
    return True


def query(data: bytes) -> bool:
    """A query never raises: what is wrong gets a message beside its control."""
    state = read(dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True)))  # as the server reads it
    again = read(dict(parse_qsl(state.query(), keep_blank_values=True)))
    assert state.wrong or again == state
    return not state.wrong


def json_of(data: bytes, example: Any) -> bytes:
    """The bytes themselves, or the example with some of its values exchanged."""
    if data[:1] != b"~":
        return data
    source, copy = atheris.FuzzedDataProvider(data[1:]), json.loads(json.dumps(example))
    for _ in range(source.ConsumeIntInRange(1, 3)):
        places = list(_places(copy))
        holder, key = places[source.ConsumeIntInRange(0, len(places) - 1)]
        holder[key] = _value(source, holder[key])
    return json.dumps(copy).encode()


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _value(source: Any, old: Any) -> Any:
    made: list[Callable[[], Any]] = [
        lambda: None, lambda: [], lambda: {}, lambda: [old], lambda: {"site": old}, lambda: source.ConsumeInt(8),
        lambda: source.ConsumeFloat(), lambda: source.ConsumeUnicodeNoSurrogates(12), lambda: True, lambda: str(old),
        lambda: float("nan"), lambda: -1,
    ]  # fmt: skip
    return made[source.ConsumeIntInRange(0, len(made) - 1)]()


# -- examples -------------------------------------------------------------------------------------
PLAN_EXAMPLE: Any = {
    "format": 1, "model": {"ref": None, "hash": "0f", "sites": {"a.0": "ic3oc8k3x3p1"}}, "budget": "latency=0.5",
    "target": "torch", "layout": "channels_last", "met": True, "reason": None, "latency_ratio": 0.5, "fit": "weights",
    "wishes": {"pin": ["a.*"], "forbid": [{"site": "*", "rule": "bottleneck"}],
               "force": [{"site": "b", "rule": "separable", "block": "ic8oc8k3x3p1g8nb -> ic8oc8k1x1"}]},
    "measured": {"latency_ratio": 0.5, "latency_ms": 1.0, "error": 0.01, "macs": 10, "params": 5, "memory": 7,
                 "layers": 1, "score": None},
    "edits": [{"site": "a.0", "rule": "separable", "block": "ic3oc3k3x3p1g3nb -> ic3oc8k1x1", "error": 0.1,
               "latency_ms": 0.2, "absorbs": ["a.1"], "also": {"n": "norm(48)"}, "whole": False}],
    "refusals": [{"site": "b", "rule": "*", "reason": "it must stay"}],
    "front": [{"latency_ratio": 1, "latency_ms": 2, "error": 0, "macs": 1, "params": 1, "memory": 1}],
    "considered": [],
}  # fmt: skip
_ROW = {"name": "a.0", "kind": "standard", "spec": "ic3oc8k3x3p1", "input_shape": [1, 3, 9, 9],
        "weight_shape": [8, 3, 3, 3], "output_shape": [1, 8, 9, 9], "params": 224, "macs": 17496,
        "receptive_field": {"value": [3, 3], "state": "complete", "spread": None}, "activation_bytes": 2592,
        "latency_ms": {"value": None, "state": "unavailable", "spread": None}}  # fmt: skip
_FIGURE = {"value": 1, "state": "complete", "spread": None}
_TOTAL = {"params": 224, "macs": _FIGURE, "activation_bytes": _FIGURE, "latency_ms": _FIGURE}
_SUMMARY = {"target": None, "rows": [_ROW], "total": _TOTAL, "network": _TOTAL}
RUN_EXAMPLE: dict[str, Any] = {
    CONFIG: {"format": 1, "versions": {"reconv": "0.1.0"}, "model": {"ref": "timm:resnet18", "hash": "0f"}, "seed": 0},
    PLAN: PLAN_EXAMPLE, SUMMARY: {"format": 1, "before": _SUMMARY, "after": None, "error": 0.1},
}  # fmt: skip
TEXTS = [str(case.block) for case in (*CONVS.values(), *BLOCKS.values())]
DEEP = [b"(" * 400 + b"ic1oc1k1", b"[" * 3000, b'{"a":' * 3000, b"ic" + b"9" * 5000 + b"oc1k1", b"1" * 5000]


@dataclass(frozen=True)
class Read:
    what: str
    run: Reader
    seeds: list[bytes]
    words: list[str] = field(default_factory=list)


_CONTROLS = ("kind", "dims", "ic", "oc", "k", "s", "p", "d", "g", "n", "og", "r", "small", "op", "offsets", "numbers")
READERS = {
    "spec": Read("texts read as a ConvSpec", spec, [t.encode() for t in TEXTS],
                 ["ic", "oc", "k3x3", "s2", "p1:2", "d2", "g4", "nb", "t", "op1", "mreflect", "mcircular"]),
    "block": Read("texts read as a block", block, [t.encode() for t in TEXTS],
                  [" -> ", " | ", " + ", "(", ")", "shuffle(", "se(", "deform(", "og1", "mask", "permute(", "identity",
                   "pixel_shuffle(", "crop0:1", "bn", "relu"]),
    "budget": Read("texts read as a budget", budget,
                   [b"latency=0.4,params=2M", b"macs=1.2G", b"memory=64MiB,error=1e-2", b"latency=300us"],
                   ["latency=", "macs=", "params=", "memory=", "error=", "ms", "us", "KiB", "GB", "e+3", "."]),
    "plan": Read("files read as a plan", plan,
                 [json.dumps(PLAN_EXAMPLE).encode(), *(b"~" + bytes([i] * 24) for i in range(40))],
                 ['"edits"', '"wishes"', "null", "NaN", "1e999", "[]", "{}"]),
    "run": Read("run folders with a changed file", run_folder,
                [*(bytes([i]) + b"~" + bytes([i, 7 * i % 256] * 12) for i in range(60)),
                 b"\x02" + json.dumps(RUN_EXAMPLE[SUMMARY]).encode()],
                ['"format"', "null", "NaN", "[]", "{}", "1e999"]),
    "config": Read("YAML files read as settings", config,
                   [b"budget: latency=0.5\nseed: 3\n", b"budget: {latency: 0.5, macs: 1G}\n",
                    b"rules: [exact, smaller]\ninput: [1x3x9x9]\n", b"a: &x [1]\nb: *x\n"],
                   ["budget: ", "rules: ", "seed: ", "!!python/object:", "&a", "*a", "- ", "{", "2026-01-01"]),
    "query": Read("queries of the explorer's page", query,
                  [f"kind={kind}&dims={dims}&ic=4&oc=8&k=3&s=2&g=2&n=7".encode() for kind in
                   ("standard", "transposed", "deformable", "depthwise", "grouped") for dims in (1, 2, 3)],
                  [f"{name}=" for name in _CONTROLS] + ["&", "%00", "circle", "rotate", "standard"]),
}  # fmt: skip


# -- one process a reader -------------------------------------------------------------------------
def fuzz(name: str, seconds: int, seed: int, notes: Path) -> None:
    reader, counts, found = READERS[name], {"tried": 0, "accepted": 0}, dict[str, str]()

    def note() -> None:
        notes.with_suffix(".part").write_text(json.dumps({**counts, "found": found}))
        notes.with_suffix(".part").rename(notes)

    def one(data: bytes) -> None:
        counts["tried"] += 1
        try:
            counts["accepted"] += reader.run(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            if place not in found:
                found[place] = f"{str(error)[:200]} for {data[:200]!r}"
                note()
        if counts["tried"] % EVERY == 0:
            note()

    corpus = notes.parent / f"{name}-corpus"
    corpus.mkdir()
    for i, text in enumerate([*reader.seeds, *DEEP]):
        (corpus / str(i)).write_bytes(text)
    words = notes.parent / f"{name}.dict"
    coded = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in reader.words)
    words.write_text("".join(f'"{word}"\n' for word in coded))
    atheris.Setup(["parsers", f"-max_total_time={seconds}", f"-seed={seed + 1}", f"-dict={words}", "-max_len=6000",
                   "-rss_limit_mb=4096", "-timeout=20", "-verbosity=0", str(corpus)], one)  # fmt: skip
    atheris.Fuzz()


SCRATCH = tempfile.gettempdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=list(READERS))
    given = parser.parse_args()
    rows = {row["reader"]: row for row in told.held("parsers").get("rows", [])}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.readers:
            notes = Path(scratch, f"{name}.json")
            process = multiprocessing.get_context("fork").Process(
                target=fuzz, args=(name, given.seconds, given.seed, notes)
            )
            process.start()
            process.join()
            said = json.loads(notes.read_text())
            found = said["found"] | ({"the process": f"ended with {process.exitcode}"} if process.exitcode else {})
            for place, reason in found.items():
                print(f"{name}: {place}: {reason}", flush=True)
            rows[name] = {"what": READERS[name].what, "tried": said["tried"], "failures": len(found),
                          "reader": name, "accepted": said["accepted"], "seconds": given.seconds}  # fmt: skip
            print(f"{name}: {said['tried']} inputs, {said['accepted']} accepted, {len(found)} failures", flush=True)
            told.keep("parsers", list(rows.values()), seed=given.seed)


if __name__ == "__main__":
    main()
