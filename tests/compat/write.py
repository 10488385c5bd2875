"""Writes the files of the current version, which every later one must read: tests/compat/VERSION/.

    python tests/compat/write.py     once for a release; tests/test_compat.py reads those of all versions

What is here may be added to, never changed: a network, layer or plan of an earlier version is made by the same lines.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import reconv
from reconv import nn as kinds
from reconv.costing.summary import summary
from reconv.planning.considered import Considered
from reconv.planning.edits import restructure
from reconv.planning.plan import Edit, Plan, Point, Refusal
from reconv.planning.remembered import Remembered
from reconv.planning.wishes import Wish, Wishes
from reconv.rewriting.store import save_run
from reconv.spec import parse
from reconv.surgery.fingerprint import structure_hash
from reconv.targets.cache import LatencyCache
from reconv.targets.timing import Timing

HOME = Path(__file__).parent
SEED, EPOCHS = 7, 3
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and the shape of an input
    "Conv1d": (lambda: kinds.Conv1d(3, 4, 3, stride=2), (1, 3, 9)),
    "Conv2d": (lambda: kinds.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect"), (1, 4, 5, 4)),
    "Conv3d": (lambda: kinds.Conv3d(2, 3, 2, dilation=2), (1, 2, 4, 3, 5)),
    "ConvTranspose2d": (lambda: kinds.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (1, 3, 3, 4)),
    "DepthwiseConv2d": (lambda: kinds.DepthwiseConv2d(3, 3, padding=1, depth_multiplier=2), (1, 3, 5, 4)),
    "PointwiseConv2d": (lambda: kinds.PointwiseConv2d(3, 5, bias=False), (1, 3, 3, 4)),
    "SeparableConv2d": (lambda: kinds.SeparableConv2d(3, 5, 3, norm="batch", activation="relu"), (1, 3, 5, 5)),
    "AsymmetricConv2d": (lambda: kinds.AsymmetricConv2d(3, 5, 3, mid_channels=2), (1, 3, 5, 4)),
    "ShuffledGroupConv2d": (lambda: kinds.ShuffledGroupConv2d(4, 6, 3, groups=2), (1, 4, 5, 4)),
    "StackedConv2d": (lambda: kinds.StackedConv2d(2, 3, 5, activation="relu"), (1, 2, 6, 7)),
    "MultiSizeConv2d": (lambda: kinds.MultiSizeConv2d(2, 6, (1, 3), padding=1), (1, 2, 5, 4)),
    "SqueezeExcite2d": (lambda: kinds.SqueezeExcite2d(6, 3), (1, 6, 3, 4)),
    "DeformConv2d": (lambda: kinds.DeformConv2d(2, 3, 3, padding=1), (1, 2, 5, 4)),
    "ChannelShuffle": (lambda: kinds.ChannelShuffle(2), (1, 6, 2, 3)),
}  # fmt: skip


def base() -> nn.Module:
    """The network that the run began with."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(), nn.Conv2d(8, 4, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, groups=2),
    )  # fmt: skip


EDITS = (
    ("3", "bottleneck", "ic6oc3k1x1nb -> ic3oc3k3x3p1nb -> ic3oc8k1x1", ()),
    ("5", "separable", "ic8oc8k5x5s2p2g8nb -> ic8oc4k1x1", ()),
    ("7", "squeeze_excite", "ic4oc4k1x1 -> se(2)", ()),
    ("0", "fold_batch_norm", "ic3oc6k3x3p1", ("1",)),
    ("8", "shuffled_group", "ic4oc6k3x3g2 -> shuffle(2)", ()),
)


def random_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def set_random(model: nn.Module) -> nn.Module:
    """In float64, every number drawn; variances are positive."""
    model = model.double().eval()
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.is_floating_point():
            drawn = random_of(tuple(tensor.shape), number) / 4
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return model


def inputs() -> Tensor:
    return random_of((2, 3, 9, 8), SEED)


def plan() -> Plan:
    """One that uses each part of the format."""
    small = parse(EDITS[0][2])
    point = Point(latency_ratio=0.5, latency_ms=1.5, error=0.25, macs=5e4, params=900.0, memory=4e3, layers=2)
    return Plan(
        tuple(Edit(site, rule, parse(text), 0.125, 0.5, absorbs) for site, rule, text, absorbs in EDITS),
        (Refusal("8", "subpixel", "it is not transposed"),),
        {"ref": None, "hash": structure_hash(base().double())}, "latency=0.5,error=0.9", "torch:1",
        layout="channels_last", met=False, reason="it is a sample", latency_ratio=0.75, measured=point,
        front=(point, replace(point, error=0.5, score=0.75)),
        wishes=Wishes(("3",), (Wish("5", "remove"),), (Wish("7", "squeeze_excite", parse(EDITS[2][2])),)),
        considered=(Considered("3", "bottleneck", small, 0.5, verdict="taken"), Considered("3", "remove", small)),
    )  # fmt: skip


def lessons() -> Tensor:
    return random_of((24, 3, 9, 8), SEED + 1).float()


def student_and_teacher() -> tuple[nn.Module, nn.Module]:
    """The networks of the recovery: the student begins a little beside."""
    teacher = set_random(base()).float()
    student = reconv.apply(teacher, replace(plan(), edits=plan().edits[:1], layout="contiguous"), lessons()[:1])
    return student, teacher


def recovered(folder: Path, epochs_told: list[int], resume: bool) -> nn.Module:
    student, teacher = student_and_teacher()
    return reconv.recover(student, teacher, lessons(), EPOCHS, checkpoint=folder, resume=resume, batch_size=8,
                          seed=SEED, log=lambda entry: epochs_told.append(entry["epoch"]))  # fmt: skip


def main() -> None:
    folder = HOME / reconv.__version__
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.environ["RECONV_CACHE"] = str(folder / "cache")
    made = plan()
    model = set_random(restructure(base(), made))
    shown = summary(model, inputs())
    save_run(folder / "run", model=model, plan=made, before=summary(base(), inputs().float()), after=shown, error=0.25,
             config={"settings": {"budget": made.budget}})  # fmt: skip
    (folder / "run" / "report.html").unlink()
    given = {"run": inputs()}
    expected = {"run": model(inputs()).detach()}
    tensors = {}
    for name, (make, shape) in LAYERS.items():
        layer, given[name] = set_random(make()), random_of(shape, SEED)
        expected[name] = layer(given[name]).detach()
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in layer.state_dict().items()}
    save_file(tensors, folder / "layers.safetensors")
    write_caches()
    write_checkpoint(folder / "recovery", expected)
    save_file({name: y.contiguous() for name, y in expected.items()}, folder / "expected.safetensors")


def write_caches() -> None:
    cache = LatencyCache()
    cache.put("ic3oc4k3x3 | torch", Timing(1.5, 0.25, 7))
    cache.close()
    job = Remembered("job")
    job.put([0.5, "it is slower"], "3", "bottleneck")
    job.save()


def write_checkpoint(folder: Path, expected: dict[str, Tensor]) -> None:
    """The state after the first epoch of three, and what the three give."""
    copies = folder.with_name("copies")

    class Told(list):  # type: ignore[type-arg]
        def append(self, epoch: int) -> None:
            super().append(epoch)
            if epoch == 1:
                shutil.copytree(copies, folder)

    x = lessons()[:2]
    expected["recovered"] = recovered(copies, Told(), resume=False)(x).detach()
    shutil.rmtree(copies)


if __name__ == "__main__":
    sys.exit(main())
