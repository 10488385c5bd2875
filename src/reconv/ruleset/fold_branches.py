"""`fold_branches`: a block of linear parts, as the one convolution that it computes."""

from __future__ import annotations

from torch import Tensor

from reconv.ruleset.linear import NotOneError, inside, linear
from reconv.ruleset.offers import cost_shape
from reconv.ruleset.simplify import Form, Simplification, has_branches, of, simplified
from reconv.spec import Activation, Block, Chain, ConvSpec, macs
from reconv.surgery.sites import Site

NO_BRANCHES = "it has no branches"


class FoldBranches(Simplification):
    """Convolutions and batch norms side by side or one after the other, added up into one convolution.

        Σ_j bn_j(w_j * x) = (Σ_j scale_j · w_j) * x + Σ_j shift_j        each w_j on the taps of the common kernel

    Exact, up to rounding, in evaluation. It is what `expand_branches` put in, taken back after the training; and the
    training-time blocks of RepVGG, ACNet, DBB, MobileOne as whole modules, where the branches may be a part of a larger
    expression; average pooling and identity are convolutions, too. Refused where the parts are not linear, where a
    constant meets the zeros of a padding, and where one convolution would cost more than its parts.

    Source:  Ding et al. 2019, arXiv:1908.03930; 2021, arXiv:2101.03697; 2021, arXiv:2103.13425, section 3.2;
             Vasu et al. 2022, arXiv:2206.04040
    """

    name = "fold_branches"
    source = "Ding et al. 2019, arXiv:1908.03930; 2021, arXiv:2103.13425"

    def form(self, site: Site) -> Form | str:
        if not site.modules:
            return _whole(site)
        form = simplified(site.block, site.tensors, site.input_shape, lambda run: any(map(has_branches, run)))
        if form.merged:
            return form
        whole = _whole(site) if has_branches(site.block) else NO_BRANCHES
        return whole if isinstance(whole, str) else "one convolution would cost more than its parts"


def _whole(site: Site) -> Form | str:
    """The site as one convolution, with the activation behind it where there is one; or why it is none."""
    block, tensors, last = _linear_part(site)
    if isinstance(block, ConvSpec):
        return "it is one convolution already"
    try:
        one = linear(block, tensors)
    except NotOneError as reason:
        return str(reason)
    shape = cost_shape(site, one.spec)
    if macs(one.spec, shape) > macs(block, shape):
        return f"one convolution would cost more than its parts: {one.spec}"
    if last is None:
        return Form(one.spec, lambda: of(one), (one,))
    return Form(Chain(one.spec, last), lambda: {f"0.{name}": t for name, t in of(one).items()}, (one,))


def _linear_part(site: Site) -> tuple[Block, dict[str, Tensor], Activation | None]:
    """The block without the activation that ends it, and that."""
    block, tensors = site.block, site.tensors
    last = block.blocks[-1] if isinstance(block, Chain) else None
    if not isinstance(block, Chain) or not isinstance(last, Activation):
        return block, tensors, None
    parts = block.blocks[:-1]
    return (Chain(*parts), tensors, last) if len(parts) > 1 else (parts[0], inside(tensors, 0), last)
