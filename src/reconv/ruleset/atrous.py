"""`atrous`: the stride moved into the dilation of all that follows, for a finer map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import seeded
from reconv.errors import ConvError, on_one_line
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.prune_channels import UNKNOWN
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec, parse
from reconv.surgery.clone import clone, fresh, noise
from reconv.surgery.grids import Fineness, Finer, Grids, Step
from reconv.surgery.kin import Also, change, pool_grid, pool_kind, pool_text, text_of
from reconv.surgery.outputs import distance, tensors_in
from reconv.surgery.sites import Site
from reconv.surgery.spaces import unchanged
from reconv.surgery.surroundings import Surroundings
from reconv.surgery.trace import is_conv

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Atrous:
    """The convolution moves on by 1 instead of s, and every convolution and pooling behind it reads s times as far.

        stride' = 1;    behind it  dilation' = s · dilation, padding' = s · padding;    y'[n, o, s·p] = y[n, o, p]

    Exact at the old positions: every map behind it is s times as fine, and at each s-th position it is what it was. A
    pooling over all positions then averages over more of them, so that what a classifier says may change a little.
    Where a convolution has no stride but a pooling before it has, the pooling is the one that moves on by 1; strides
    beside it that meet it in a sum or a concatenation go with it, as a residual block's shortcut. Reflected, replicated
    and circular padding behind it is served where the lengths of the known run let it be exact.

    Source:  Holschneider et al. 1989 (algorithme à trous); Chen et al. 2014 (DeepLab), arXiv:1412.7062;
             Yu et al. 2017 (dilated residual networks), arXiv:1705.09914
    """

    name = "atrous"
    group = "denser"
    source = "Holschneider et al. 1989; Chen et al. 2014, arXiv:1412.7062; Yu et al. 2017, arXiv:1705.09914"

    def refuse(self, site: Site) -> str | None:
        if reason := unfit(site):
            return reason
        if site.spec.transposed:
            return "transposed: its stride makes its map finer already"
        found = _found(site)
        if isinstance(found, str):
            return found
        proposal, finer, around = found
        key = f"{proposal.block} {proposal.also}"
        if key not in around.verdicts:
            around.verdicts[key] = _apart(site, proposal, finer, around)
        return around.verdicts[key]

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        found = _found(site)
        assert not isinstance(found, str)  # must_serve has seen to it
        return (found[0],)

    def init(self, site: Site, proposal: Proposal, activations: object = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        assert site.around is not None  # it was looked into
        return Weights(dict(site.tensors), 0.0, _tensors(site.around, proposal.also))


def _found(site: Site) -> tuple[Proposal, Finer, Surroundings] | str:
    """The edit of the site's stride and of all behind it; or why there is none."""
    around = site.around
    if around is None:
        return UNKNOWN
    grids = around.grids
    if isinstance(grids, str):
        return grids
    start = _strides(grids, site.name)
    if not start:
        return "its stride is 1, and no other stride stands before it"
    finer = grids.finer(start)
    if isinstance(finer, str):
        return finer
    leader = _leader(grids, finer)
    if leader != site.name:
        moved = " and ".join(s.module for s in grids.steps if s.module in finer.moved)
        return (
            f"the stride is that of {moved}: it is moved at {leader}" if leader else f"{moved} leads to no convolution"
        )
    texts = _texts(grids, finer, around.model)
    if isinstance(texts, str):
        return texts
    block = parse(texts.pop(site.name, str(site.spec)))
    return Proposal("atrous", block, also=tuple(texts.items())), finer, around


def _strides(grids: Grids, name: str) -> set[str]:
    """The module itself where it has a stride, else the nearest ones before it that do."""
    runs = grids.runs(name)
    if any(max(step.stride, default=1) > 1 for step in runs):
        return {name}
    return {step.module for step in grids.strides_before(value for run in runs for value, _ in run.inputs)}


def _leader(grids: Grids, finer: Finer) -> str | None:
    """The convolution whose edit it is: the first with a stride, else the first behind the poolings."""
    convs = dict.fromkeys(step.module for step in grids.steps if step.conv)
    own = next((name for name in convs if name in finer.moved), None)
    return own or next((name for name in convs if len(s := _strides(grids, name)) > 0 and s <= finer.moved), None)


def _texts(grids: Grids, finer: Finer, model: nn.Module) -> dict[str, str] | str:
    """What every module becomes whose stride, padding or dilation changes."""
    texts: dict[str, str] = {}
    for step in grids.steps:
        if not step.conv and not step.stride:
            continue
        ((value, _),) = step.inputs
        fine = finer.values.get(value, (1,) * len(grids.shapes[value]))
        module = model.get_submodule(step.module)
        text = _stretched(module, fine, step.module in finer.moved)
        if texts.setdefault(step.module, text) != text:
            return f"{step.module} runs on maps of which not all become as fine"
    return {name: text for name, text in texts.items() if text != text_of(model.get_submodule(name))}


def _stretched(module: nn.Module, fine: Fineness, moved: bool) -> str:
    """The text of a convolution or a pooling whose input is so fine."""
    if not is_conv(module):
        grid = pool_grid(module)
        assert grid is not None  # it is a pooling
        kernel, stride, padding, dilation = grid
        fine = fine[len(fine) - len(kernel) :]
        padding = tuple((lo * f, hi * f) for (lo, hi), f in zip(padding, fine, strict=True))
        dilation = tuple(d * f if k > 1 else d for k, d, f in zip(kernel, dilation, fine, strict=True))
        return pool_text(pool_kind(module), (kernel, (1,) * len(kernel) if moved else stride, padding, dilation))
    spec = ConvSpec.of(module)
    fine = fine[len(fine) - spec.spatial_dims :]
    return str(spec.replace(
        stride=1 if moved else spec.stride,
        padding=[(lo * f, hi * f) for (lo, hi), f in zip(spec.padding, fine, strict=True)],
        dilation=[d * f if k > 1 else d for k, d, f in zip(spec.kernel_size, spec.dilation, fine, strict=True)],
        output_padding=[n * f for n, f in zip(spec.output_padding, fine, strict=True)] if spec.transposed else 0,
    ))  # fmt: skip


def _tensors(around: Surroundings, also: Also) -> dict[str, dict[str, Tensor]]:
    return {name: unchanged(around.model, name)[1] for name, _ in also}


# -- held against a run -----------------------------------------------------------------------------------
def _apart(site: Site, proposal: Proposal, finer: Finer, around: Surroundings) -> str | None:
    """Where the network with the edit is at an old position not what it was; None: nowhere.

    What was concluded from one run is so held against another, on inputs that are nowhere alike.
    """
    grids = around.grids
    assert not isinstance(grids, str)  # the proposal was made from it
    also = ((site.name, str(proposal.block)), *proposal.also)
    tensors = {site.name: dict(site.tensors)} | _tensors(around, proposal.also)
    steps = [s for s in grids.steps if s.output in finer.values and s.output not in finer.ended and _windowed(s)]
    try:
        with torch.no_grad(), seeded(0):
            inputs = tuple(noise(x) for x in around.inputs)
            old, olds = _watched(clone(around.model).eval(), steps, inputs)
            new, news = _watched(change(clone(around.model), also, tensors).eval(), steps, inputs)
    except ConvError as error:
        return f"with it, the network fails: {error}"
    except Exception as error:
        return f"with it, the network fails: {on_one_line(error)}"
    if len(old) != len(new):
        return "with it, the network runs its modules otherwise"
    for step, before, after in zip(steps, old, new, strict=True):
        if reason := _differs(step.module, before, after, finer.values[step.output], compared=True):
            return reason
    for value, before, after in zip(grids.results, olds, news, strict=True):
        ended = value is None or value in finer.ended
        fine = finer.values.get(-1 if value is None else value, (1,) * before.ndim)
        if reason := _differs("the network", before, after, fine, compared=not ended):
            return reason
    return None


def _windowed(step: Step) -> bool:
    return bool(step.module) and (step.conv or bool(step.stride))


def _watched(model: nn.Module, steps: Sequence[Step], inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """What the modules of these steps give, run by run, and the network's own outputs."""
    seen: list[Tensor] = []
    watched = {id(m): m for m in (model.get_submodule(step.module) for step in steps)}
    handles = [m.register_forward_hook(lambda m, args, out: seen.append(out.clone())) for m in watched.values()]
    try:
        return seen, tensors_in(model(*fresh(inputs)))
    finally:
        for handle in handles:
            handle.remove()


def _differs(name: str, before: Tensor, after: Tensor, fine: Fineness, compared: bool) -> str | None:
    """How a finer map is not what it was at the old positions."""
    lengths = list(zip(before.shape, after.shape, fine, strict=True)) if before.ndim == after.ndim else [(1, 0, 1)]
    if any(not f * (old - 1) < new <= f * old for old, new, f in lengths):
        was, now = ("×".join(map(str, t.shape)) for t in (before, after))
        return f"{name} would give {now} numbers for {was}, not all of the old positions among them"
    apart = distance(after[tuple(slice(None, None, f) for f in fine)], before) if compared else 0.0
    if not apart <= TOLERANCE.get(before.dtype, 0.0):
        return f"{name} would not give at the old positions what it gave: {apart:.2g} of it"
    return None
