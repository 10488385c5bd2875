"""`trim`: borders of zeros cut off the kernel, and channels that do nothing taken out."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from reconv.ruleset.additions import cut
from reconv.ruleset.dead_channels import without_dead
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.surgery.sites import Site

Ends = tuple[list[int], list[int]]  # taps at the low and at the high end of each axis


class Trim:
    """The kernel without the taps at its border that are zero in all channels, the padding smaller by as much.

        w'[o, c, k] = w[o, c, k + n];    lo' = lo − d·n_lo, hi' = hi − d·n_hi

    Exact. A border stays where there is no padding that could go with it, since padding cannot be negative. A channel
    goes, from all modules that have it, where nothing reads it (its weights are zero in all that take it), or where
    nothing makes it depend on the input (all weights that give it are zero) and the biases of its readers can do what
    its constant does: where that is 0 behind norm and activation, or no zeros are padded to it.

    Source:  what `widen_kernel` (Ding et al. 2022, arXiv:2203.06717) puts in, taken back; channels that training has
             made zero: Liu et al. 2017 (network slimming), arXiv:1708.06519
    """

    name = "trim"
    group = "exact"
    source = "Ding et al. 2022, arXiv:2203.06717, taken back; Liu et al. 2017, arXiv:1708.06519"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason or not (reason := self._bordered(site)):
            return reason
        return None if without_dead(site) else reason

    def _bordered(self, site: Site) -> str | None:
        """Why no border can go."""
        if site.spec.pointwise:
            return "1×1: its kernel has no border"
        if "weight" not in site.tensors or not bool(site.weight.any()):
            return "its weight is all zeros"
        zeros = _zero_borders(site)
        if not any(map(any, zeros)):
            return "no border of its kernel is zero in all channels"
        if not any(map(any, _removable(site.spec, zeros))):
            return "its border of zeros has no padding that could go with it"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        return (self._made(site)[0],)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        mine, weights = self._made(site)
        if proposal != mine:
            raise foreign(self, site, proposal)
        return weights

    def _made(self, site: Site) -> tuple[Proposal, Weights]:
        """The convolution without its borders, and all that has its channels without those that are dead."""
        dead = without_dead(site)
        spec, tensors = site.spec, dict(site.tensors)
        also: tuple[tuple[str, str], ...] = ()
        others: dict[str, dict[str, Tensor]] = {}
        if dead is not None:
            spec, tensors = ConvSpec.parse(dead.texts[site.name]), dict(dead.tensors[site.name])
            also = tuple((name, text) for name, text in dead.texts.items() if name != site.name)
            others = {name: dead.tensors[name] for name, _ in also}
        if self._bordered(site) is None:
            low, high = _removable(site.spec, _zero_borders(site))
            inner = [slice(a, k - b) for k, a, b in zip(spec.kernel_size, low, high, strict=True)]
            spec, tensors["weight"] = cut(spec, low, high), tensors["weight"][:, :, *inner].clone()
        channels = None if dead is None else dead.channels
        return Proposal(self.name, spec, also=also), Weights(tensors, 0.0, others, channels)


def _zero_borders(site: Site) -> Ends:
    """Taps of zeros at the ends of each axis; the weight must not be all zeros."""
    weight, low, high = site.weight, [], []
    for axis in range(2, weight.ndim):
        used = weight.transpose(0, axis).flatten(1).ne(0).any(1).nonzero().flatten()
        low.append(int(used[0]))
        high.append(weight.shape[axis] - 1 - int(used[-1]))
    return low, high


def _removable(spec: ConvSpec, zeros: Ends) -> Ends:
    """Those that have padding which goes with them."""
    low = [min(n, lo // d) for n, (lo, _), d in zip(zeros[0], spec.padding, spec.dilation, strict=True)]
    high = [min(n, hi // d) for n, (_, hi), d in zip(zeros[1], spec.padding, spec.dilation, strict=True)]
    return low, high
