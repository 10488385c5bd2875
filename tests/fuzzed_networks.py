"""Random networks, described: fuzzed_promises.py takes them through all that reconv does.

A `Made` is drawn from a `random.Random`, as the calls of fuzzed.py are, and its text is its own repro.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.spec import ConvSpec
from reconv.spec.geometry import axis_length

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEAN = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
CALL = (F.conv1d, F.conv2d, F.conv3d)
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish}


@dataclass(frozen=True)
class Made:
    """A network and its input.

    steps: each makes a value of earlier ones, of which 0 is the input: `conv TEXT`, `norm C`, `group_norm C`, an
    activation, `pool`, `mean`, `dropout` of one, `again NAME` (a module once more), `call TEXT` (a functional
    convolution), `add` and `cat` of two. Some of them lie together in a torch.nn.Sequential.
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...]
    shape: tuple[int, ...]
    head: bool
    train: bool = False
    dtype: str = "float32"
    seed: int = 0


class Net(nn.Module):
    """The steps one after the other."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.dims, self.steps, self.head = len(made.shape) - 2, made.steps, None
        self.parts, self.weights = nn.ModuleDict(), nn.ParameterDict()
        for i, (text, _) in enumerate(made.steps, 1):
            kind, _, of = text.partition(" ")
            if kind == "call":
                self.weights[f"v{i}"] = nn.Parameter(torch.empty(ConvSpec.parse(of).weight_shape))
            elif kind not in ("add", "cat", "again"):
                self.parts[f"v{i}"] = self._part(kind, of)
        if made.head:
            self.head = nn.LazyLinear(3)
        generator = torch.Generator().manual_seed(made.seed)
        with torch.no_grad():
            self.eval()(torch.zeros(made.shape))
            for name, tensor in self.state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(_start(name, tensor, generator))

    def _part(self, kind: str, of: str) -> nn.Module:
        if kind == "sequence":
            return nn.Sequential(*(self._part(*text.partition(" ")[::2]) for text in of.split(", ")))
        at = self.dims - 1
        if kind == "conv":
            return _conv(ConvSpec.parse(of))
        plain: dict[str, Any] = {"norm": NORM[at], "group_norm": lambda c: nn.GroupNorm(1, c), "pool": POOL[at],
                                 "mean": MEAN[at], "dropout": nn.Dropout}  # fmt: skip
        if kind in ACTIVATIONS:
            return ACTIVATIONS[kind]()
        return plain[kind](0.3 if kind == "dropout" else int(of))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, (text, sources) in enumerate(self.steps, 1):
            kind, _, of = text.partition(" ")
            given = [values[source] for source in sources]
            if kind == "add":
                values.append(given[0] + given[1])
            elif kind == "cat":
                values.append(torch.cat(given, 1))
            elif kind == "call":
                spec = ConvSpec.parse(of)
                pads = [lo for lo, _ in spec.padding]
                values.append(CALL[self.dims - 1](given[0], self.weights[f"v{i}"], None, spec.stride, pads,
                                                  spec.dilation, spec.groups))  # fmt: skip
            else:
                values.append(self.parts[of if kind == "again" else f"v{i}"](*given))
        if self.head is None:
            return values[-1]
        return self.head(values[-1].flatten(2).mean(-1))


def _conv(spec: ConvSpec) -> nn.Module:
    kinds, pads = TRANSPOSED if spec.transposed else CONV, [lo for lo, _ in spec.padding]
    more: dict[str, Any] = (
        {"output_padding": spec.output_padding} if spec.transposed else {"padding_mode": spec.padding_mode}
    )
    return kinds[spec.spatial_dims - 1](spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, pads,
                                        dilation=spec.dilation, groups=spec.groups, bias=spec.bias, **more)  # fmt: skip


def _start(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """As after some training: no norm that does nothing, nothing that grows or vanishes."""
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
        return 0.5 + noise.abs().clamp_max(1.5)
    return 0.2 * noise if tensor.ndim == 1 else noise / max(1, tensor[0].numel()) ** 0.5


SIZES = {1: (9, 33), 2: (6, 15), 3: (4, 7)}


def drawn(r: Random) -> Made:
    """Any network: branches, residuals, shared and functional convolutions, norms, odd sizes."""
    dims = r.choice((1, 2, 2, 2, 3))
    shape = (r.choice((1, 2, 3)), r.choice((1, 2, 3, 4)), *(r.randint(*SIZES[dims]) for _ in range(dims)))
    grown = _Growing(r, shape)
    grown.plain()
    for _ in range(r.randint(1, 4)):
        grown.grow()
    dtype = r.choice(("float32", "float32", "float32", "float64"))
    return Made(tuple(grown.steps), shape, r.random() < 0.6, r.random() < 0.2, dtype, r.randint(0, 999))


class _Growing:
    """The steps so far; `channels` and `sizes` of the last value."""

    def __init__(self, r: Random, shape: tuple[int, ...]) -> None:
        self.r, self.steps, self.at = r, list[tuple[str, tuple[int, ...]]](), 0
        self.channels, self.sizes = shape[1], list(shape[2:])

    def add(self, text: str, *sources: int) -> int:
        self.steps.append((text, sources or (self.at,)))
        self.at = len(self.steps)
        return self.at

    def grow(self) -> None:
        self.r.choice((self.plain, self.plain, self.sequence, self.residual, self.branches, self.shared, self.call,
                       self.separable, self.pool, self.up))()  # fmt: skip

    def spec(self, same: bool = False, out: int | None = None) -> ConvSpec:
        """Of the last value; same: sizes stay."""
        r, dims = self.r, len(self.sizes)
        kernel = [r.choice((1, 3, 3, 5) if same else (1, 2, 3, 3, 4, 5)) for _ in range(dims)]
        dilation = [r.choice((1, 1, 1, 2)) for _ in range(dims)]
        pads = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        stride = [1 if same else r.choice((1, 1, 2, 3)) for _ in range(dims)]
        for i, n in enumerate(self.sizes):
            if n + 2 * pads[i] < dilation[i] * (kernel[i] - 1) + 1 or pads[i] >= n or n < 3:
                kernel[i], dilation[i], pads[i], stride[i] = 1, 1, 0, 1
        out = out or r.choice((2, 3, 4, 6, 8, 9, 12))
        groups = r.choice([g for g in (1, 1, 1, 2, 3, 4, self.channels) if self.channels % g == 0 and out % g == 0])
        mode = r.choice(("zeros",) * 5 + ("reflect", "replicate", "circular"))
        return ConvSpec(
            in_channels=self.channels, out_channels=out, kernel_size=tuple(kernel), stride=stride, padding=pads,
            dilation=dilation, groups=groups, bias=r.random() < 0.5, padding_mode=mode,
        )  # fmt: skip

    def conv(self, spec: ConvSpec) -> None:
        self.add(f"conv {spec}")
        self.after(spec)

    def after(self, spec: ConvSpec) -> None:
        axes = range(len(self.sizes))
        self.sizes = [axis_length(spec, axis, self.sizes[axis]) for axis in axes]
        self.channels = spec.out_channels

    def behind(self) -> list[str]:
        """What may follow a convolution."""
        found = (
            []
            if self.r.random() < 0.4
            else [self.r.choice(("norm", "norm", "norm", "group_norm")) + f" {self.channels}"]
        )
        return found + ([self.r.choice(tuple(ACTIVATIONS))] if self.r.random() < 0.7 else [])

    def plain(self) -> None:
        self.conv(self.spec())
        for text in self.behind():
            self.add(text)
        if self.r.random() < 0.1:
            self.add("dropout")

    def sequence(self) -> None:
        texts = []
        for _ in range(self.r.choice((1, 2, 2))):
            spec = self.spec()
            self.after(spec)
            texts += [f"conv {spec}", *self.behind()]
        self.add("sequence " + ", ".join(texts), self.at)

    def residual(self) -> None:
        start = self.at
        out = self.channels
        if self.r.random() < 0.5:
            self.conv(self.spec(same=True))
            for text in self.behind():
                self.add(text)
        self.conv(self.spec(same=True, out=out))
        for text in self.behind():
            self.add(text)
        self.add("add", start, self.at)

    def branches(self) -> None:
        start, into, sides = self.at, self.channels, []
        for _ in range(2):
            self.at, self.channels = start, into
            self.conv(self.spec(same=True))
            for text in self.behind():
                self.add(text)
            sides.append((self.at, self.channels))
        self.add("cat", *(at for at, _ in sides))
        self.channels = sum(channels for _, channels in sides)

    def shared(self) -> None:
        self.conv(self.spec(same=True, out=self.channels))
        name = f"v{self.at}"
        self.add("relu")
        self.add(f"again {name}")

    def call(self) -> None:
        spec = self.spec().replace(bias=False, padding_mode="zeros")
        self.add(f"call {spec}")
        self.after(spec)

    def separable(self) -> None:
        spec = self.spec(out=self.channels).replace(groups=self.channels)
        self.conv(spec)
        ones = (1,) * len(self.sizes)
        self.conv(ConvSpec(in_channels=self.channels, out_channels=self.r.choice((4, 6, 8)), kernel_size=ones))
        for text in self.behind():
            self.add(text)

    def pool(self) -> None:
        if min(self.sizes) >= 4:
            self.add(self.r.choice(("pool", "mean")) + " 2")
            self.sizes = [n // 2 for n in self.sizes]

    def up(self) -> None:
        if max(self.sizes) <= 8:
            dims, r = len(self.sizes), self.r
            kernel = tuple(r.choice((2, 3, 4)) for _ in range(dims))
            spec = ConvSpec(
                in_channels=self.channels, out_channels=r.choice((2, 3, 4, 6)), kernel_size=kernel, stride=2,
                padding=tuple(r.randint(0, (k - 1) // 2) for k in kernel), transposed=True,
                output_padding=tuple(r.randint(0, 1) for _ in range(dims)), bias=r.random() < 0.5,
            )  # fmt: skip
            if min(self.sizes) > 1:
                self.conv(spec)
