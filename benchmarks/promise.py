"""Whether plans keep what they promise: 20 of them, each measured again in a process of its own.

    python benchmarks/promise.py [--threads 1] [--folder FOLDER]

Five trained networks of the tests, each planned for two budgets on torch and on ONNX Runtime. Promised is what the
plan says of the whole network (`measured`: latency in ms and over the original's); measured is a fresh process that
applies the plan and times it beside the original, interleaved. Prints a line a plan, and the medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # its trained networks and data
BUDGETS = ("latency=0.7", "latency=0.45")
ENGINES = ("torch", "onnxruntime")


def subjects() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Networks, and inputs of their own kind."""
    import nets
    import samples

    from reconv.demo.digits import digits
    from reconv.demo.network import digits_vgg

    def pictures(data: torch.utils.data.TensorDataset) -> Tensor:
        return data.tensors[0]

    return {
        "digits_vgg": lambda: (digits_vgg(), pictures(digits()[0])[:128]),
        "digit_recognizer": lambda: (nets.digit_recognizer(), pictures(samples.mnist(False))[:128]),
        "svhn": lambda: (nets.ccexam("svhn", 32), pictures(samples.house_numbers(False))[:128]),
        "silero_vad": lambda: (nets.silero_vad(), pictures(nets.voices(False))[:128]),
        "mobilenet_v2": lambda: (nets.mobilenet_v2(), samples.imagenet(False, 32)),
    }


def make(name: str, budget: str, target: str, path: Path) -> None:
    import reconv

    model, images = subjects()[name]()
    reconv.plan(model, images[:1], budget, images, target).save(path)


def check(name: str, target: str, path: Path) -> None:
    """Prints latency and ratio, measured anew."""
    import reconv
    from reconv.targets import get_target, time_networks

    model, images = subjects()[name]()
    student = reconv.apply(model, reconv.Plan.load(path), images[:1], images)
    before, after = time_networks(get_target(target), [model.eval(), student.eval()], (images[:1],), 5.0)
    print(json.dumps([after.median_ms, after.median_ms / before.median_ms]))


def called(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the plans lie; those that are there are not made again")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        work, name, *others = given.one
        torch.set_num_threads(given.threads)
        if work == "make":
            make(name, others[0], others[1], Path(others[2]))
        else:
            check(name, others[0], Path(others[1]))
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    gaps: list[tuple[float, float]] = []
    print("| network | engine | budget | promised ms | measured ms | apart | promised ratio | measured ratio | apart |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in subjects():
        for engine in ENGINES:
            for budget in BUDGETS:
                target, path = f"{engine}:{given.threads}", folder / f"{name}-{engine}-{budget}.json"
                if not path.exists():
                    called("--threads", given.threads, "--one", "make", name, budget, target, path)
                plan = json.loads(path.read_text())["measured"]
                ms, ratio = json.loads(called("--threads", given.threads, "--one", "check", name, target, path))
                gap = abs(ms / plan["latency_ms"] - 1), abs(ratio / plan["latency_ratio"] - 1)
                gaps.append(gap)
                print(f"| {name} | {engine} | {budget} | {plan['latency_ms']:.3g} | {ms:.3g} | {100 * gap[0]:.1f} % | "
                      f"{plan['latency_ratio']:.3f} | {ratio:.3f} | {100 * gap[1]:.1f} % |", flush=True)  # fmt: skip
    middle = [100 * median(column) for column in zip(*gaps, strict=True)]
    print(f"\nMedian over {len(gaps)} plans: milliseconds {middle[0]:.1f} % apart, ratios {middle[1]:.1f} %.")


if __name__ == "__main__":
    main()
