"""`kernel`: the same convolution, computed by another kernel than PyTorch's choice."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reconv.ops.dispatch import choose
from reconv.ops.problem import of_spec
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.surgery.sites import ConvCall, Site


class OwnKernel:
    """The convolution itself, in a layer that takes the fastest kernel that was measured for its problem.

        y = w * x        the same weights, the same sums, perhaps in another order

    Exact to rounding. It is refused where PyTorch's own choice was measured to be the fastest.

    Source:  the table of results of this processor's instruction set, reconv.ops.results
    """

    name = "kernel"
    group = "exact"
    eager = True
    source = "reconv.ops.results"

    def refuse(self, site: Site) -> str | None:
        if site.ours:
            return "its layer takes the fastest kernel already"
        if reason := unfit(site):
            return reason
        if site.device.type != "cpu":
            return f"there are kernels for the CPU; it is on {site.device.type}"
        if not any(_gains(site.spec, call, layout) for call in site.calls for layout in (False, True)):
            return "PyTorch's own kernel is the fastest that was measured, or nothing like it was"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        return (Proposal(self.name, site.block),)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        return Weights(dict(site.tensors), error=0.0)


def _gains(spec: ConvSpec, call: ConvCall, channels_last: bool) -> bool:
    """Whether a kernel that is not PyTorch's own choice would be taken for this run."""
    asked = of_spec(spec, call.input_shape, channels_last, call.dtype, torch.get_num_threads())
    return asked is not None and choose(asked).name != "torch"
