"""Each rule on a small network of each case: `test_rule_table.py` runs every cell, docs/rules.md shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Small(nn.Module):
    """stem → the convolution in question, batch norm, ReLU → head; `-x` takes the other way wherever there are two."""

    def __init__(self, conv: nn.Module, norms: Sequence[nn.Module], into: int, dims: int, out: int) -> None:
        super().__init__()
        self.stem = _conv(dims)(3, into, 3, padding=1, bias=False)
        self.conv, self.bn, self.other = conv, *norms
        self.relu = nn.Identity() if isinstance(self.bn, nn.ReLU) else nn.ReLU()
        self.head = _conv(dims)(out, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wired(self.stem(x)))

    def wired(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Shared(Small):
    def wired(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x))) - self.relu(self.bn(self.conv(x.flip(-1))))


class TwoNorms(Small):
    def wired(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x))) - self.relu(self.other(self.conv(x.flip(-1))))


class UsedTwice(Small):
    def wired(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(self.bn(y)) - y


class Deciding(Small):
    def wired(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return y if x.sum() > 0 else 3 * y.flip(-1)


class Functional(Small):
    """The convolution is a function, its weight a parameter of the network."""

    def __init__(self, conv: nn.Module, *rest: Any) -> None:
        super().__init__(nn.Identity(), *rest)
        self.weight, self.bias, self.padding = conv.weight, conv.bias, conv.padding

    def wired(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(F.conv2d(x, self.weight, self.bias, padding=self.padding)))


def _conv(dims: int, transposed: bool = False) -> type[nn.Module]:
    return getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")


CHANNELS = 8  # into the convolution in question


@dataclass(frozen=True)
class RuleCase:
    """What is special about the convolution in question, or about the network around it."""

    options: dict[str, Any] = field(default_factory=dict)
    dims: int = 2
    out_channels: int = 12
    network: type[Small] = Small
    transposed: bool = False
    dtype: torch.dtype = torch.float32
    weight_norm: bool = False

    @property
    def input(self) -> Tensor:
        shape = (2, 3, *(11, 9, 7)[: self.dims])
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(self.dtype)

    def build(self, kernel_size: int = 3, with_norm: bool = True, transposed: bool = False,
              strided: bool = False) -> nn.Module:  # fmt: skip
        """The network, in evaluation. `with_norm`: a batch norm follows the convolution, else the ReLU at once.

        transposed: the convolution is transposed, of stride 2, wherever there is such a one. strided: it has a stride
        wherever it can, and a kernel behind it.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            size: dict[str, Any] = {"kernel_size": kernel_size, "padding": kernel_size // 2}
            if transposed := self.transposed or (transposed and self.may_be_transposed):
                size["stride"] = 2
            if strided and self.options.get("padding") != "same":
                size["stride"] = 2
            conv = _conv(self.dims, transposed)(CHANNELS, self.out_channels, **size | self.options)
            if self.weight_norm:
                conv = parametrizations.weight_norm(conv)
            two = self.network is TwoNorms
            norms = [_norm(self.dims, self.out_channels) if on else nn.ReLU() for on in (with_norm or two, two)]
            made = self.network(conv, norms, CHANNELS, self.dims, self.out_channels)
            if strided:
                made.head = _conv(self.dims)(self.out_channels, 5, 3, padding=1)
        return made.to(self.dtype).eval()

    @property
    def may_be_transposed(self) -> bool:
        """Whether a transposed convolution has these options."""
        strange = "padding_mode" in self.options or self.options.get("padding") == "same"
        return not strange and self.network is not Functional


def _norm(dims: int, channels: int) -> nn.Module:
    norm = getattr(nn, f"BatchNorm{dims}d")(channels)
    for name, tensor in norm.named_parameters():
        nn.init.uniform_(tensor, 0.5, 1.5) if name == "weight" else nn.init.normal_(tensor)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


EVEN = "'same', even kernel"
TRANSPOSED = "transposed, output padding"
RULE_CASES = {
    "1D": RuleCase(dims=1),
    "2D": RuleCase(),
    "3D": RuleCase(dims=3),
    "stride (2, 1)": RuleCase({"stride": (2, 1)}),
    "groups": RuleCase({"groups": 2}),
    "depthwise": RuleCase({"groups": CHANNELS}, out_channels=CHANNELS),
    "dilation": RuleCase({"dilation": 2, "padding": 2}),
    EVEN: RuleCase({"kernel_size": 4, "padding": "same"}),
    "reflect padding": RuleCase({"padding_mode": "reflect"}),
    "circular padding": RuleCase({"padding_mode": "circular"}),
    "replicate padding": RuleCase({"padding_mode": "replicate"}),
    TRANSPOSED: RuleCase({"stride": 2, "output_padding": 1}, transposed=True),
    "no bias": RuleCase({"bias": False}),
    "bf16": RuleCase(dtype=torch.bfloat16),
    "f64": RuleCase(dtype=torch.float64),
    "shared module": RuleCase(network=Shared),
    "one conv, two batch norms": RuleCase(network=TwoNorms),
    "functional conv": RuleCase(network=Functional),
    "control flow": RuleCase(network=Deciding),
    "parametrised weight": RuleCase(weight_norm=True),
    "output used twice": RuleCase(network=UsedTwice),
}
TOLERANCES = {torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float64: 1e-10}  # of the network's output, relative


class Refused(NamedTuple):
    """A cell that no rewriting fills. `never`: it cannot be filled by any convolution; else it is a gap."""

    reason: str
    never: bool


@dataclass(frozen=True)
class RuleRow:
    """A rule over all cases: exact (at full rank), but for the cells named.

    Args:    rank: the network's error at a low rank stays below this, in every case; None: there are no ranks.
             exact: whether there is a full rank that loses nothing.
             kernel_size, with_norm, transposed: of the network it is shown on.
             first: the rule whose block it takes back.
             elsewhere: in these cases it is the stem at which the convolution in question is rewritten, with a reason.
             strided: whether it is shown on a convolution with a stride; said: of what is exact.
    """

    cells: dict[str, Refused] = field(default_factory=dict)
    rank: float | None = None
    exact: bool = True
    kernel_size: int = 3
    with_norm: bool = True
    transposed: bool = False
    first: str | None = None
    elsewhere: dict[str, str] = field(default_factory=dict)
    strided: bool = False
    said: str = "exact"

    def cell(self, case: str) -> str:
        """What the table says: "exact", "error ≤ x" or "refused: reason"."""
        if case in self.cells:
            return f"refused: {self.cells[case].reason}"
        bound = "" if self.rank is None else f"error ≤ {self.rank:g}"
        there = "at the stem" if case in self.elsewhere else ""
        return ", ".join(part for part in (self.said if self.exact else "", bound, there) if part)


FUNCTIONAL = {"functional conv": Refused("functional convolution: there is no module to swap", never=False)}


def _row(never: dict[str, str] | None = None, **options: Any) -> RuleRow:
    cells = {case: Refused(reason, never=True) for case, reason in (never or {}).items()}
    return RuleRow(FUNCTIONAL | cells, **options)


RULE_TABLE = {
    "fold_batch_norm": _row({
        "one conv, two batch norms": "different batch norms follow it",
        "output used twice": "no batch norm alone follows it",
    }),
    "fold_branches": _row(first="expand_branches"),
    "merge_linear": _row(first="stacked"),
    "trim": _row(first="widen_kernel"),
    "fuse_activation": _row({
        "one conv, two batch norms": "no ReLU alone follows it, or it serves others too",
        "output used twice": "no ReLU alone follows it, or it serves others too",
    }, with_norm=False),
    "kernel": _row(),
    "subpixel": _row(dict.fromkeys((EVEN, "reflect padding", "circular padding", "replicate padding"),
                                   "it is not transposed"), transposed=True),
    "separable": _row({"depthwise": "depthwise: it mixes no channels, nothing to separate"}, rank=0.65),
    "asymmetric": _row({"1D": "1D: there is one axis only"}, rank=0.65),
    "bottleneck": _row({"depthwise": "depthwise: each group has one channel, none to reduce"}, rank=0.85),
    "shuffled_group": _row({"depthwise": "one input channel a group: there are no finer groups"}, rank=0.75),
    "stacked": _row(rank=0.5),
    "multi_dilated": _row(rank=0.65),
    "low_rank_pointwise": _row({
        "depthwise": "one input and one output channel a group: its rank is one already",
        EVEN: "it is no 1×1: see bottleneck",
    }, rank=0.5, kernel_size=1),
    "remove": _row(rank=0.9, exact=False),
    "prune_channels": _row(rank=0.9, elsewhere={"depthwise": "its channels are those of stem, which gives them first"}),
    "combined": _row(rank=0.8),
    "squeeze_excite": _row(),
    "pointwise_after": _row(),
    "multi_size": _row(),
    "expand_branches": _row(),
    "deform": _row({TRANSPOSED: "transposed: it spreads each input value, it has no points to sample at"}),
    "skip": _row(),
    "dense": _row(),
    "widen_kernel": _row(),
    "dilate_branch": _row(),
    "atrous": _row({
        EVEN: "its stride is 1, and no other stride stands before it",
        TRANSPOSED: "transposed: its stride makes its map finer already",
        "control flow": "the forward pass decides by values, so that its positions are not certain",
    }, strided=True, said="equal at the old positions"),
}  # fmt: skip
