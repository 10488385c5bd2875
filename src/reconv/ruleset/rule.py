"""What a rule is: it refuses a site, or offers proposals for it and the weights to start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from reconv.ruleset.responses import Responses
from reconv.spec import Block
from reconv.surgery.coupled import Channels
from reconv.surgery.sites import Site


@dataclass(frozen=True)
class Proposal:
    """A block that a rule offers for a site.

    Args:    rule: its name. block: what could stand in the site's place.
             absorbs: modules whose work the block takes over.
             also: other modules that change with it, and what they become (see surgery/kin.py).
    Example:
             >>> from reconv.spec import parse
             >>> str(Proposal("kernel", parse("ic8oc8k1x1")).block)
             'ic8oc8k1x1'
    """

    rule: str
    block: Block
    absorbs: tuple[str, ...] = ()
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Weights:
    """What a proposal's layer starts from.

    Args:    tensors: the state dict of `reconv.nn.build(proposal.block)`.
             error: ‖W − Ŵ‖ / ‖W‖ of the kernel that they compose to.
             also: the state dicts of the other modules that change.
             channels: those of the network afterwards, where the rule knows them.
    Example:
             >>> import torch
             >>> Weights({"weight": torch.zeros(8, 8, 1, 1)}, error=0.1)
             Weights(error=0.1)
    """

    tensors: dict[str, Tensor] = field(repr=False)
    error: float
    also: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    channels: Channels | None = field(default=None, repr=False, compare=False)


class Rule(Protocol):
    """One rewriting idea. Its document says when it is exact; `source` cites where it comes from.

    An exact rule that may as well be slower says so by an attribute `where_faster = True`: a plan then keeps it at
    those sites where it measured faster. One that changes how PyTorch computes, and nothing that is exported, says
    `eager = True`: engines that run exported networks are spared it. One that serves whole modules, too, says so by
    `whole = True`: it is then given sites that are modules, whose block is all that they compute.
    """

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> str:
        """ "smaller", "exact", "stronger" or "denser"."""
        ...

    @property
    def source(self) -> str: ...

    def refuse(self, site: Site) -> str | None:
        """Why this rule cannot serve the site; None where it can."""
        ...

    def propose(self, site: Site) -> Iterable[Proposal]:
        """Blocks that could stand in the site's place, from small to large."""
        ...

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        """Weights for the proposal, started from the site's trained ones."""
        ...
