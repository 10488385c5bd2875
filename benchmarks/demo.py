"""The demo's figures: latency of the rewritten network over the original's, interleaved, and held-out accuracy.

    python benchmarks/demo.py [runs/demo]        after `make demo`

The networks: as given, batch norm folded in torch's best memory layout (the honest baseline), and rewritten. Each of
five processes times them in turn, with 1 and with 2 threads at batch 1; medians are quoted. `again and again`: five
calls of a network in its turn, as where it is used (this is what plans promise). `cold`: one call, after the others
have emptied the caches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import torch

PROCESSES, THREADS = 5, (1, 2)
BURSTS = {"again and again": (5, 30), "cold": (1, 60)}  # calls in a turn, turns


def child(folder: str) -> None:
    """One process: medians in ms for each number of threads, as one line of JSON."""
    from reconv import load
    from reconv.demo.network import digits_vgg
    from reconv.targets import interleave

    image = torch.rand(1, 1, 28, 28)
    networks = {"given": digits_vgg(), "folded contiguous": folded(torch.contiguous_format),
                "folded channels_last": folded(torch.channels_last), "rewritten": load(folder)}  # fmt: skip
    found = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        runners = [lambda n=n: n(image) for n in networks.values()]
        for way, (burst, rounds) in BURSTS.items():
            with torch.inference_mode():
                timings = interleave(runners, 60, least=rounds, most=rounds, burst=burst)
            found[f"{threads} thread(s), {way}"] = {n: t.median_ms for n, t in zip(networks, timings, strict=True)}
    print(json.dumps(found))


def folded(layout: torch.memory_format) -> torch.nn.Module:
    """The network as given, batch norms folded by PyTorch's own function, in a memory format."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from reconv.demo.network import digits_vgg

    model = digits_vgg()
    layers = model.features
    for i, layer in enumerate(layers):
        if isinstance(layer, torch.nn.BatchNorm2d):
            layers[i - 1], layers[i] = fuse_conv_bn_eval(layers[i - 1], layer), torch.nn.Identity()
    return model.to(memory_format=layout)


def main(folder: str) -> int:
    from reconv import load
    from reconv.demo.digits import accuracy, digits
    from reconv.demo.network import digits_vgg

    runs = []
    for _ in range(PROCESSES):
        out = subprocess.run([sys.executable, __file__, "--child", folder], check=True, capture_output=True, text=True)
        runs.append(json.loads(out.stdout.splitlines()[-1]))
    good = True
    for way in runs[0]:
        each = [run[way] for run in runs]
        best = [min(v for k, v in e.items() if k.startswith("folded")) for e in each]
        to_given = [e["rewritten"] / e["given"] for e in each]
        to_best = [e["rewritten"] / b for e, b in zip(each, best, strict=True)]
        middle = statistics.median
        print(f"{way}: given {middle(e['given'] for e in each):.2f} ms, folded in the best layout "
              f"{middle(best):.2f} ms, rewritten {middle(e['rewritten'] for e in each):.2f} ms; rewritten/given "
              f"{middle(to_given):.3f} ({min(to_given):.3f}-{max(to_given):.3f}), rewritten/folded "
              f"{middle(to_best):.3f} ({min(to_best):.3f}-{max(to_best):.3f})")  # fmt: skip
        if not way.endswith("cold"):
            good &= middle(to_given) <= 0.2 and middle(to_best) <= 0.25
    _, held_out = digits()
    before, after = accuracy(digits_vgg(), held_out), accuracy(load(folder), held_out)
    print(f"held-out accuracy: {100 * before:.1f} % -> {100 * after:.1f} % on {len(held_out)} images")
    return 0 if good and before - after <= 0.003 + 1e-9 else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        sys.exit(main(*sys.argv[1:2] or ["runs/demo"]))
