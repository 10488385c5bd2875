"""How long reconv itself takes on a real size: timm's ResNet-50 (no weights) at 1×3×224×224.

    python benchmarks/resnet50.py [--budget latency=0.7]

Prints the seconds of `summary` (timed on torch) and of `plan` with an empty cache, and the peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="latency=0.7")
    budget = parser.parse_args().budget
    os.environ["RECONV_CACHE"] = tempfile.mkdtemp()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    if importlib.util.find_spec("nets"):  # the tests' shim, where torchvision's wheel does not import as it is
        from nets import let_torchvision_import

        let_torchvision_import()
    import timm

    import reconv

    torch.manual_seed(0)
    model, image = timm.create_model("resnet50"), torch.rand(1, 3, 224, 224)
    started = time.perf_counter()
    costs = reconv.summary(model, image, target="torch")
    summed = time.perf_counter() - started
    print(f"summary: {summed:.1f} s; {len(costs.rows)} convolutions, {costs.total.macs / 1e9:.2f} GMACs, "
          f"{costs.network.latency_ms:.1f} ms on {torch.get_num_threads()} threads")  # fmt: skip
    started = time.perf_counter()
    plan = reconv.plan(model, image, budget)
    planned = time.perf_counter() - started
    print(f"plan {budget}: {planned:.0f} s; {len(plan.edits)} edits, measured ratio {plan.latency_ratio:.3f}, "
          f"{'met' if plan.met else plan.reason}")  # fmt: skip
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
