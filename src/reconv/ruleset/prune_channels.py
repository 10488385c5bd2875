"""`prune_channels`: fewer channels, in every module that has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from reconv.ruleset.canonical import float64
from reconv.ruleset.offers import foreign, must_serve, unfit
from reconv.ruleset.readers import Reader, gather, reader
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import ConvSpec
from reconv.surgery.coupled import Channels, Numbers
from reconv.surgery.kin import text_of
from reconv.surgery.sites import Site
from reconv.surgery.spaces import Space, narrowed, narrowed_conv, narrowed_spec, space_of, unchanged
from reconv.surgery.surroundings import TOLERANCE, Surroundings

KEPT = (0.5, 0.625, 0.75, 0.875)
LARGE = 32  # channels, from which on multiples of 8 stay
UNKNOWN = "its network is not known, or has changed around it"


class PruneChannels:
    """The convolution and all that has its channels without some of them.

        E‖W·x − W'·x'‖² of the modules that read them is made small, x' being x without the channels that go

    Channels go one by one, each time the one that costs least: with samples of what the readers take, cost_r =
    ‖W_r‖² / (C⁻¹)_rr summed over the readers, C = E[x·xᵀ], the others taking over what they can of its work; without,
    ‖W_r‖² · E[x_r²] with the size that batch norm or weight gives it. Sums, gates and depthwise convolutions on the way
    lose the same channels, a grouped convolution as many in each group. Exact where nothing goes.

    Source:  Luo et al. 2017 (ThiNet), arXiv:1707.06342; He et al. 2017, arXiv:1707.06168;
             Fang et al. 2023 (DepGraph), arXiv:2301.12900; costs after Hassibi, Stork 1992 (Optimal Brain Surgeon)
    """

    name = "prune_channels"
    group = "smaller"
    source = "Luo et al. 2017, arXiv:1707.06342; He et al. 2017, arXiv:1707.06168; Fang et al. 2023, arXiv:2301.12900"

    def refuse(self, site: Site) -> str | None:
        if reason := unfit(site):
            return reason
        found = surrounding_space(site)
        if isinstance(found, str):
            return found
        if max(map(len, found[1].classes)) < 2:
            return "it has one channel that could go: it must stay"
        return tried(*found)

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        channels, space, around = _known(site)
        wanted = dict.fromkeys(tuple(_kept(len(c), part) for c in space.classes) for part in KEPT)
        return [self._at(site, channels, space, around, counts) for counts in wanted
                if any(n < len(c) for n, c in zip(counts, space.classes, strict=True))]  # fmt: skip

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """All channels stay."""
        must_serve(self, site)
        channels, space, around = _known(site)
        return (self._at(site, channels, space, around, [len(c) for c in space.classes]),)

    def _at(self, site: Site, channels: Channels, space: Space, around: Surroundings,
            counts: Sequence[int]) -> Proposal:  # fmt: skip
        left = space.counted(channels, counts)
        also = tuple((n, _text(around, n, *left[n])) for n in space.modules if n != site.name)
        return Proposal(self.name, narrowed_spec(site.spec, *left[site.name]), also=also)

    def init(self, site: Site, proposal: Proposal, activations: object = None) -> Weights:
        must_serve(self, site)
        channels, space, around = _known(site)
        counts = self._counts(site, proposal, channels, space, around)
        if counts is None:
            raise foreign(self, site, proposal)
        readers = readers_of(site, channels, space, around)
        removed, lost = _removed(readers, space, counts, around)
        return weights_without(site, space, channels, removed, around, readers, lost)

    def _counts(self, site: Site, proposal: Proposal, channels: Channels, space: Space,
                around: Surroundings) -> tuple[int, ...] | None:  # fmt: skip
        """How many of each class stay in a proposal."""
        out = proposal.block.out_channels if isinstance(proposal.block, ConvSpec) else 0
        steps = range(1, max(map(len, space.classes)) + 1)
        of_parts = (tuple(_kept(len(c), part) for c in space.classes) for part in (*KEPT, 1.0))
        of_counts = ((n,) for n in steps) if len(space.classes) == 1 else ()
        for counts in (*of_parts, *of_counts):
            if space.counted(channels, counts)[site.name][1] == out:
                mine = self._at(site, channels, space, around, counts)
                if mine == proposal:
                    return counts
        return None


# -- what is known of the network -----------------------------------------------------------------
def surrounding_space(site: Site) -> tuple[Channels, Space, Surroundings] | str:
    """The channels of the network and those that the site gives first; or why there are none."""
    around = site.around
    if around is None:
        return UNKNOWN
    channels = around.channels
    if isinstance(channels, str):
        return channels
    space = space_of(channels, site.name)
    return space if isinstance(space, str) else (channels, space, around)


def _known(site: Site) -> tuple[Channels, Space, Surroundings]:
    found = surrounding_space(site)
    assert not isinstance(found, str)  # must_serve has seen to it
    return found


def tried(channels: Channels, space: Space, around: Surroundings) -> str | None:
    """Why the network without some of the channels is not the one in which nothing reads them; None where it is.

    What was concluded from one run is so held against another: every second channel goes, and both are compared.
    """
    if space.site not in around.verdicts:
        gone = {int(r) for c in space.classes for r in (c[1::2] if len(c) > 1 else ())}
        kept = space.kept(channels, gone)
        model = around.model
        fewer = {n: narrowed(model.get_submodule(n), *kept[n]) for n in space.modules}
        unread = {n: _unread(around, n, channels, gone) for n in space.readers}
        apart = around.moved(tuple((n, text) for n, (text, _) in fewer.items()), {n: t for n, (_, t) in fewer.items()},
                             tuple((n, text) for n, (text, _) in unread.items()),
                             {n: t for n, (_, t) in unread.items()})  # fmt: skip
        dtype = next(model.parameters()).dtype
        around.verdicts[space.site] = (
            f"without channels, the network fails: {apart}" if isinstance(apart, str)
            else None if apart <= TOLERANCE.get(dtype, 0.0)
            else f"the network does more with its channels than was seen: its output moves by {apart:.2g}"
        )  # fmt: skip
    return around.verdicts[space.site]


def _unread(around: Surroundings, name: str, channels: Channels, gone: set[int]) -> tuple[str, dict[str, Tensor]]:
    """A reader with weights of 0 for these channels."""
    text, tensors = unchanged(around.model, name)
    one = reader(name, around, channels.leaves[name].ins)
    one.weight[torch.from_numpy(np.isin(one.roots, list(gone)))[:, None].expand(one.weight.shape[:3])] = 0
    return text, {**tensors, "weight": one._packed(one.weight).to(tensors["weight"])}


def _text(around: Surroundings, name: str, ins: int, outs: int) -> str:
    now = text_of(around.model.get_submodule(name)) or ""
    if now.startswith("norm("):
        return f"norm({outs})"
    return f"linear({ins}, {outs})" if now.startswith("linear(") else \
        str(narrowed_spec(ConvSpec.parse(now), ins, outs))  # fmt: skip


def _kept(count: int, part: float) -> int:
    wanted = part * count
    return max(1, 8 * round(wanted / 8) if count >= LARGE and part < 1 else round(wanted))


# -- which go -------------------------------------------------------------------------------------
def readers_of(site: Site, channels: Channels, space: Space, around: Surroundings) -> list[Reader]:
    gather(around, channels, space.readers)
    sizes = _sizes(channels, space, around)
    return [reader(name, around, channels.leaves[name].ins, sizes) for name in space.readers]


def _sizes(channels: Channels, space: Space, around: Surroundings) -> Numbers:
    """E[x²] of each channel, as far as batch norms or weights tell: γ² + β², or ‖w‖² + b²."""
    sizes = np.zeros(len(channels.parent))
    last: dict[int, str] = {}
    for name in space.modules:
        leaf = channels.leaves[name]
        if leaf.kind in ("conv", "linear", "norm"):
            module = around.model.get_submodule(name)
            size = _size(module, len(leaf.outs))
            for root, value in zip(leaf.outs.tolist(), size, strict=True):
                replaces = leaf.kind == "norm" and last.get(root) != "norm"
                sizes[root] = value if replaces else sizes[root] + value
                last[root] = leaf.kind
    return np.where(sizes > 0, sizes, 1e-12)


def _size(module: torch.nn.Module, count: int) -> list[float]:
    tensors = {n: float64(t).cpu() for n, t in module.named_parameters() if t is not None}
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None:
        return [1.0] * count
    if isinstance(module, torch.nn.modules.conv._ConvTransposeNd):
        weight = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    size = weight.reshape(count, -1).square().sum(1)
    return (size if bias is None else size + bias.square()).tolist()


def _removed(readers: Sequence[Reader], space: Space, counts: Sequence[int],
             around: Surroundings) -> tuple[set[int], float]:  # fmt: skip
    """The channels that go, so many of each class staying, and the part of the responses that is lost with them."""
    left = tuple(len(c) - n for c, n in zip(space.classes, counts, strict=True))
    nested = len(left) == 1  # what goes first goes first, however many go in the end
    key = (space.site, () if nested else left)
    if len(around.orders.get(key, ())) < sum(left):
        most = (max(left[0], len(space.classes[0]) - _kept(len(space.classes[0]), KEPT[0])),) if nested else left
        around.orders[key] = cheapest(readers, space, most)
    order = around.orders.get(key, [])[: sum(left)]
    return {root for root, _ in order}, sum(cost for _, cost in order) ** 0.5


def cheapest(readers: Sequence[Reader], space: Space, left: Sequence[int]) -> list[tuple[int, float]]:
    """Channels in the order in which they go, so many of each class, with their parts of the energy of the responses.

    Each time the one that costs least: its weights' energy times what the others do not know of it.
    """
    blocks = [_Block(one.gram()[g], one.second[g], roots) for one in readers for g, roots in enumerate(one.roots)]
    wanted = list(left)
    of_class = {int(r): i for i, c in enumerate(space.classes) for r in c}
    order: list[tuple[int, float]] = []
    whole = sum(one.energy() for one in readers)
    learning = [block for block in blocks if not block.apart]
    fixed = _summed(block for block in blocks if block.apart)
    while any(wanted):
        now = _summed(learning)
        costs = {r: fixed[r] + now[r] for r, i in of_class.items() if wanted[i]}
        best = min(costs, key=lambda r: costs[r])
        for block in learning:
            block.remove(best)
        order.append((best, costs[best] / whole if whole > 0 else 0.0))
        wanted[of_class.pop(best)] -= 1
    return order


def _summed(blocks: Iterable[_Block]) -> defaultdict[int, float]:
    """What each channel costs in all of these."""
    total: defaultdict[int, float] = defaultdict(float)
    for block in blocks:
        for root, cost in block.costs():
            total[root] += cost
    return total


class _Block:
    """One group of one reader: Gram matrix of its weights, and the inverse second moment of its inputs."""

    def __init__(self, gram: Tensor, second: Tensor, roots: Numbers) -> None:
        ridge = 1e-6 * float(second.diagonal().mean()) + 1e-12
        self.gram, self.roots = gram.clone(), roots
        self.apart = not bool(second.tril(-1).any())  # no channel knows of another: what goes leaves the rest as it is
        self.inverse = torch.linalg.inv(second + ridge * torch.eye(len(second), dtype=second.dtype))
        self.alive = np.ones(len(roots), dtype=bool)

    def costs(self) -> Iterable[tuple[int, float]]:
        cost = (self.gram.diagonal() / self.inverse.diagonal().clamp_min(1e-300)).tolist()
        return ((int(self.roots[c]), max(cost[c], 0.0)) for c in self.alive.nonzero()[0])

    def remove(self, root: int) -> None:
        for c in np.flatnonzero(self.roots == root).tolist():
            known, column = self.inverse[c].clone(), self.gram[:, c].clone()
            row = known / known[c]
            self.gram.addr_(column, row, alpha=-1).addr_(row, column, alpha=-1).addr_(row, row, alpha=float(column[c]))
            self.inverse.addr_(known, row, alpha=-1)
            self.inverse[c, c] = 1.0  # gone
            self.alive[c] = False


# -- without them ---------------------------------------------------------------------------------
def weights_without(site: Site, space: Space, channels: Channels, removed: set[int], around: Surroundings,
                    readers: Sequence[Reader], lost: float) -> Weights:  # fmt: skip
    """The tensors of all modules once the channels are gone."""
    kept = space.kept(channels, removed)
    gone = np.array(sorted(removed), dtype=np.int64)
    also = {n: narrowed(around.model.get_submodule(n), *kept[n])[1] for n in space.modules if n != site.name}
    tensors = narrowed_conv(site.spec, site.tensors, *kept[site.name])[1]
    for one in readers if removed else ():
        refitted = one.refitted(lambda roots: ~np.isin(roots, gone))
        if one.spec is None:
            rows, columns = (torch.from_numpy(of) for of in reversed(kept[one.name]))
            new = {n: t[rows] for n, t in refitted.items()}
            new["weight"] = new["weight"][:, columns]
        else:
            new = narrowed_conv(one.spec, refitted, *kept[one.name])[1]
        if one.name == site.name:
            tensors = new
        else:
            also[one.name] = new
    return Weights(tensors, lost, also, channels.without(removed))
