"""`widen_kernel`: a larger kernel, with zeros around the trained one."""

from __future__ import annotations

from collections.abc import Iterable

from reconv.ruleset.additions import Addition, Tensors, fitting, kept, too_small, wider, zeros
from reconv.spec import Block, ConvSpec
from reconv.surgery.sites import Site

MORE = (1, 2)  # taps at both ends of an axis: 3×3 becomes 5×5 and 7×7


class WidenKernel(Addition):
    """The kernel in the middle of a larger one, the padding larger by as much.

        w'[o, c, k + n] = w[o, c, k], else 0;    lo' = lo + d·n, hi' = hi + d·n

    Exact, at first. Reflected and circular padding cannot be wider than the map: what does not fit the known runs is
    not offered.

    Source:  Ding et al. 2022, arXiv:2203.06717
    """

    name = "widen_kernel"
    source = "Ding et al. 2022, arXiv:2203.06717"

    def hindered(self, site: Site) -> str | None:
        return None if fitting(site, wider, MORE) else too_small(site)

    def blocks(self, site: Site) -> Iterable[Block]:
        return fitting(site, wider, MORE)

    def start(self, site: Site, block: Block) -> Tensors:
        tensors = kept(site, "")
        if isinstance(block, ConvSpec):
            weight = zeros(block).to(site.device)
            places = [slice((new - old) // 2, (new + old) // 2)
                      for new, old in zip(block.kernel_size, site.spec.kernel_size, strict=True)]  # fmt: skip
            weight[:, :, *places] = tensors["weight"]
            tensors["weight"] = weight
        return tensors
