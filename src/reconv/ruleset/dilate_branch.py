"""`dilate_branch`: beside the kernel, one of the same size with its taps farther apart."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.additions import Addition, Tensors, beside, fitting, kept, spread, too_small, wider, zeros
from reconv.spec import Block, Branches, ConvSpec
from reconv.surgery.sites import Site

FACTORS = (2, 3)  # times the dilation


class DilateBranch(Addition):
    """The convolution plus one whose dilation is a multiple of its own: a wider view at the same number of taps.

        y = w * x + b + v *_{n·d} x,    v = 0 at first

    Exact to the bit, at first. Beside a 1×1 stands a dilated kernel of three taps an axis. Reflected and circular
    padding cannot be wider than the map: what does not fit the known runs is not offered.

    Source:  Yu & Koltun 2015, arXiv:1511.07122
    """

    name = "dilate_branch"
    source = "Yu & Koltun 2015, arXiv:1511.07122"

    def hindered(self, site: Site) -> str | None:
        return None if fitting(site, _dilated, FACTORS) else too_small(site)

    def blocks(self, site: Site) -> Iterable[Block]:
        return (beside(site, branch) for branch in fitting(site, _dilated, FACTORS))

    def start(self, site: Site, block: Block) -> Tensors:
        tensors = kept(site, "0.")
        match block:
            case Branches(blocks=(_, ConvSpec() as branch)):
                tensors["1.weight"] = zeros(branch)
        return tensors


def _dilated(spec: ConvSpec, factor: int) -> ConvSpec:
    return spread(wider(spec, 1) if spec.pointwise else spec, factor).replace(bias=False)
