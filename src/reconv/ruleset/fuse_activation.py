"""`fuse_activation`: the ReLU after a convolution, computed by the convolution's own layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from reconv.ruleset.offers import bad_tensors, foreign, must_serve
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Activation, Block, Chain
from reconv.surgery.sites import Site


class FuseActivation:
    """The block with the activation that follows as its last part, so that one kernel may compute both.

        y = relu(block(x))        the chain `block -> relu`, with the weights of the block

    Exact to the bit: the same values, taken by the same function.

    Source:  Chen et al. 2018, arXiv:1802.04799, section 3
    """

    name = "fuse_activation"
    group = "exact"
    eager = True
    source = "Chen et al. 2018, arXiv:1802.04799"

    def refuse(self, site: Site) -> str | None:
        if reason := site.refusal or bad_tensors(site):
            return reason
        if _ends_in_activation(site.block):
            return f"it ends in an activation already: {site.block}"
        if site.activation_kind is None:
            return "no ReLU alone follows it, or it serves others too"
        return "its batch norm stands between; fold it first" if site.norm else None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        activation, kind = cast(tuple[str, str], (site.activation, site.activation_kind))  # sites without are refused
        return (Proposal(self.name, Chain(site.block, Activation(kind)), absorbs=(activation,)),)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        prefix = "" if isinstance(site.block, Chain) else "0."  # a chain in a chain is one chain
        return Weights({prefix + name: tensor for name, tensor in site.tensors.items()}, error=0.0)


def _ends_in_activation(block: Block) -> bool:
    return isinstance(block.blocks[-1] if isinstance(block, Chain) else block, Activation)
