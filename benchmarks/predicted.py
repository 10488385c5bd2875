"""How well the errors that a plan is chosen by tell what a rewritten network loses, before any recovery.

    python benchmarks/predicted.py [--network digits_vgg|digit_recognizer|mobilenet_v2] [--plans 60]

The errors of single edits come from `reconv.plan`: of the output, one edit at a time, on 32 calibration images, without
labels. Random sets of them are carried out by `reconv.apply`, and judged on held-out images. Three ways to foretell a
set's error from those of its edits: as independent (the root of the sum of squares: what the search uses), with
pairs (the norm of the sum of what the edits move the output by, which knows for each two of them whether they add up or
cancel), and their sum. Prints each way's rank correlation (Spearman) with the set's measured error and with its
loss of accuracy, and the median of foretold over measured.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence

import torch
from fit import SAMPLES, SUBJECTS, Subject
from scipy.stats import spearmanr
from torch import Tensor, nn

import reconv
from reconv.planning.considered import Considered
from reconv.planning.plan import Edit

RULES = ("bottleneck", "separable", "asymmetric", "low_rank_pointwise", "shuffled_group", "stacked", "combined")
SHARES, MOST = (0.2, 0.5, 1.0), (0.05, 0.1, 0.3, 1.0)  # of the sites; error of a single edit
PAIRED = 64  # images on which what edits move the output by is added up
WAYS = ("independent", "with pairs", "sum")


def pool(subject: Subject) -> dict[str, list[Considered]]:
    """The proposals whose errors were measured, by site."""
    made = reconv.plan(subject.model, subject.fit_on[:1], "latency=0.1", subject.fit_on, "torch:1", RULES)
    found: dict[str, list[Considered]] = {}
    for one in made.considered:
        if one.error is not None:
            found.setdefault(one.site, []).append(one)
    return found


def drawn(found: dict[str, list[Considered]], chance: random.Random) -> list[Considered]:
    """Some proposals, one a site at most."""
    share, most = chance.choice(SHARES), chance.choice(MOST)
    rows = [[one for one in row if one.error is not None and one.error <= most] for row in found.values()]
    return [chance.choice(row) for row in rows if row and chance.random() < share]


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model.eval()(part) for part in images.split(100)]).flatten(1)


class Judge:
    """Carries edits out and compares with the original."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.alone = subject, dict[Considered, Tensor]()
        self.known, self.seen = outputs(subject.model, subject.held), outputs(subject.model, subject.fit_on[:PAIRED])

    def student(self, chosen: Sequence[Considered]) -> nn.Module:
        edits = tuple(Edit(one.site, one.rule, one.block) for one in chosen)
        return reconv.apply(self.subject.model, reconv.Plan(edits), self.subject.fit_on[:1], self.subject.fit_on)

    def moved(self, one: Considered) -> Tensor:
        """What an edit alone adds to the output, of the output's size."""
        if one not in self.alone:
            self.alone[one] = (
                outputs(self.student([one]), self.subject.fit_on[:PAIRED]) - self.seen
            ) / self.seen.norm()
        return self.alone[one]

    def foretold(self, chosen: Sequence[Considered]) -> tuple[float, ...]:
        errors = [one.error or 0.0 for one in chosen]
        pairs = torch.stack([self.moved(one) for one in chosen]).sum(0).norm().item()
        return math.sqrt(sum(e * e for e in errors)), pairs, sum(errors)

    def measured(self, chosen: Sequence[Considered]) -> tuple[float, float]:
        """The error on held-out images, and the part of them that is lost."""
        answers = outputs(self.student(chosen), self.subject.held)
        error = ((answers - self.known).norm() / self.known.norm()).item()
        if self.subject.labels is None:
            return error, math.nan
        right = [(a.argmax(1) == self.subject.labels).float().mean().item() for a in (self.known, answers)]
        return error, right[0] - right[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=SUBJECTS, default="digits_vgg")
    parser.add_argument("--plans", type=int, default=60)
    given = parser.parse_args()
    subject, chance = SUBJECTS[given.network](1000), random.Random(0)
    found, judge = pool(subject), Judge(subject)
    sets = [chosen for _ in range(given.plans) if (chosen := drawn(found, chance))]
    told = torch.tensor([judge.foretold(chosen) for chosen in sets])
    got = torch.tensor([judge.measured(chosen) for chosen in sets])
    print(
        f"`{given.network}`: {len(sets)} random sets of 1 to {max(map(len, sets))} edits from "
        f"{sum(map(len, found.values()))} proposals at {len(found)} sites, fitted on {SAMPLES} images.\n"
    )
    print("| foretold | rank correlation with the error | with the loss of accuracy | foretold / measured |")
    print("|---|---|---|---|")
    for way, column in zip((*WAYS, "measured error itself"), (*told.T, got[:, 0]), strict=True):
        ranks = [spearmanr(column, other).statistic for other in got.T]
        cells = ["no labels" if math.isnan(rank) else f"{rank:.3f}" for rank in ranks]
        print(f"| {way} | {cells[0]} | {cells[1]} | {(column / got[:, 0]).median():.2f} |")


if __name__ == "__main__":
    main()
