"""`merge_linear`: convolutions with nothing between them, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from reconv.ruleset.linear import NotOneError, inside, linear
from reconv.ruleset.simplify import Form, Simplification, simplified
from reconv.spec import BatchNorm, Block, Branches, Chain, ConvSpec, convs
from reconv.surgery.sites import Site

NONE_FOLLOW = "no two convolutions follow each other with nothing but batch norms between"
LENGTH = 32  # of a likely input beyond the kernels, where no run is known


class MergeLinear(Simplification):
    """Convolutions that follow each other, with batch norms or nothing between, as one convolution.

        w_2 * (w_1 * x + b_1) + b_2 = (w_2 * w_1) * x + (Σ_t w_2[·, ·, t]) · b_1 + b_2

    Exact, up to rounding, in evaluation, anywhere inside of a module. Of all cuts into runs the one of fewest
    multiply-accumulates is taken, so that a bottleneck stays. Refused where the later one pads what the first gives,
    as no single convolution has such a border.

    Source:  Ding et al. 2021, arXiv:2103.13425, section 3.2; Guo et al. 2018, arXiv:1811.10495
    """

    name = "merge_linear"
    source = "Ding et al. 2021, arXiv:2103.13425, section 3.2"

    def form(self, site: Site) -> Form | str:
        if isinstance(site.block, ConvSpec):
            return "it is one convolution already"
        form = simplified(site.block, site.tensors, _shape(site), _several)
        return form if form.merged else _why_not(site.block, site.tensors)


def _several(run: Sequence[Block]) -> bool:
    """Whether a run is of convolutions, batch norms among them."""
    plain = all(isinstance(part, ConvSpec | BatchNorm) for part in run)
    return plain and sum(isinstance(part, ConvSpec) for part in run) > 1


def _shape(site: Site) -> tuple[int, ...]:
    if site.calls:
        return site.input_shape
    first, *rest = convs(site.block)
    least = sum(d * (k - 1) * s for c in (first, *rest) for k, d, s in zip(
        c.kernel_size, c.dilation, c.stride, strict=True))  # fmt: skip
    return (1, first.in_channels, *[LENGTH + least] * first.spatial_dims)


def _why_not(block: Block, tensors: dict[str, Tensor]) -> str:
    """Of the first two convolutions that follow each other, why they are not one."""
    return next(_reasons(block, tensors), NONE_FOLLOW)


def _reasons(block: Block, tensors: dict[str, Tensor]) -> Iterator[str]:
    if isinstance(block, Chain):
        places = range(len(block.blocks))
        for run in (range(i, j) for i in places for j in range(i + 2, len(places) + 1)):
            if _several([block.blocks[i] for i in run]):
                own = {f"{i - run[0]}.{name}": t for i in run for name, t in inside(tensors, i).items()}
                try:
                    one = linear(Chain(*(block.blocks[i] for i in run)), own)
                    yield f"one convolution would cost more than its parts: {one.spec}"
                except NotOneError as reason:
                    yield str(reason)
    if isinstance(block, Chain | Branches):
        for i, part in enumerate(block.blocks):
            yield from _reasons(part, inside(tensors, i))
