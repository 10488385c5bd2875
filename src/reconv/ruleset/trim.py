"""`trim`: borders of zeros cut off the kernel."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.additions import cut
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.surgery.sites import Site

Ends = tuple[list[int], list[int]]  # taps at the low and at the high end of each axis


class Trim:
    """The kernel without the taps at its border that are zero in all channels, the padding smaller by as much.

        w'[o, c, k] = w[o, c, k + n];    lo' = lo − d·n_lo, hi' = hi − d·n_hi

    Exact. A border stays where there is no padding that could go with it, since padding cannot be negative.

    Source:  what `widen_kernel` (Ding et al. 2022, arXiv:2203.06717) puts in, taken back
    """

    name = "trim"
    group = "exact"
    source = "Ding et al. 2022, arXiv:2203.06717, taken back"

    def refuse(self, site: Site) -> str | None:
        if reason := unfit(site):
            return reason
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
        return (Proposal(self.name, cut(site.spec, *_removable(site.spec, _zero_borders(site)))),)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        low, high = _removable(site.spec, _zero_borders(site))
        inner = [slice(a, k - b) for k, a, b in zip(site.spec.kernel_size, low, high, strict=True)]
        return Weights({**site.tensors, "weight": site.weight[:, :, *inner].clone()}, error=0.0)


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
