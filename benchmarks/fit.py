"""What fitting on real responses wins over fitting the weights alone, rule by rule, before any recovery.

    python benchmarks/fit.py [--size 0.3] [--rules bottleneck,separable] [--held 1000]

The demo's trained digit network. For each rule, on every convolution that it serves at once: of its proposals the one
whose MACs are nearest to `size` of the site's. Both fits give the same blocks. The responses are those to 128 training
images; error (‖student − teacher‖ / ‖teacher‖ of the outputs) and accuracy are on held-out images. "norms":
with batch norms re-estimated on the same images, as `apply` does; "as fitted": without. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import time

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
from reconv.surgery.norms import reestimate

SAMPLES = 128


def edits_of(rule: Rule, sites: list[Site], size: float) -> list[Edit]:
    """The proposal of that size at each site that the rule serves."""
    edits = []
    for site in sites:
        offers = [] if rule.refuse(site) else list(rule.propose(site))
        if offers:
            whole = macs(site.block, site.input_shape)
            best = min(offers, key=lambda p, w=whole, s=site: abs(macs(p.block, s.input_shape) / w - size))
            edits.append(Edit(site.name, rule.name, best.block, absorbs=best.absorbs))
    return edits


def judged(student: nn.Module, probe: Probe, labels: Tensor) -> str:
    """Output error and accuracy, of one pass."""
    with torch.inference_mode():
        answers = [student.eval()(*batch.inputs) for batch in probe.batches]
    right = (torch.cat(answers).argmax(1) == labels).float().mean()
    return f"{probe.moved(answers, probe.outputs):.3f}, {100 * float(right):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=float, default=0.3)
    parser.add_argument("--rules", default="smaller")
    parser.add_argument("--held", type=int, default=1000)
    given = parser.parse_args()
    train, held_out = digits()
    model = digits_vgg()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    batches = [Batch((x,)) for x in train.tensors[0][order].split(64)]
    images, labels = (t[torch.randperm(1000, generator=torch.Generator().manual_seed(1))[: given.held]]
                      for t in held_out.tensors)  # fmt: skip
    probe = Probe(model, [Batch((x,)) for x in images.split(100)])
    sites = list(find_sites(model, train.tensors[0][:1]).sites)
    whole = sum(macs(site.block, site.input_shape) for site in sites)
    print(f"Network as given: {judged(model, probe, labels)}. Cells: output error, accuracy.\n")
    print("| rule | sites | MACs of all | weights, as fitted | responses, as fitted | weights, norms "
          "| responses, norms | s |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for rule in rules_named(*given.rules.split(",")):
        edits = edits_of(rule, sites, given.size)
        if not edits:
            continue
        changed = {e.site: e.block for e in edits}
        cost = sum(macs(changed.get(site.name, site.block), site.input_shape) for site in sites)
        cells, seconds = [], 0.0
        for fit in (Fit(), Fit(lessons=Lessons(model, batches))):
            started = time.process_time()
            student, _ = apply_edits(clone(model), {site.name: site for site in sites}, edits, fit)
            seconds = time.process_time() - started - seconds
            cells.append(judged(student, probe, labels))
            reestimate(student, batches)
            cells.append(judged(student, probe, labels))
        row = (rule.name, len(edits), f"{cost / whole:.2f}", cells[0], cells[2], cells[1], cells[3], f"{seconds:.0f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
