"""Makes and measures the networks of the comparison, one trained network at a time.

    PYTHONPATH=src python -m benchmarks.compress.run --network vgg resnet … [--methods NAME …] [--only make|measure]
                                                     [--cache FOLDER] [--quick] [--clock processor]

What was made stays in the cache, and is not made again; what is measured is all that the cache holds of a network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn
from torch.utils.data import TensorDataset

import reconv
from reconv.demo.digits import accuracy

from . import ours, store
from .measure import TARGETS, cost, deployed, latencies, machine, use_processor_time
from .method import Method, Refused, Setting, Subject, said
from .networks import NETWORKS, Network
from .peers import aimet, fasterai, tltorch, torch_pruning
from .recover import recovered
from .train import trained

PEERS: tuple[Method, ...] = (*tltorch.METHODS, *fasterai.METHODS, *torch_pruning.METHODS, *aimet.METHODS)
RESULTS = Path(__file__).with_name("results")
GIVEN, FOLDED = "as trained", "batch norms folded"
ROW = "row.json"
SOME = 1000  # test samples, for the accuracy before recovery


@dataclass(frozen=True)
class Job:
    """One trained network, on its way through all methods."""

    network: Network
    subject: Subject
    test: TensorDataset
    quick: bool

    @property
    def epochs(self) -> int:
        return 1 if self.quick else self.network.epochs

    def folder(self, method: str, setting: Setting) -> Path:
        return self.subject.folder / f"{method}, {said(setting)}".replace(":", "-").replace(" ", "_")

    def accuracy(self, model: nn.Module, samples: int | None = None) -> float:
        """On all test samples, or on the first of them."""
        some = TensorDataset(*(part[:samples] for part in self.test.tensors))
        return round(accuracy(model.eval(), some), 5)


def job_of(name: str, cache: Path, quick: bool) -> Job:
    network = NETWORKS[name]
    model, folder = trained(network, cache), cache / name
    if quick:
        network, folder = replace(network, calibration=128, tested=200), folder / "quick"
    subject = Subject(model, network.example(), network.calibration_data(), folder)
    return Job(network, subject, network.test_data(), quick)


# -- making ------------------------------------------------------------------------------------------------
def make(job: Job, methods: list[str]) -> None:
    """Every method at every setting, unless the cache has it."""
    for method in (*PEERS, Method(ours.NAME, ours_made(job), ours.SETTINGS)):
        if methods and method.name not in methods:
            continue
        for setting in method.settings[:1] if job.quick else method.settings:
            folder = job.folder(method.name, setting)
            if not (folder / ROW).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                row = row_of(job, method, setting, folder)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ROW).write_text(json.dumps(row, indent=1) + "\n")
                print(job.network.name, row, file=sys.stderr, flush=True)


def row_of(job: Job, method: Method, setting: Setting, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method.name, "setting": said(setting)}
    torch.manual_seed(0)
    started = time.process_time()
    try:
        student = method.make(job.subject, setting)
    except Refused as reason:
        return row | {"refused": str(reason)}
    except Exception as error:  # a peer's own
        return row | {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    if method.name != ours.NAME:
        row["accuracy_before_recovery"] = job.accuracy(student, SOME)
        row["seconds_to_make"] = round(time.process_time() - started, 1)
        student = recovered(student, job.subject, job.epochs)
        store.save(student, folder)
    return row | {"accuracy": job.accuracy(student), "seconds": round(time.process_time() - started, 1)}


def ours_made(job: Job) -> Any:
    def made(subject: Subject, setting: Setting) -> nn.Module:
        return ours.rewritten(subject, setting, job.epochs, job.folder(ours.NAME, setting))

    return made


# -- measuring ---------------------------------------------------------------------------------------------
def measure(job: Job) -> dict[str, Any]:
    """All that the cache holds of this network, and the network itself."""
    model, example = job.subject.model, job.subject.example
    right = job.accuracy(model)
    rows = {GIVEN: {"method": GIVEN, "setting": "", "accuracy": right, **cost(model, example)},
            FOLDED: {"method": FOLDED, "setting": "", "accuracy": right, **cost(deployed(model), example)}}  # fmt: skip
    models, plain = {GIVEN: model, FOLDED: deployed(model)}, [FOLDED]
    for folder, row in made_rows(job):
        rows[folder.name] = row
        if "refused" in row:
            continue
        if row["method"] == ours.NAME:
            models[folder.name] = reconv.load(folder, base=model).eval()
            row |= ours.planned(folder)
        else:
            models[folder.name] = deployed(store.load(model, folder))
            plain.append(folder.name)
        row |= cost(models[folder.name], example)
    for target in TARGETS:
        found = latencies(models, plain, example, target, *([0.05] if job.quick else []))
        for name, timing in found.items():
            rows[name].setdefault("latency", {})[target] = timing
    network = job.network
    return {"network": network.name, "title": network.title, "machine": machine(), "tested": len(job.test),
            "calibration": network.calibration, "epochs": job.epochs, "rows": list(rows.values())}  # fmt: skip


def made_rows(job: Job) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(job.subject.folder.glob(f"*/{ROW}")):
        yield file.parent, json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=[*(m.name for m in PEERS), ours.NAME], default=[])
    parser.add_argument("--only", choices=("make", "measure"))
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("reconv")) / "compress")
    parser.add_argument("--quick", action="store_true", help="one setting each, little data: only that it runs")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall",
                        help="processor: for a machine that others use, too")  # fmt: skip
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.clock == "processor":
        use_processor_time()
    for name in given.network:
        job = job_of(name, given.cache.resolve(), given.quick)
        if given.only != "measure":
            make(job, given.methods)
        if given.only != "make":
            told = json.dumps(measure(job), indent=1) + "\n"
            out = job.subject.folder if given.quick else RESULTS
            (out / f"{name}.json").write_text(told)


if __name__ == "__main__":
    main()
