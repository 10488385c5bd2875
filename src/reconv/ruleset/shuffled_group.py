"""`shuffled_group`: channels permuted into groups, or groups whose few channels a pointwise mixes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd, prod

import numpy as np
import torch
from torch import Tensor

from reconv.ruleset.canonical import dense, low_rank, once, pack, thin_basis
from reconv.ruleset.grouping import co_cluster
from reconv.ruleset.offers import cheaper, foreign, must_serve, pointwise, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Chain, ConvSpec, Permute, convs
from reconv.surgery.sites import Site

FEW = 4  # ways to cut a group, the coarsest ones: finer ones keep too little
MIDDLE = (1 / 2, 1)  # channels between the two parts, over those of the output
Orders = tuple[Tensor, Tensor]  # of the outputs and of the inputs


class ShuffledGroup:
    """A convolution in more groups than it had, in one of two ways.

    Permuted: permutation → grouped convolution → permutation. Channels go to the groups in which the weight keeps
    the most energy E[o, c] = Σ_k w[o, c, k]²; a permutation that changes nothing is left out. Exact where the weight
    has a block structure under some permutation that the search finds.

    Mixed: grouped convolution to m channels a group → pointwise.

        w[o, (j, c), k] ≈ Σ_{r ≤ m} p[o, (j, r)] · d[(j, r), c, k]        a truncated SVD of o × (c·k), each group j

    Exact at m = min(out, in / groups · ∏k). A site with groups has each of them cut further.

    Source:  Zhang et al. 2017, arXiv:1707.01083; Xie et al. 2016, arXiv:1611.05431
    """

    name = "shuffled_group"
    group = "smaller"
    source = "Zhang et al. 2017, arXiv:1707.01083; Xie et al. 2016, arXiv:1611.05431"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.in_channels == site.spec.groups:
            return "one input channel a group: there are no finer groups"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        spec = site.spec
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        permuted = [_best_permuted(site, cuts) for cuts in _cuts(gcd(inputs, outputs))]
        sizes = [(cuts, round(f * outputs / cuts)) for cuts in _cuts(inputs) for f in MIDDLE]
        forms: list[Permuted | Mixed] = [*permuted, *(Mixed(cuts, _useful(spec, cuts, size)) for cuts, size in sizes)]
        return cheaper(self.name, site, (form.block(spec) for form in forms))

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The mixed form that loses nothing, in the fewest groups."""
        spec = site.spec
        cuts = min(_divisors(spec.in_channels // spec.groups))
        return (self.at(site, Mixed(cuts, _useful(spec, cuts, spec.out_channels))),)

    def at(self, site: Site, form: Permuted | Mixed) -> Proposal:
        return Proposal(self.name, form.block(site.spec))

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = _form(site.spec, proposal.block)
        if form is None or self.at(site, form) != proposal:
            raise foreign(self, site, proposal)
        return form.weights(site)


@dataclass(frozen=True)
class Permuted:
    """Each group cut into `cuts`; a side whose channels do not move needs no permutation."""

    cuts: int
    move_outputs: bool = True
    move_inputs: bool = True

    def block(self, spec: ConvSpec) -> Block:
        parts: list[Block] = [spec.replace(groups=spec.groups * self.cuts)]
        if self.move_inputs:
            parts.insert(0, Permute(spec.in_channels))
        if self.move_outputs:
            parts.append(Permute(spec.out_channels))
        return Chain(*parts) if len(parts) > 1 else parts[0]

    def orders(self, site: Site) -> Orders:
        """Which output, and which input, goes to each place of its group: (groups, out / groups), (…, in / groups)."""
        energy = dense(site).square().flatten(3).sum(-1).cpu().numpy()
        found = [co_cluster(e, self.cuts, self.move_outputs, self.move_inputs) for e in energy]
        outputs, inputs = (torch.tensor(np.array(side)).argsort(stable=True) for side in zip(*found, strict=True))
        return outputs, inputs

    def weights(self, site: Site) -> Weights:
        outputs, inputs = once(site, (self,), lambda: self.orders(site))
        weight, cuts = dense(site), self.cuts
        g, o, i, *k = weight.shape
        place = torch.arange(g)[:, None, None], outputs[:, :, None], inputs[:, None, :]
        diagonal = torch.arange(cuts)
        blocks = weight[place].reshape(g, cuts, o // cuts, cuts, i // cuts, *k)[:, diagonal, :, diagonal]  # cuts first
        part = blocks.transpose(0, 1).reshape(g * cuts, o // cuts, i // cuts, *k)

        def compose(part: Tensor) -> Tensor:
            kernel = part.new_zeros(g, cuts, o // cuts, cuts, i // cuts, *k)
            kernel[:, diagonal, :, diagonal] = part.reshape(g, cuts, *part.shape[1:]).transpose(0, 1)
            result = torch.empty_like(kernel).reshape(weight.shape)
            result[place] = kernel.reshape(weight.shape)
            return result

        block = self.block(site.spec)
        packed = pack(site, block, [part], compose)
        return Weights(packed.tensors | self._orders_as_tensors(site, _whole(outputs), _whole(inputs)), packed.error)

    def _orders_as_tensors(self, site: Site, outputs: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """The permutations' indices, and the bias in the order of the convolution's outputs."""
        at, tensors = int(self.move_inputs), {}
        if self.move_inputs:
            tensors["0.index"] = inputs.to(site.device)
        if self.move_outputs:
            tensors[f"{at + 1}.index"] = outputs.argsort().to(site.device)
            if site.bias is not None:
                tensors[f"{at}.bias"] = site.bias.detach()[outputs.to(site.device)]
        return tensors


@dataclass(frozen=True)
class Mixed:
    """Each group cut into `cuts` of `channels` outputs, which a pointwise mixes."""

    cuts: int
    channels: int

    def block(self, spec: ConvSpec) -> Block:
        groups = spec.groups * self.cuts
        mid = groups * self.channels
        return Chain(spec.replace(out_channels=mid, groups=groups, bias=False),
                     pointwise(spec, mid, spec.out_channels, spec.bias))  # fmt: skip

    def weights(self, site: Site) -> Weights:
        weight, cuts, m = dense(site), self.cuts, self.channels
        g, o, i, *k = weight.shape
        matrix = weight.reshape(g, o, cuts, -1).transpose(1, 2)  # (g, cuts, o, inputs of the cut and taps)
        basis = once(site, ("mixed", cuts), lambda: thin_basis(matrix))
        mix, kernels = low_rank(matrix, basis, m)
        parts = (kernels.reshape(g * cuts, m, i // cuts, *k),
                 mix.transpose(1, 2).reshape(g, o, cuts * m, *[1] * len(k)))  # fmt: skip

        def compose(a: Tensor, b: Tensor) -> Tensor:
            kernel = torch.einsum("gojm,gjmx->gojx", b.reshape(g, o, cuts, m), a.reshape(g, cuts, m, -1))
            return kernel.reshape(weight.shape)

        return pack(site, self.block(site.spec), parts, compose)


def _best_permuted(site: Site, cuts: int) -> Permuted:
    """Both sides free to move; a side that stays as it was gets no permutation."""
    form = Permuted(cuts)
    outputs, inputs = once(site, (form,), lambda: form.orders(site))
    return Permuted(cuts, *(bool((order.diff() != 1).any()) for order in (outputs, inputs)))


def _useful(spec: ConvSpec, cuts: int, wanted: int) -> int:
    """The wanted channels of a cut; no more than those that lose nothing."""
    inputs = spec.in_channels // spec.groups // cuts * prod(spec.kernel_size)
    return max(1, min(wanted, spec.out_channels // spec.groups, inputs))


def _cuts(channels: int) -> list[int]:
    """Numbers of equal parts to cut so many channels into."""
    return _divisors(channels)[:FEW]


def _divisors(channels: int) -> list[int]:
    return [n for n in range(2, channels + 1) if channels % n == 0]


def _whole(orders: Tensor) -> Tensor:
    """Orders inside the groups, (groups, n), as one order of all channels."""
    groups, size = orders.shape
    return (orders + size * torch.arange(groups)[:, None]).flatten()


def _form(spec: ConvSpec, block: Block) -> Permuted | Mixed | None:
    """The form of a block of this rule's making."""
    parts = block.blocks if isinstance(block, Chain) else (block,)
    inside = list(convs(block))
    cuts = inside[0].groups // spec.groups if inside else 0
    groups = cuts * spec.groups
    if cuts and len(inside) == 2 and spec.in_channels % groups == 0:
        return Mixed(cuts, _useful(spec, cuts, inside[0].out_channels // groups))
    if cuts and len(inside) == 1 and gcd(spec.in_channels, spec.out_channels) % groups == 0:
        return Permuted(cuts, isinstance(parts[-1], Permute), isinstance(parts[0], Permute))
    return None
