"""A rule of one's own: a convolution in groups, by leaving out the weights between them."""

from collections.abc import Iterable

import torch

from reconv.ruleset import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.surgery import Site

GROUPS = (2, 4, 8)


class InGroups:
    """The same convolution in more groups: what lies on the diagonal blocks of the weight stays.

        w'[g, o, c, k] = w[g·O + o, g·C + c, k]

    Exact where all other weights are zeros.
    """

    name = "in_groups"
    group = "smaller"
    source = "Krizhevsky et al. 2012"

    def refuse(self, site: Site) -> str | None:
        if site.refusal:
            return site.refusal
        if not isinstance(site.block, ConvSpec):
            return "already rewritten"
        if site.spec.groups > 1 or site.spec.transposed:
            return "it has groups already, or is transposed"
        return None if self._fitting(site) else "its channels cannot be divided"

    def propose(self, site: Site) -> Iterable[Proposal]:
        return [Proposal(self.name, site.spec.replace(groups=g)) for g in reversed(self._fitting(site))]

    def init(self, site: Site, proposal: Proposal, activations: object = None) -> Weights:
        groups, old = proposal.block.groups, site.weight
        blocks = old.reshape(groups, len(old) // groups, groups, -1, *old.shape[2:])
        kept = torch.cat([blocks[g, :, g] for g in range(groups)])
        lost = 1 - float(kept.double().norm() / old.double().norm()) ** 2
        return Weights({**site.tensors, "weight": kept}, error=max(0.0, lost) ** 0.5)

    def _fitting(self, site: Site) -> list[int]:
        return [g for g in GROUPS if site.spec.in_channels % g == 0 == site.spec.out_channels % g]
