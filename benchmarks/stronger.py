"""Stronger rules in training: a small network, plain and with a rule applied at its start, on held-out digits.

    python benchmarks/stronger.py [RULE ...] [--network NAME ...] [--seeds 0-4] [--lr LR] [--quick] [-o FILE.json]

Two small networks of three convolutions, on 3,000 digits of MNIST at 14×14, shaken; each image has a contrast of its
own, and half of them are negatives:

from scratch:  without batch norms, untrained. Six epochs are too few for it: what counts is how well it trains.
trained:       with batch norms, and trained for ten epochs before the rule comes; ten more then. What counts is what
               it can learn that the plain one cannot. Contrasts differ more.

For each seed all networks start from the same weights, as the same function, and are trained on the same images in the
same batches, with the same optimizer, schedule and number of epochs, each at its own best of three learning rates
(`--lr`), which was chosen on other seeds (`--seeds 10-12`); judged on all other digits. What
`expand_branches` put in is folded back after the training. `latency`: of the network that would be used (branches and
batch norms folded) over the plain one's (batch norms folded), timed in turn at batch 1. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import reconv
from reconv.demo.digits import accuracy, digits
from reconv.demo.train import shaken
from reconv.ruleset import Proposal, Rule, rules_named
from reconv.surgery import find_sites
from reconv.targets import interleave

RULES = ("squeeze_excite", "multi_size", "expand_branches")
LARGEST = {"squeeze_excite"}  # these rules' largest proposals are taken, of the others the smallest
PLAIN = "plain"
DECAY = 0.02  # of the weights
AGAIN = 1000  # between the seeds of what comes before the rule and after it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and its training.

    before: epochs before the rule is applied; faintest: contrast of an image, of 1; schedule: of OneCycleLR.
    """

    channels: tuple[int | str, ...]
    norms: bool
    before: int
    faintest: float
    trained_on: int
    batch: int
    lr: dict[str, float]  # of each network
    epochs: int
    schedule: dict[str, Any]


SETTINGS = {
    "from scratch": Setting(channels=(8, "pool", 16, "pool", 16), norms=False, before=0, faintest=0.3, trained_on=3000,
                            batch=100, epochs=6,
                            lr={PLAIN: 0.03, "squeeze_excite": 0.03, "multi_size": 0.01, "expand_branches": 0.06},
                            schedule={"pct_start": 0.2, "cycle_momentum": False}),
    "trained": Setting(channels=(8, "pool", 16, "pool", 16), norms=True, before=10, faintest=0.05, trained_on=3000,
                       batch=100, epochs=10, schedule={},
                       lr={PLAIN: 0.04, "squeeze_excite": 0.04, "multi_size": 0.04, "expand_branches": 0.04}),
}  # fmt: skip


def network(setting: Setting) -> nn.Module:
    """Convolutions with ReLU, with a batch norm each or none, and two poolings."""
    layers: list[nn.Module] = []
    before = 1
    for channels in setting.channels:
        if isinstance(channels, str):
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(before, channels, 3, padding=1, bias=not setting.norms)
        if conv.bias is not None:
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
        layers += [conv, *([nn.BatchNorm2d(channels)] if setting.norms else []), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def images(setting: Setting) -> tuple[TensorDataset, TensorDataset]:
    """(to train on, held out), at half the resolution; those held out are lit already."""
    pixels, labels = (torch.cat(both) for both in zip(*(side.tensors for side in digits()), strict=True))
    pixels = nn.functional.avg_pool2d(pixels, 2)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, held = order[: setting.trained_on], order[setting.trained_on :]
    shown = lit(pixels[held], setting.faintest, torch.Generator().manual_seed(1))
    return TensorDataset(pixels[train], labels[train]), TensorDataset(shown, labels[held])


def lit(pixels: Tensor, faintest: float, generator: torch.Generator | None = None) -> Tensor:
    """Each image around a middle grey, with a contrast from `faintest` to 1, and half of them as negatives."""
    contrast, sign = (torch.rand(len(pixels), 1, 1, 1, generator=generator) for _ in range(2))
    return 0.5 + (pixels - 0.5) * faintest**contrast * torch.where(sign < 0.5, -1.0, 1.0)


# -- rewriting ---------------------------------------------------------------------------------------------
def applied(model: nn.Module, rule: Rule, example: Tensor, largest: bool = False, data: object = None) -> nn.Module:
    """The network with one proposal of the rule at every convolution that it serves."""
    served = [site for site in find_sites(model, example).sites if rule.refuse(site) is None]
    edits = [edit(site.name, list(rule.propose(site))[-1 if largest else 0]) for site in served]
    return reconv.apply(model, reconv.Plan(edits=tuple(edits)), example, data, rules=(rule,))


def edit(site: str, proposal: Proposal) -> reconv.Edit:
    return reconv.Edit(site, proposal.rule, proposal.block, absorbs=proposal.absorbs, also=proposal.also)


def folded(model: nn.Module, example: Tensor) -> nn.Module:
    """The network as it would be used: what folds is folded. Sites are found anew, since layers are blocks by now."""
    model = fold_blocks(copy.deepcopy(model).eval(), example)
    (rule,) = rules_named("fold_batch_norm")
    return applied(model, rule, example)


def fold_blocks(model: nn.Module, example: Tensor) -> nn.Module:
    """Each block of ours that folds into one convolution, folded."""
    from reconv.layers import block_of
    from reconv.layers.compose import BranchesLayer
    from reconv.planning.edits import place
    from reconv.surgery.sites import Site

    (rule,) = rules_named("fold_branches")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BranchesLayer):
            site = Site(name, block_of(layer), layer.state_dict(), (name,))
            if rule.refuse(site) is None:
                (proposal,) = rule.propose(site)
                model = place(model, (name,), proposal.block, rule.init(site, proposal).tensors)
    return model.eval()


# -- training ----------------------------------------------------------------------------------------------
def train(model: nn.Module, data: TensorDataset, setting: Setting, lr: float, epochs: int, seed: int) -> float:
    """Trains in place; returns seconds of processor time per epoch."""
    torch.manual_seed(seed)
    pixels, labels = data.tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=DECAY)
    steps = epochs * math.ceil(len(pixels) / setting.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, **setting.schedule)
    model.train()
    started = time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(len(pixels)).split(setting.batch):
            shown = shaken(pixels[batch])
            loss = nn.functional.cross_entropy(model(lit(shown, setting.faintest)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return (time.process_time() - started) / epochs


def seeded_run(kind: str, setting: Setting, names: Sequence[str], seed: int,
               sides: tuple[TensorDataset, TensorDataset], rounds: int) -> list[dict[str, Any]]:  # fmt: skip
    """One figure of each kind for each network."""
    data, held = sides
    torch.manual_seed(seed)
    start, found, ready = network(setting).eval(), [], []
    if setting.before:
        train(start, data, setting, setting.lr[PLAIN], setting.before, seed)
    pixels = lit(data.tensors[0], setting.faintest, torch.Generator().manual_seed(seed))
    for name in (PLAIN, *names):
        model = copy.deepcopy(start)
        if name != PLAIN:
            (rule,) = rules_named(name)
            model = applied(model, rule, pixels[:1], name in LARGEST, pixels)
        started_apart = apart(start, model, pixels)
        seconds = train(model, data, setting, setting.lr.get(name, setting.lr[PLAIN]), setting.epochs, seed + AGAIN)
        ready.append(folded(model, pixels[:1]))
        cost = reconv.summary(ready[-1], pixels[:1]).network
        found.append({"of": kind, "network": name, "seed": seed, "accuracy": accuracy(model, held),
                      "seconds_per_epoch": seconds, "params": sum(p.numel() for p in model.parameters()),
                      "start": started_apart, "folded_params": cost.params, "folded_macs": cost.macs,
                      "folded": apart(model, ready[-1], pixels)})  # fmt: skip
    with torch.inference_mode():
        timings = interleave([lambda n=n: n(pixels[:1]) for n in ready], 60, rounds, rounds, burst=5)
    for row, timing in zip(found, timings, strict=True):
        row |= {"latency_ms": timing.median_ms, "latency_ratio": timing.median_ms / timings[0].median_ms}
    return found


@torch.no_grad()
def apart(one: nn.Module, other: nn.Module, pixels: Tensor) -> float:
    """‖other − one‖ / ‖one‖ of the outputs."""
    exact = one.eval()(pixels)
    return float((other.eval()(pixels) - exact).norm() / exact.norm())


# -- the table ---------------------------------------------------------------------------------------------
def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["network"], []).append(row)
    heads = ("network", "held-out accuracy, %", "gain, points", "of each seed", "seeds won", "s / epoch",
             "parameters, training", "parameters, folded", "MACs, folded", "latency, folded",
             "apart at the start", "apart when folded")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, each in by_name.items():
        gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(each, by_name[PLAIN], strict=True)]
        won = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
        paired = ("",) * 3 if name == PLAIN else (spread(gains, "+"), " ".join(f"{g:+.2f}" for g in gains), won)
        cells = (name, spread([100 * row["accuracy"] for row in each]), *paired,
                 f"{statistics.median(row['seconds_per_epoch'] for row in each):.2f}", f"{each[0]['params']:,}",
                 f"{each[0]['folded_params']:,}", f"{each[0]['folded_macs']:,}",
                 f"{statistics.median(row['latency_ratio'] for row in each):.2f}",
                 f"{max(row['start'] for row in each):.0e}", f"{max(row['folded'] for row in each):.0e}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):{sign}.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def seeds(text: str) -> range:
    """From a first to a last one, both among them."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rules", nargs="*", default=list(RULES))
    parser.add_argument("--network", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=seeds, default=seeds("0-4"), help="FIRST-LAST")
    parser.add_argument("--lr", type=float, help="another learning rate")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch: only that it runs")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen, rounds = (seeds("0"), 3) if given.quick else (given.seeds, 60)
    settings, rows = {}, []
    for kind in given.network:
        plain = SETTINGS[kind]
        setting = replace(plain, lr={PLAIN: given.lr} if given.lr else plain.lr)
        if given.quick:
            setting = replace(setting, epochs=1, before=min(1, plain.before))
        sides, mine = images(setting), []
        for seed in chosen:
            mine += seeded_run(kind, setting, given.rules, seed, sides, rounds)
            said = (f"{row['network']} {100 * row['accuracy']:.2f}" for row in mine if row["seed"] == seed)
            print(f"{kind}, seed {seed}: {', '.join(said)}", file=sys.stderr, flush=True)
        print(f"\n{kind.capitalize()}, learning rates {setting.lr}\n", *table(mine), sep="\n", flush=True)
        settings[kind], rows = asdict(setting), rows + mine
    if given.out:
        told = {"settings": settings, "seeds": list(chosen), "torch": torch.__version__, "rows": rows}
        given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
