"""What the report shows of both networks besides their cost; gathered at the end of a run, while both are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reconv.costing.middle import Window, effective_fields, theoretical_fields, within
from reconv.data import Feed, seeded
from reconv.errors import ConvError
from reconv.planning.plan import Plan
from reconv.planning.table import Progress
from reconv.reporting.seen import Array, Field, Seen, View
from reconv.rewriting.apply import altering, apply
from reconv.ruleset import RULES
from reconv.surgery import clone, fresh
from reconv.surgery.features import strongest
from reconv.surgery.outputs import ratio, squared_distance
from reconv.surgery.trace import can_hook
from reconv.surgery.watched import watched

SAMPLES, VIEWS, CHANNELS = 8, 4, 6  # that are looked at; layers that are drawn; channels of each
NUMBERS = 2**19  # of input whose gradients are asked for at once
T = TypeVar("T")
Networks = tuple[nn.Module, nn.Module]  # the original and the rewritten one


def look(model: nn.Module, student: nn.Module, plan: Plan, inputs: Sequence[Any], data: Feed | None,
         sites: Sequence[str], seed: int = 0) -> Seen:  # fmt: skip
    """What the layers of both networks make of a few samples. What cannot be had is noted with its reason.

    Args:    data: where the samples come from; None: `inputs` are looked at. sites: the convolutions that run.
    """
    missing: dict[str, str] = {}
    with seeded(seed):
        samples = _noted(missing, "samples", lambda: _samples(inputs, data, seed)) or []
        both = (clone(model).eval(), clone(student).eval())
        places = _noted(missing, "layers", lambda: _places(both, plan, samples[0], sites)) if samples else None
        if not places:
            return Seen(missing=missing or {"layers": "no layer of both networks gives the same shape"})
        names = list(dict.fromkeys(places.values()))
        apart = _noted(missing, "distances", lambda: _apart(both, names, samples)) or {}
        shown = _shown(names, {places[edit.site] for edit in altering(plan, RULES) if edit.site in places})
        maps = _noted(missing, "feature maps", lambda: _maps(both, shown, samples[0])) or {}
        fields = _noted(missing, "receptive fields", lambda: _fields(both, shown, samples)) or {}
    first = samples[0][0]
    return Seen(
        "samples held out of the data" if data is not None else "the example inputs", len(samples), _array(first[0]),
        tuple(View(site, *fields.get(place, (None, None)), maps.get(place, ()))
              for site, place in places.items() if place in shown),
        {site: apart[place] for site, place in places.items() if place in apart}, missing=missing,
    )  # fmt: skip


def scores_alone(model: nn.Module, plan: Plan, inputs: Sequence[Any], data: object,
                 evaluate: Callable[[nn.Module], float], seed: int = 0,
                 progress: Progress | None = None) -> tuple[dict[str, float], dict[str, str]]:  # fmt: skip
    """By layer, the score of the network with that layer rewritten alone, not recovered; and why others have none."""
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    sites = list(dict.fromkeys(edit.site for edit in altering(plan, RULES)))
    for done, site in enumerate(sites):
        if progress is not None:
            progress("scores", done, len(sites))
        alone = replace(plan, edits=tuple(edit for edit in plan.edits if edit.site == site))
        try:
            scores[site] = float(evaluate(apply(model, alone, tuple(inputs), data, seed=seed)))
        except ConvError as error:
            missing[f"score of {site}"] = str(error)
    return scores, missing


# -- which samples and layers -----------------------------------------------------------------------------
def _samples(inputs: Sequence[Any], data: Feed | None, seed: int) -> list[tuple[Any, ...]]:
    """The inputs of one sample each."""
    if data is None:
        return [tuple(inputs)]
    return [batch.rows(slice(i, i + 1)).inputs for batch in data.head(SAMPLES, seed) for i in range(len(batch))]


def _places(both: Networks, plan: Plan, sample: Sequence[Any], sites: Sequence[str]) -> dict[str, str]:
    """By site, in the order of their runs, the module whose outputs mean the same in both networks.

    What a block absorbed runs before it or behind it; what the last of them gives, the block gives.
    """
    together = {site: {site} for site in sites}
    for edit in plan.edits:
        together.setdefault(edit.site, {edit.site}).update(edit.absorbs)
    theirs, ours = (dict(net.named_modules(remove_duplicate=False)) for net in both)
    names = sorted(name for name in set().union(*together.values())
                   if all(name in net and can_hook(net[name]) for net in (theirs, ours)))  # fmt: skip
    then, now = (_shapes(net, names, sample) for net in both)
    order = list(then)
    found = {}
    for site, group in together.items():
        last = max((name for name in group if name in then), key=order.index, default=None)
        if last is not None and then[last] == now.get(last):
            found[site] = last
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[1])))


@torch.no_grad()
def _shapes(net: nn.Module, names: Sequence[str], sample: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """In the order in which they ran."""
    with watched(net, names) as seen:
        net(*fresh(sample))
    return {name: tuple(tensor.shape) for name, tensor in seen.items()}


def _shown(names: Sequence[str], changed: Collection[str]) -> list[str]:
    """Those to draw, in their order: the changed ones, and others where there are few of them."""
    first = _spread([name for name in names if name in changed], VIEWS)
    others = _spread([name for name in names if name not in changed], VIEWS - len(first))
    return sorted({*first, *others}, key=names.index)


def _spread(names: Sequence[str], most: int) -> list[str]:
    """So many of them, evenly over the depth, the last among them."""
    count = min(most, len(names))
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]


# -- what they give ---------------------------------------------------------------------------------------
@torch.no_grad()
def _apart(both: Networks, names: Sequence[str], samples: Sequence[Any]) -> dict[str, float]:
    """Sample by sample, since all layers' outputs of one are much already."""
    sums = {name: [0.0, 0.0] for name in names}
    with watched(both[0], names) as theirs, watched(both[1], names) as ours:
        for sample in samples:
            for net in both:
                net(*fresh(sample))
            for name in theirs.keys() & ours.keys():
                for i, part in enumerate(squared_distance(ours[name], theirs[name])):
                    sums[name][i] += part
            theirs.clear()
            ours.clear()
    return {name: ratio(*pair) for name, pair in sums.items()}


@torch.no_grad()
def _maps(both: Networks, names: Sequence[str], sample: Sequence[Any]
          ) -> dict[str, tuple[tuple[int, Array, Array], ...]]:  # fmt: skip
    """The channels that vary most in the original network."""
    with watched(both[0], names) as theirs, watched(both[1], names) as ours:
        for net in both:
            net(*fresh(sample))
    found = {}
    for name in names:
        if theirs[name].ndim > 2 and theirs[name][0, 0].numel() > 1:
            then, now = theirs[name][0].double(), ours[name][0].double()
            found[name] = tuple((c, _array(then[c]), _array(now[c])) for c in strongest(then)[:CHANNELS])
    return found


def _fields(both: Networks, names: Sequence[str], samples: Sequence[Any]
            ) -> dict[str, tuple[Field | None, Field | None]]:  # fmt: skip
    size = samples[0][0][0].numel()
    few = samples[: max(1, NUMBERS // size)]
    columns = zip(*few, strict=True)
    inputs = tuple(torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in columns)
    then, now = ((effective_fields(net, inputs, names), theoretical_fields(net, samples[0], names)) for net in both)
    return {name: (_field(name, *then), _field(name, *now)) for name in names}


def _field(name: str, heats: Mapping[str, Tensor], windows: Mapping[str, Window | None]) -> Field | None:
    heat, window = heats.get(name), windows.get(name)
    if heat is None or heat.ndim == 0:
        return None
    return Field(_array(heat), within(heat), window if window and len(window) == heat.ndim else None)


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().float().numpy()
    return array


def _noted(missing: dict[str, str], part: str, make: Callable[[], T]) -> T | None:
    """A finished job is worth more than a picture: what fails is noted."""
    try:
        return make()
    except Exception as error:
        missing[part] = " ".join(f"{type(error).__name__}: {error}".split())
        return None
