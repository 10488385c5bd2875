"""`fold_branches`: a block of linear parts, as the one convolution that it computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

from reconv.ruleset.additions import as_of
from reconv.ruleset.canonical import dense_weight, relative_error, torch_weight
from reconv.ruleset.linear import Linear, NotOneError, inside, linear
from reconv.ruleset.offers import bad_tensors, foreign, must_serve
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Activation, Block, Chain, ConvSpec, macs
from reconv.surgery.sites import Site


class FoldBranches:
    """Convolutions and batch norms side by side or one after the other, added up into one convolution.

        Σ_j bn_j(w_j * x) = (Σ_j scale_j · w_j) * x + Σ_j shift_j        each w_j on the taps of the common kernel

    Exact, up to rounding, in evaluation. It is what `expand_branches` put in, taken back after the training. Refused
    where the parts are not linear, where a constant meets the zeros of a padding, and where one convolution would cost
    more than its parts.

    Source:  Ding et al. 2019, arXiv:1908.03930; 2021, arXiv:2103.13425, section 3.2
    """

    name = "fold_branches"
    group = "exact"
    source = "Ding et al. 2019, arXiv:1908.03930; 2021, arXiv:2103.13425"

    def refuse(self, site: Site) -> str | None:
        if reason := site.refusal or bad_tensors(site):
            return reason
        folded = _fold(site)
        return folded if isinstance(folded, str) else None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        return (Proposal(self.name, self._folded(site).block),)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        folded = self._folded(site)
        if proposal != Proposal(self.name, folded.block):
            raise foreign(self, site, proposal)
        one, spec = folded.one, folded.one.spec
        exact = one.kernel()
        tensors = {"weight": torch_weight(spec, exact)} | ({"bias": one.bias()} if spec.bias else {})
        final = as_of(site, tensors)
        near = dense_weight(spec, final["weight"])
        prefix = "0." if isinstance(folded.block, Chain) else ""
        return Weights({prefix + name: t for name, t in final.items()}, relative_error(exact, near))

    def _folded(self, site: Site) -> _Folded:
        must_serve(self, site)
        return cast(_Folded, _fold(site))  # a site with a reason is refused


class _Folded(NamedTuple):
    block: Block
    one: Linear


def _fold(site: Site) -> _Folded | str:
    """The site as one convolution, with the activation behind it where there is one; or why it is none."""
    block, tensors, last = site.block, site.tensors, None
    if isinstance(block, Chain) and isinstance(block.blocks[-1], Activation):
        *parts, last = block.blocks
        block = Chain(*parts) if len(parts) > 1 else parts[0]
        tensors = tensors if len(parts) > 1 else inside(tensors, 0)
    if isinstance(block, ConvSpec):
        return "it is one convolution already"
    try:
        one = linear(block, tensors)
    except NotOneError as reason:
        return str(reason)
    if _cost(site, one.spec, one.spec) > _cost(site, block, one.spec):
        return f"one convolution would cost more than its parts: {one.spec}"
    return _Folded(one.spec if last is None else Chain(one.spec, last), one)


def _cost(site: Site, block: Block, whole: ConvSpec) -> int:
    """MACs where the site runs, or on a likely input."""
    extents = [d * (k - 1) + 1 for k, d in zip(whole.kernel_size, whole.dilation, strict=True)]
    return macs(block, site.input_shape if site.calls else (1, whole.in_channels, *(32 + e for e in extents)))
