"""From one plain network to the field's by rules: costs, latency and accuracy of each step after the same training.

    python benchmarks/ladder.py [STEP ...] [--seeds 0-2] [-o FILE.json]     # without -o: prints the table alone
    python benchmarks/ladder.py --time benchmarks/results/ladder.json      # measures its latencies again, in quiet
    python benchmarks/ladder.py --page benchmarks/results/ladder.json      # writes docs/ladder.md

The plain network has five convolutions of 5×5 with batch norms and is trained on crops of photos (14 photos, 32×32; the
left of each photo to train on, the right to test on; those of scikit-image). Each step applies its rules to every layer
but the first that they serve, fitted on samples, and is then trained for as long as the plain network is once more, on
the same batches. A smaller rule gives each layer the proposal with the most multiply-accumulates below half the
layer's; a stronger one its first.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compress.data import TEST, TRAIN, crops
from marks import fill
from stronger import apart, edit, folded, seeds, spread
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import reconv
from reconv.demo.digits import accuracy
from reconv.ruleset import Proposal, rules_named
from reconv.spec import macs
from reconv.surgery import find_sites
from reconv.surgery.clone import clone
from reconv.surgery.sites import Site
from reconv.targets import interleave

PAGE = Path(__file__).parents[1] / "docs" / "ladder.md"
SAMPLES, TESTED, SHOWN, BATCH, RATE, DECAY = 2000, 2002, 256, 50, 0.004, 0.02
BEFORE, AFTER = 10, 4  # epochs
ROUNDS, BURST = 80, 3


@dataclass(frozen=True)
class Step:
    """Rules, applied one after the other, and the network that is known for the result."""

    rules: tuple[str, ...]
    known: str
    source: str


STEPS = {
    "plain": Step((), "", ""),
    "stacked": Step(("stacked",), "VGG", "Simonyan, Zisserman 2014, arXiv 1409.1556"),
    "bottleneck, multi_size": Step(("bottleneck", "multi_size"), "GoogLeNet", "Szegedy et al. 2014, arXiv 1409.4842"),
    "asymmetric": Step(("asymmetric",), "Inception-v3", "Szegedy et al. 2015, arXiv 1512.00567"),
    "separable": Step(("separable",), "Xception, MobileNet",
                      "Chollet 2016, arXiv 1610.02357; Howard et al. 2017, arXiv 1704.04861"),
    "shuffled_group": Step(("shuffled_group",), "ShuffleNet", "Zhang et al. 2017, arXiv 1707.01083"),
    "squeeze_excite": Step(("squeeze_excite",), "SENet", "Hu et al. 2017, arXiv 1709.01507"),
    "skip": Step(("skip",), "ResNet", "He et al. 2015, arXiv 1512.03385"),
    "dense": Step(("dense",), "DenseNet", "Huang et al. 2016, arXiv 1608.06993"),
    "atrous": Step(("atrous",), "DeepLab", "Chen et al. 2016, arXiv 1606.00915"),
    "deform": Step(("deform",), "Deformable ConvNets", "Dai et al. 2017, arXiv 1703.06211"),
    "widen_kernel": Step(("widen_kernel",), "RepLKNet", "Ding et al. 2022, arXiv 2203.06717"),
}  # fmt: skip


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(before, after, 5, stride, 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 14))


def drawn(side: int, count: int, seed: int) -> TensorDataset:
    return crops(side, count, torch.Generator().manual_seed(2 * seed + side))


# -- rewriting ---------------------------------------------------------------------------------------------
def rewritten(model: nn.Module, step: Step, images: Tensor) -> tuple[nn.Module, list[dict[str, str]]]:
    """The network after a step's rules, and what they made of which layer."""
    made = []
    for name in step.rules:
        (rule,) = rules_named(name)
        sites = [site for site in find_sites(model, images[:1]).sites if site.name not in ("", "0")]
        edits = [edit(site.name, chosen(site, list(rule.propose(site)))) for site in sites if rule.refuse(site) is None]
        if name == "atrous":
            edits = edits[-1:]  # one stride: each that goes makes all that follows four times as dear
        model = reconv.apply(model, reconv.Plan(edits=tuple(edits)), images[:1], images, rules=(rule,))
        made += [{"site": e.site, "rule": name, "block": str(e.block)} for e in edits]
    return model, made


def chosen(site: Site, offered: Sequence[Proposal]) -> Proposal:
    """Of several sizes the largest below half the layer's cost; of a rule that adds its first."""
    shape = site.calls[0].input_shape
    cost = {proposal: macs(proposal.block, shape) for proposal in offered}
    fitting = [p for p in offered if cost[p] <= macs(site.block, shape) / 2]
    return max(fitting, key=lambda p: cost[p]) if fitting else offered[0]


# -- training ----------------------------------------------------------------------------------------------
def train(model: nn.Module, epochs: int, seed: int) -> nn.Module:
    """Trains in place, on samples drawn anew in each epoch."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * math.ceil(SAMPLES / BATCH))
    model.train()
    for epoch in range(epochs):
        images, labels = drawn(TRAIN, SAMPLES, 1000 * (seed + 1) + epoch).tensors
        for batch in torch.randperm(SAMPLES).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def climbed(names: Sequence[str], seed: int, test: TensorDataset) -> list[dict[str, Any]]:
    """A row for each step, all from the same trained network."""
    torch.manual_seed(seed)
    start = train(network(), BEFORE, seed)
    images = drawn(TRAIN, SHOWN, seed).tensors[0]
    found = []
    for name in names:
        model, made = rewritten(clone(start), STEPS[name], images)
        row = {"step": name, "seed": seed, "made": made, "at_start": accuracy(model, test),
               "apart": apart(start, model, images)}  # fmt: skip
        train(model, AFTER, seed + 100)
        cost = reconv.summary(folded(model, images[:1]), images[:1]).network
        found.append({**row, "accuracy": accuracy(model, test), "params": cost.params, "macs": cost.macs})
        print(seed, name, *(f"{100 * found[-1][k]:.2f}" for k in ("at_start", "accuracy")), flush=True)
    return found


def timed(names: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each step's network, in turn. Training changes none of them."""
    torch.manual_seed(0)
    start, images = network().eval(), drawn(TRAIN, SHOWN, 0).tensors[0]
    ready = [folded(rewritten(clone(start), STEPS[name], images)[0], images[:1]) for name in names]
    with torch.inference_mode():
        timings = interleave([lambda n=n: n(images[:1]) for n in ready], 300, ROUNDS, ROUNDS, burst=BURST)
    return {name: timing.median_ms for name, timing in zip(names, timings, strict=True)}


# -- the table ---------------------------------------------------------------------------------------------
HEADS = ("rules", "as in", "parameters", "MACs, M", "latency over plain's", "accuracy as rewritten, %",
         "accuracy after training, %", "points over plain")  # fmt: skip


def table(rows: Sequence[dict[str, Any]], latency_ms: Mapping[str, float]) -> str:
    by_step: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    plain = by_step["plain"]
    lines = [f"| {' | '.join(HEADS)} |", "|" + " --- |" * len(HEADS)]
    for name, each in by_step.items():
        step = STEPS[name]
        gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(each, plain, strict=True)]
        cells = (name, f"{step.known} ({step.source})" if step.known else "", f"{each[0]['params']:,}",
                 f"{each[0]['macs'] / 1e6:.1f}", f"{latency_ms[name] / latency_ms['plain']:.2f}",
                 spread([100 * row["at_start"] for row in each]),
                 spread([100 * row["accuracy"] for row in each]),
                 "" if name == "plain" else spread(gains, "+"))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def layers(rows: Sequence[dict[str, Any]]) -> str:
    """What became of the third convolution in each step."""
    first = {row["step"]: row["made"] for row in rows if row["seed"] == rows[0]["seed"]}
    lines = ["The third layer, `ic32oc32k5x5p2nb`, becomes", ""]  # a list: a block's text may hold what parts cells
    for name, made in first.items():
        of = [m["block"] for m in made if m["site"].split(".")[0] == "6"]
        lines += [f"- {name}: {'; then, within: '.join(f'`{text}`' for text in of) or 'what it was'}"] * bool(made)
    return "\n".join(lines) + "\n"


def write(file: Path) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    fill(
        PAGE,
        {
            "machine": f"{held['machine']}\n",
            "table": table(held["rows"], held["latency_ms"]),
            "layers": layers(held["rows"]),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("steps", nargs="*", default=list(STEPS), help="plain is always among them")
    parser.add_argument("--seeds", type=seeds, default=seeds("0-2"), help="FIRST-LAST")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--page", type=Path, help="a result that was written before: only writes the page")
    parser.add_argument("--time", type=Path, help="a result that was written before: only measures latency again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.page:
        write(given.page)
        return
    if given.time:
        held = json.loads(given.time.read_text(encoding="utf-8"))
        save(given.time, held["rows"])
        return
    names = [name for name in STEPS if name == "plain" or name in given.steps]
    test = drawn(TEST, TESTED, 0)
    rows = [row for seed in given.seeds for row in climbed(names, seed, test)]
    if given.out:
        save(given.out, rows)
    else:
        print(table(rows, timed(names)))


def save(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    latency_ms = timed(list(dict.fromkeys(row["step"] for row in rows)))
    print(table(rows, latency_ms))
    machine = f"torch {torch.__version__}, 1 thread, batch 1, {torch.backends.cpu.get_cpu_capability()}."
    held = {"machine": machine, "latency_ms": latency_ms, "rows": rows}
    file.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
