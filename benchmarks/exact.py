"""What `reconv.rewrite(model, x, rules="exact")` alone brings on the field's networks, untrained as they come.

    python benchmarks/exact.py [NAME ...] [--threads 1]

The same weights and the same outputs to rounding: batch norms folded, activations fused, each convolution by the
kernel that was measured to be the fastest, in the better memory format. `folded` is what PyTorch alone can do: batch
norms folded, and the better memory format. The three networks are timed in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import reconv
from reconv.targets import interleave, laid_out, to_layout

IMAGE, VOLUME = (1, 3, 224, 224), (1, 1, 32, 32, 32)
TIMM = ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto", "convnext_tiny",
        "resnext50_32x4d", "regnety_008")  # fmt: skip
ROUNDS = 25


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    import timm
    from monai.networks.nets import HighResNet, UNet

    found = {name: ((lambda name=name: timm.create_model(name)), IMAGE) for name in TIMM}
    channels, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
    found["monai UNet 3D"] = (lambda: UNet(3, 1, 2, channels, strides, num_res_units=2, norm="BATCH"), VOLUME)
    found["monai HighResNet 3D"] = (lambda: HighResNet(3, 1, 2), VOLUME)
    return found


def report(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model, x = settled(make(), shape), torch.randn(shape)
    ours = reconv.rewrite(model, x, rules=("exact",), target=f"torch:{threads}")
    folded = reconv.rewrite(model, x, rules=("fold_batch_norm",), target=f"torch:{threads}")
    peer = as_torch(folded.model)
    nets = {"given": (model, x), "folded": laid(peer, x, folded), "exact": laid(ours.model, x, ours)}
    with torch.inference_mode():
        ms = [t.median_ms for t in interleave([lambda n=n, i=i: n(i) for n, i in nets.values()], 60, 5, ROUNDS)]
        error = float((ours.model(x) - model(x)).abs().max() / model(x).abs().max())
    rules = ", ".join(f"{rule} {n}" for rule, n in Counter(e.rule for e in ours.plan.edits).items()) or "none"
    print(f"| {name} | {'×'.join(map(str, shape))} | {threads} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[2]:.1f} | "
          f"{ms[2] / ms[0]:.2f} | {ms[2] / ms[1]:.2f} | {error:.0e} | {rules} |", flush=True)  # fmt: skip


def settled(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """In evaluation mode, with batch statistics that keep values in range through many layers."""
    with torch.no_grad():
        model.train()(torch.randn(2, *shape[1:]))
    return model.eval()


def as_torch(student: nn.Module) -> nn.Module:
    """The folded network with torch's own layers in place of reconv's: what PyTorch alone can do."""
    for layer in list(student.modules()):
        for kind in ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"):
            if type(layer) is getattr(reconv.nn, kind):
                layer.__class__ = getattr(nn, kind)
    return student


def laid(model: nn.Module, x: torch.Tensor, result: reconv.Result) -> tuple[nn.Module, torch.Tensor]:
    layout = result.plan.layout
    return to_layout(model, layout), laid_out(x, layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    if importlib.util.find_spec("nets"):  # the tests' shim, where torchvision's wheel does not import as it is
        from nets import let_torchvision_import

        let_torchvision_import()
    known = networks()
    heads = ("network", "input", "threads", "given ms", "folded ms", "exact ms", "exact / given", "exact / folded",
             "error", "edits")  # fmt: skip
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * len(heads), flush=True)
    for name in given.names or known:
        report(name, *known[name], given.threads)


if __name__ == "__main__":
    main()
