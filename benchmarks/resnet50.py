"""How long reconv itself takes on a real size: timm's ResNet-50 (no weights) at 1×3×224×224.

    python benchmarks/resnet50.py [--budget latency=0.7] [--target torch|onnxruntime|openvino]

Prints the seconds of `summary` (timed on the target), of `plan` with an empty cache, of the same plan again in a new
process, and the peak memory. Residual branches do not begin at zero, as timm's do: edits of a zero would cost nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def subject() -> tuple[nn.Module, Tensor]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    if importlib.util.find_spec("nets"):  # the tests' shim, where torchvision's wheel does not import as it is
        from nets import let_torchvision_import

        let_torchvision_import()
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet50", zero_init_last=False), torch.rand(1, 3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="latency=0.7")
    parser.add_argument("--target", default="torch")
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.warm:
        os.environ["RECONV_CACHE"] = tempfile.mkdtemp()
    import reconv

    model, image = subject()
    if not given.warm:
        started = time.perf_counter()
        costs = reconv.summary(model, image, target=given.target)
        summed = time.perf_counter() - started
        print(f"summary: {summed:.1f} s; {len(costs.rows)} convolutions, {costs.total.macs / 1e9:.2f} GMACs, "
              f"{costs.network.latency_ms:.1f} ms on {given.target}", flush=True)  # fmt: skip
    started = time.perf_counter()
    plan = reconv.plan(model, image, given.budget, target=given.target)
    planned = time.perf_counter() - started
    print(f"plan {given.budget}, {'warm' if given.warm else 'cold'}: {planned:.0f} s; {len(plan.edits)} edits, "
          f"measured ratio {plan.latency_ratio:.3f}, {'met' if plan.met else plan.reason}; peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)  # fmt: skip
    if not given.warm:
        again = [sys.executable, __file__, "--warm", "--budget", given.budget, "--target", given.target]
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
