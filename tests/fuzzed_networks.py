"""Random networks, each through all that reconv does: summary, plan, apply, save, load, export.

A `Made` is drawn from a `random.Random`, as the calls of fuzzed.py are, and its text is its own repro.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from fakes import FakeTarget
from fuzzed_folds import Wrong
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import reconv
from reconv.costing.render import from_dict
from reconv.rewriting.store import save_run
from reconv.ruleset import rules_named
from reconv.spec import ConvSpec, parse
from reconv.spec.geometry import axis_length
from reconv.surgery import find_sites

EQUAL = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the norm of the output
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEAN = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
CALL = (F.conv1d, F.conv2d, F.conv3d)
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
STRONGER, SMALLER = rules_named("stronger"), rules_named("smaller")
ABOUT = (1.05, 1.25, 2.0)  # of the error that a plan states; more is wrong


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


# -- drawing one ----------------------------------------------------------------------------------
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


# -- what must hold -------------------------------------------------------------------------------
def nothing_remembered() -> Any:
    """A plan is made anew, whatever was planned before."""
    return patch("reconv.planning.remembered.ENABLED", False)


def check(made: Made, exports: bool = False) -> Counter[str]:
    """Raises Wrong where a step does not keep its promise; the steps that were compared."""
    try:
        return Counter(_checked(made, exports))
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {error}: {made}") from error


def _checked(made: Made, exports: bool) -> Iterator[str]:
    dtype = getattr(torch, made.dtype)
    model = Net(made).to(dtype)
    x = torch.randn(made.shape, generator=torch.Generator().manual_seed(made.seed)).to(dtype)
    data = torch.randn(12, *made.shape[1:], generator=torch.Generator().manual_seed(made.seed + 1)).to(dtype)
    want, many = _out(model, x), _out(model, data)
    if made.train:
        model.train()
        next(model.children()).eval()
    before = _everything(model)
    yield from _summarised(model, x)
    tried = {"exact": _exact, "stronger": _stronger}
    if made.seed % 3 == 0:
        tried["smaller"] = (_smaller, _within_error)[made.seed % 2]
    exported = exports and list(tried)[made.seed % len(tried)]
    for what, run in tried.items():
        plan, student, step = run(made, model, x, data, want, many)
        yield step
        yield from _stored(made, model, plan, student, x, data)
        if exported == what:
            yield from _exported(student, x, made)
    _must(_everything(model) == before, "the original is not what it was")
    yield "the original is untouched"


def _out(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def _must(holds: bool, said: str) -> None:
    if not holds:
        raise Wrong(said)


def _everything(model: nn.Module) -> list[object]:
    """The bits of its state, the flags and hooks of its modules."""
    state = [(n, t.detach().numpy().tobytes(), t.requires_grad) for n, t in model.state_dict(keep_vars=True).items()]
    flags = [
        (n, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
    ]
    return [*state, *flags]


def _apart(want: Tensor, got: Tensor) -> float:
    _must(want.shape == got.shape and want.dtype == got.dtype, f"{got.dtype} {tuple(got.shape)}")
    return float((want - got).norm() / want.norm().clamp_min(1e-12))


def _summarised(model: nn.Module, x: Tensor) -> Iterator[str]:
    """As many MACs as PyTorch counts; through JSON and back."""
    told = reconv.summary(model, x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _out_as_is(model, x)
    flops = counter.get_flop_counts()["Global"]
    theirs = sum(n for op, n in flops.items() if "convolution" in str(op)) // 2, sum(flops.values()) // 2
    _must(
        (told.total.macs, told.network.macs) == theirs, f"MACs {told.total.macs, told.network.macs}, PyTorch's {theirs}"
    )
    again = from_dict(json.loads(json.dumps(told.to_dict())))
    _must(again.to_dict() == told.to_dict(), "the summary's JSON")
    for row in told.rows:
        _must(parse(str(row.spec)) == row.spec, f"the text of {row.spec}")
    yield "summary"


def _out_as_is(model: nn.Module, x: Tensor) -> None:
    flags = [(m, m.training) for m in model.modules()]
    model.eval()(x)
    for module, flag in flags:
        module.training = flag


Planned = tuple[reconv.Plan, nn.Module, str]  # the step's name last


def _made_twice(model: nn.Module, x: Tensor, *args: Any, **options: Any) -> reconv.Plan:
    """The same seed gives the same plan; its JSON gives it back."""
    plan, again = (reconv.plan(model, x, *args, target=FakeTarget(), **options) for _ in range(2))
    _must(plan.text() == again.text(), "the same seed gives another plan")
    _must(reconv.Plan.from_dict(json.loads(plan.text())) == plan, "the plan's JSON gives another plan")
    return plan


def _exact(made: Made, model: nn.Module, x: Tensor, data: Tensor, want: Tensor, many: Tensor) -> Planned:
    plan = _made_twice(model, x, rules="exact")
    student = reconv.apply(model, plan, x)
    for one, other in ((want, _out(student, x)), (many, _out(student, data))):
        _must(_apart(one, other) <= EQUAL[x.dtype], f"exact rules are {_apart(one, other):.2g} apart: {_said(plan)}")
    return plan, student, "exact rules equal"


def _stronger(made: Made, model: nn.Module, x: Tensor, data: Tensor, want: Tensor, many: Tensor) -> Planned:
    """The rules in turn at every convolution that they serve, their proposals in turn."""
    edits, turn = [], cycle(STRONGER[len(many) % 3 :] + STRONGER[: len(many) % 3])
    for site in find_sites(model, x).sites:
        rule = next(turn)
        if rule.refuse(site) is None:
            offers = list(rule.propose(site))
            chosen = offers[len(edits) % len(offers)]
            edits.append(reconv.Edit(site.name, rule.name, chosen.block, absorbs=chosen.absorbs))
    plan = reconv.Plan.from_dict(json.loads(reconv.Plan(edits=tuple(edits)).text()))
    student = reconv.apply(model, plan, x)
    for one, other in ((want, _out(student, x)), (many, _out(student, data))):
        _must(_apart(one, other) <= EQUAL[x.dtype], f"stronger rules are {_apart(one, other):.2g} apart: {_said(plan)}")
    return plan, student, "stronger rules equal"


def _smaller(made: Made, model: nn.Module, x: Tensor, data: Tensor, want: Tensor, many: Tensor) -> Planned:
    """A budget of MACs: it is met or it is said why not."""
    plan, student, near = _fitted(made, model, x, data, many, "macs=0.8", ("exact",))
    share = reconv.summary(student, x).network.macs / reconv.summary(model, x).network.macs
    _must(not plan.met or share <= 0.8, f"the budget is said to be met, with {share:.3g} of the MACs: {_said(plan)}")
    return plan, student, f"smaller rules keep the budget, {near}"


def _within_error(made: Made, model: nn.Module, x: Tensor, data: Tensor, want: Tensor, many: Tensor) -> Planned:
    """A budget of error alone: whatever stays within it is applied."""
    plan, student, near = _fitted(made, model, x, data, many, "error=0.1", ())
    return plan, student, f"smaller rules within an error, {near}"


def _fitted(made: Made, model: nn.Module, x: Tensor, data: Tensor, many: Tensor, budget: str,
            rules: tuple[str, ...]) -> Planned:  # fmt: skip
    """A few of the smaller rules at a few sites; the network's error is the one that the plan states, about: the
    search fits each layer to the unedited network, `apply` to the network as it has become.
    """
    r = Random(made.seed)
    names = [site.name for site in find_sites(model, x).sites]
    few = [rule.name for rule in r.sample(SMALLER, 3)]
    plan = _made_twice(
        model, x, budget, data=data, rules=(*rules, *few), sites=r.sample(names, min(2, len(names))) or "*"
    )
    student = reconv.apply(model, plan, x, data)
    _must(plan.met or bool(plan.reason), "the budget is not met, and nothing says why")
    apart, stated = _apart(many, _out(student, data)), plan.measured.error if plan.measured else 0.0
    near = next((times for times in ABOUT if apart <= times * stated + 1e-4), None)
    _must(near is not None, f"the error is {apart:.5g}, stated {stated:.5g}: {_said(plan)}")
    return plan, student, f"at most {near} of the stated"


def _said(plan: reconv.Plan) -> str:
    return "; ".join(
        f"{e.site} {e.rule} {e.block}{' absorbs ' + ','.join(e.absorbs) if e.absorbs else ''}" for e in plan.edits
    )


def _stored(
    made: Made, model: nn.Module, plan: reconv.Plan, student: nn.Module, x: Tensor, data: Tensor
) -> Iterator[str]:
    """A run folder gives the same bits back, and so does the plan applied again."""
    again = reconv.apply(
        model, reconv.Plan.from_dict(json.loads(plan.text())), x, None if plan.fit == "weights" else data
    )
    mine, theirs = student.state_dict(), again.state_dict()
    _must(mine.keys() == theirs.keys(), "applied again: other names")
    _must(all(torch.equal(mine[n], theirs[n]) for n in mine), f"applied again: other bits: {_said(plan)}")
    with tempfile.TemporaryDirectory() as folder:
        save_run(folder, model=student, plan=plan, config={})
        loaded = reconv.load(folder, base=Net(made).to(x.dtype))
    _must(torch.equal(_out(loaded, x), _out(student, x)), f"loaded: other bits: {_said(plan)}")
    yield "stored and applied again: the same bits"


def _exported(student: nn.Module, x: Tensor, made: Made) -> Iterator[str]:
    """The file's own outputs are compared by `export`."""
    suffix = ("onnx", "pt2")[made.seed % 2] if made.dtype == "float32" else "pt2"
    with tempfile.TemporaryDirectory() as folder:
        report = reconv.export(student, x, Path(folder) / f"net.{suffix}")
    _must(report.max_abs_error <= report.tolerance, f"exported: {report.max_abs_error}")
    yield f"exported as .{suffix}"
