"""Runs networks on calibration batches and gathers what their convolutions meet: `Responses` for the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch, Feed, seeded
from reconv.ruleset.responses import Responses, bounded, moment_bytes, most_patches
from reconv.spec import ConvSpec
from reconv.surgery import Site, fresh
from reconv.surgery.following import Following, norms_of
from reconv.surgery.norms import evaluating, statistics_kept

ROOM = 512 * 2**20  # bytes of moments that are kept at a time
PASS_MACS = 5e10  # multiply-accumulates of the convolutions in one pass over the samples of a fit
LEAST, MOST = 32, 512  # of these samples
Seen = Callable[[int, Tensor, Tensor], None]  # which run of the convolution it is, its input, its output


def served(site: Site) -> bool:
    """Whether a site's responses can be gathered: it is one convolution, of bounded moments."""
    if site.refusal or not isinstance(site.block, ConvSpec) or not bounded(site.block):
        return False
    weight = site.weight
    return weight.is_floating_point() and not weight.is_meta


def samples_for(feed: Feed, sites: Mapping[str, Site], seed: int) -> list[Batch]:
    """Samples to fit on, as many as a pass of bounded work allows."""
    calls = [call for site in sites.values() for call in site.calls]
    each = sum(call.macs for call in calls) / max(1, calls[0].input_shape[0]) if calls else 1.0
    return feed.head(int(min(MOST, max(LEAST, PASS_MACS / max(each, 1.0)))), seed)


class Lessons:
    """What the original network (the teacher) gave at each site, set against what a student meets there."""

    def __init__(self, teacher: nn.Module, batches: Sequence[Batch]) -> None:
        self.teacher, self.batches = teacher, batches

    def responses(self, student: nn.Module, site: Site, before: Sequence[Site]) -> Responses | None:
        """Moments of the student's inputs at a site that is still as it was, and what its outputs fall short there.

        Args:    before: the sites that the student has already rewritten; their batch norms follow the original's, as
                 they will in the end. Where teacher and student give maps of other sizes, or a site is
                 rewritten for the second time, the student's own output is what is to be kept.
        """
        if not served(site):
            return None
        seen, share = _empty(site), _share(site, self.batches)
        alone = not before or any(one.name == site.name for one in before)
        norms = {n.name for one in before for n in (one.norms or ((one.norm,) if one.norm else ()))}
        following, changing = Following(self.teacher), [m for n, m in norms_of(student).items() if n in norms]
        for number, batch in enumerate(self.batches):
            given: list[Tensor] = []
            if not alone:
                with following.listening(norms):
                    _run(self.teacher, batch, [(site, _keeper(given))])

            def add(run: int, x: Tensor, y: Tensor, number: int = number, given: Sequence[Tensor] = given) -> None:
                known = given[run] if run < len(given) and given[run].shape == y.shape else None
                seen.add(x, None if known is None else known - y, share, seed=number)

            with statistics_kept(changing), following.leading(student, () if alone else norms):
                _run(student, batch, [(site, add)])
        return seen


class Gathered:
    """Responses of the unedited network at its sites: gathered when asked for, several sites a pass, some kept."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], sites: Sequence[Site]) -> None:
        self.model, self.batches, self.sites = model, batches, [site for site in sites if served(site)]
        self.kept: dict[str, Responses] = {}

    def of(self, site: Site) -> Responses | None:
        """None where they cannot be had."""
        names = [each.name for each in self.sites]
        if site.name not in names:
            return None
        if site.name not in self.kept:
            self._gather(self.sites[names.index(site.name) :])
        for name, seen in self.kept.items():
            if name != site.name:
                seen.metrics.clear()  # they take as much room again
        return self.kept[site.name]

    def _gather(self, sites: Sequence[Site]) -> None:
        """Moments of the first of these sites and of as many of the next as there is room for."""
        self.kept, room = {}, float(ROOM)
        chosen: list[Site] = []
        for site in sites:
            room -= moment_bytes(site.spec, site.dtype)
            if room < 0 and chosen:
                break
            chosen.append(site)
            self.kept[site.name] = _empty(site)
        for number, batch in enumerate(self.batches):
            _run(self.model, batch, [(site, self._adder(site, number)) for site in chosen])

    def _adder(self, site: Site, number: int) -> Seen:
        seen, share = self.kept[site.name], _share(site, self.batches)

        def add(run: int, x: Tensor, y: Tensor) -> None:
            seen.add(x, None, share, seed=number)

        return add


def _share(site: Site, batches: Sequence[Batch]) -> int:
    """Patches that a run of the site is to give."""
    return ceil(most_patches(site.spec) / (len(batches) * max(1, len(site.calls))))


def _keeper(given: list[Tensor]) -> Seen:
    return lambda run, x, y: given.append(y.clone())


def _empty(site: Site) -> Responses:
    """Nothing seen yet; outputs count as the batch norms behind them scale them, summed over the site's runs."""
    norms = site.norms or ((site.norm,) if site.norm else ())
    outputs = torch.stack([norm.scale.square() for norm in norms]).sum(0) if norms else None
    return Responses(site.spec, None if outputs is None else outputs.reshape(site.spec.groups, -1))


class _Enough(BaseException):
    """All that was to be seen has been seen: the rest of the forward pass is spared."""


@seeded(0)  # the user's random numbers stay as they are
def _run(model: nn.Module, batch: Batch, watched: Sequence[tuple[Site, Seen]]) -> None:
    """Runs a network on a batch, up to the last run of the watched sites."""
    left = sum(max(1, len(site.calls)) for site, _ in watched)
    handles = []

    def hook(seen: Seen) -> Callable[..., None]:
        runs = 0

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            nonlocal left, runs
            seen(runs, args[0] if args else kwargs["input"], output)
            runs += 1
            left -= 1
            if left == 0:
                raise _Enough

        return see

    for site, seen in watched:
        module = model.get_submodule(site.names[0] if site.names else site.name)
        handles.append(module.register_forward_hook(hook(seen), with_kwargs=True, prepend=True))
    try:
        with torch.no_grad(), evaluating(model):
            model(*fresh(batch.inputs))
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
