"""What must hold of a random network (fuzzed_networks.py): `check` takes it through all that reconv does.

That is summary, plan, apply, save, load and export; the original stays as it was.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from fakes import FakeTarget
from fuzzed_bounds import Wrong
from fuzzed_networks import Made, Net
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import reconv
from reconv.costing.render import from_dict
from reconv.rewriting.store import save_run
from reconv.ruleset import rules_named
from reconv.spec import parse
from reconv.surgery import find_sites

EQUAL = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the norm of the output
STRONGER, SMALLER = rules_named("stronger"), rules_named("smaller")
ABOUT = (1.0, 1.05, 1.25, 2.0)  # of the error that a plan states; more is wrong


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
