"""Whether a hard budget is better met in stages: held-out accuracy of the demo network, rewritten at once and in parts.

    python benchmarks/stages.py [macs=0.05] [epochs=6] [seeds=3]

One plan for the budget is carried out in 1, 2 and 3 stages that share the same epochs, on every fourth of the 4,000
digits to learn from, without their labels; 1,000 others judge. Accuracies do not depend on how busy the machine is.
"""

from __future__ import annotations

import statistics
import sys

from reconv import plan, rewrite
from reconv.demo.digits import accuracy, digits
from reconv.demo.network import digits_vgg

STAGES = (1, 2, 3)


def main(budget: str = "macs=0.05", epochs: int = 6, seeds: int = 3) -> None:
    train, held_out = digits()
    images, model = train.tensors[0][::4], digits_vgg()
    made = plan(model, images[:1], budget, images)
    edits = sum(edit.error not in (None, 0.0) for edit in made.edits)
    given = f"{100 * accuracy(model, held_out):.1f} % as given"
    print(f"{budget}: {edits} edits; {given}; {epochs} epochs in all\n", flush=True)
    print("| stages | error of the output | held-out accuracy, % | of each seed |\n|---|---|---|---|", flush=True)
    for stages in STAGES:
        errors, found = [], []
        for seed in range(seeds):
            result = rewrite(model, images[:1], data=images, plan=made, stages=stages, epochs=epochs, seed=seed)
            errors.append(result.error)
            found.append(100 * accuracy(result.model, held_out))
        each = " ".join(f"{value:.1f}" for value in found)
        print(f"| {stages} | {statistics.mean(errors):.3f} | {statistics.mean(found):.2f} | {each} |", flush=True)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main("macs=" + given.get("macs", "0.05"), int(given.get("epochs", 6)), int(given.get("seeds", 3)))
