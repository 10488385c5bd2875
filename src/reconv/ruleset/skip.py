"""`skip`: a shortcut beside a convolution, or around a whole module."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.additions import Addition, Tensors, beside, centre, kept, zeros
from reconv.ruleset.stages import around, no_stage
from reconv.spec import Block, Branches, ConvSpec
from reconv.surgery.sites import Site


class Skip(Addition):
    """The convolution plus a shortcut of its input, each channel with a weight, or mixed by a 1×1.

        y = w * x + b + a ⊙ x          where as many channels go in as come out, and the map keeps its size
        y = w * x + b + p * x          else: a 1×1 with the stride; a = 0, p = 0 at first
        y = f(x) + a ⊙ x               around a whole module of several convolutions, or with p

    Exact to the bit, at first. Around a module it is residual learning. Where the padding is too small for a map of the
    1×1 to fit, the shortcut of a convolution has as many taps as it needs.

    Source:  He et al. 2015, arXiv:1512.03385
    """

    name = "skip"
    source = "He et al. 2015, arXiv:1512.03385"
    whole = True  # it serves whole modules, too

    def refuse(self, site: Site) -> str | None:
        return no_stage(site) if site.modules else super().refuse(site)

    def blocks(self, site: Site) -> Iterable[Block]:
        if site.modules:
            yield Branches(site.block, around(site), join="sum")
            return
        yield beside(site, _shortcut(site.spec))

    def start(self, site: Site, block: Block) -> Tensors:
        if site.modules:
            return kept(site, "0.") | {"1.weight": zeros(around(site))}
        return kept(site, "0.") | {"1.weight": zeros(_shortcut(site.spec))}


def _shortcut(spec: ConvSpec) -> ConvSpec:
    plain = spec.in_channels == spec.out_channels and set(spec.stride) == {1}
    return centre(spec).replace(groups=spec.in_channels if plain else 1, bias=False)
