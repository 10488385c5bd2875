"""Linear parts inside of an expression, each run of them as one convolution where that costs no more.

Forms are chosen from shapes alone; weights are computed only when they are asked for.
"""

from __future__ import annotations

import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from reconv.errors import ConvError
from reconv.ruleset.additions import as_of
from reconv.ruleset.canonical import float64, relative_error, torch_weight
from reconv.ruleset.linear import Linear, NotOneError, inside, linear
from reconv.ruleset.offers import bad_tensors, foreign, must_serve
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Weights
from reconv.spec import Block, Branches, Chain, macs, output_shape
from reconv.surgery.sites import Site

Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]
May = Callable[[Sequence[Block]], bool]  # whether a run of parts may become one convolution


@dataclass(frozen=True)
class Form:
    """A block that computes what another did; `tensors()` is its state dict, in float64 where it was computed."""

    block: Block
    tensors: Callable[[], Tensors]
    merged: tuple[Linear, ...] = ()  # the convolutions that stand for several parts


class _Cost(NamedTuple):
    macs: int
    parts: int


def simplified(block: Block, tensors: Tensors, shape: Shape, may: May) -> Form:
    """The block of fewest multiply-accumulates, then of fewest parts, that merging runs of its parts gives.

    A chain is cut into runs, each one convolution or as it is; of a sum, the linear branches become one. Every branch
    is simplified by itself.

    Args:    shape: of the input. may: which runs of a chain, or branches (a run of one), a rule merges.
    """
    match block:
        case Chain():
            return _chain(block, tensors, shape, may)
        case Branches():
            whole = _merged([(block, tensors)], shape, may)
            return whole or _branches(block, tensors, shape, may)
        case _:
            return Form(block, lambda: tensors)


def _chain(chain: Chain, tensors: Tensors, shape: Shape, may: May) -> Form:
    """The cheapest cut of a chain, by dynamic programming from its end."""
    parts = [(part, inside(tensors, i)) for i, part in enumerate(chain.blocks)]
    shapes = [shape]
    for part, _ in parts:
        shapes.append(output_shape(part, shapes[-1]))
    best: list[tuple[_Cost, tuple[Form, ...]]] = [(_Cost(0, 0), ())]  # of the parts from each place on, last first
    for at in range(len(parts) - 1, -1, -1):
        choices = []
        for form, end in _runs(parts, shapes, at, may):
            cost, rest = best[len(parts) - end]
            own = _cost(form.block, shapes[at])
            choices.append((_Cost(own.macs + cost.macs, own.parts + cost.parts), (form, *rest)))
        best.append(min(choices, key=lambda choice: choice[0]))
    forms = best[-1][1]
    return forms[0] if len(forms) == 1 else _joined_chain(forms)


def _runs(parts: Sequence[tuple[Block, Tensors]], shapes: Sequence[Shape], at: int,
          may: May) -> Iterator[tuple[Form, int]]:  # fmt: skip
    """The part at a place by itself, and the runs from there on that are one convolution; where each ends."""
    yield simplified(*parts[at], shapes[at], may), at + 1
    for end in range(at + 2, len(parts) + 1):
        run = parts[at:end]
        try:
            linear(*_as_chain(run), channels=shapes[at][1])
        except (NotOneError, ConvError):
            return  # nor is any longer one
        form = _merged(run, shapes[at], may)
        if form:
            yield form, end


def _merged(run: Sequence[tuple[Block, Tensors]], shape: Shape, may: May) -> Form | None:
    """A run of parts as one convolution, where it is one that costs no more."""
    if not may([part for part, _ in run]):
        return None
    block, tensors = run[0] if len(run) == 1 else _as_chain(run)
    try:
        one = linear(block, tensors, channels=shape[1])
        dearer = macs(one.spec, shape) > macs(block, shape)
    except (NotOneError, ConvError):
        return None
    return None if dearer else Form(one.spec, lambda: of(one), (one,))


def of(one: Linear) -> Tensors:
    """The state dict of a convolution, in float64."""
    return {"weight": torch_weight(one.spec, one.kernel())} | ({"bias": one.bias()} if one.spec.bias else {})


def _as_chain(run: Sequence[tuple[Block, Tensors]]) -> tuple[Block, Tensors]:
    return Chain(*(part for part, _ in run)), {f"{i}.{n}": t for i, (_, own) in enumerate(run) for n, t in own.items()}


def _joined_chain(forms: Sequence[Form]) -> Form:
    """Forms after each other; a chain in a chain is one chain."""

    def tensors() -> Tensors:
        result: dict[str, Tensor] = {}
        at = 0
        for form in forms:
            length = len(form.block.blocks) if isinstance(form.block, Chain) else 0
            for name, tensor in form.tensors().items():
                place, _, rest = name.partition(".") if length else ("0", "", name)
                result[f"{at + int(place)}.{rest}"] = tensor
            at += length or 1
        return result

    return Form(Chain(*(form.block for form in forms)), tensors, tuple(one for form in forms for one in form.merged))


# -- branches -------------------------------------------------------------------------------------
def _branches(block: Branches, tensors: Tensors, shape: Shape, may: May) -> Form:
    """Each branch by itself; of a sum, all those that are linear as one."""
    if block.join == "sum":
        flat = list(_summands(block, tensors))
        together = [i for i, (part, own) in enumerate(flat) if _is_linear(part, own, shape)]
        if 1 < len(together) < len(flat):
            some = [flat[i] for i in together]
            part = Branches(*(part for part, _ in some), join="sum")
            own = {f"{i}.{n}": t for i, (_, tensors) in enumerate(some) for n, t in tensors.items()}
            if one := _merged([(part, own)], shape, may):
                others = [simplified(*flat[i], shape, may) for i in range(len(flat)) if i not in together]
                return _joined_branches([*others, one], "sum")
    parts = [simplified(part, inside(tensors, i), shape, may) for i, part in enumerate(block.blocks)]
    return _joined_branches(parts, block.join)


def _summands(block: Block, tensors: Tensors) -> Iterator[tuple[Block, Tensors]]:
    """The branches of a sum, and of the sums that are branches of it."""
    if isinstance(block, Branches) and block.join == "sum":
        for i, part in enumerate(block.blocks):
            yield from _summands(part, inside(tensors, i))
    else:
        yield block, tensors


def _is_linear(block: Block, tensors: Tensors, shape: Shape) -> bool:
    try:
        linear(block, tensors, len(shape) - 2, shape[1])
    except (NotOneError, ConvError):
        return False
    return True


def _joined_branches(forms: Sequence[Form], join: str) -> Form:
    def tensors() -> Tensors:
        return {f"{i}.{name}": t for i, form in enumerate(forms) for name, t in form.tensors().items()}

    return Form(Branches(*(form.block for form in forms), join=join), tensors,
                tuple(one for form in forms for one in form.merged))  # fmt: skip


def _cost(block: Block, shape: Shape) -> _Cost:
    return _Cost(macs(block, shape), _size(block))


def _size(block: Block) -> int:
    """Operations of a block."""
    if isinstance(block, Chain):
        return sum(map(_size, block.blocks))
    return 1 + sum(map(_size, block.blocks)) if isinstance(block, Branches) else 1


def has_branches(block: Block) -> bool:
    return isinstance(block, Branches) or (isinstance(block, Chain) and any(map(has_branches, block.blocks)))


# -- rules ----------------------------------------------------------------------------------------
class Simplification(ABC):
    """What `fold_branches` and `merge_linear` share: the one form of a site that they offer."""

    name: str
    group = "exact"
    source: str
    whole = True  # it serves whole modules, too
    _last: tuple[weakref.ref[Site], tuple[Tensor, ...], Form | str] | None = None

    @abstractmethod
    def form(self, site: Site) -> Form | str:
        """The simpler form of the site's block; or why there is none."""

    def refuse(self, site: Site) -> str | None:
        if reason := site.refusal or bad_tensors(site):
            return reason
        form = self.known(site)
        return form if isinstance(form, str) else None

    def known(self, site: Site) -> Form | str:
        """`form(site)`, which a rule is asked for several times in a row; kept as long as the site is."""
        tensors = tuple(site.tensors.values())
        if self._last is not None:
            asked, then, form = self._last
            if asked() is site and len(then) == len(tensors) and all(map(operator.is_, then, tensors)):
                return form
        form = self.form(site)
        self._last = weakref.ref(site, self._forget), tensors, form
        return form

    def _forget(self, site: weakref.ref[Site]) -> None:
        """A rule outlives networks, and must not keep their tensors."""
        if self._last is not None and self._last[0] is site:
            self._last = None

    def propose(self, site: Site) -> Iterable[Proposal]:
        return self.full(site)

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """The only proposal there is."""
        must_serve(self, site)
        return (Proposal(self.name, cast(Form, self.known(site)).block),)  # a site with a reason is refused

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        if proposal not in self.full(site):
            raise foreign(self, site, proposal)
        form = cast(Form, self.known(site))
        exact = form.tensors()
        final = as_of(site, exact)
        names = [name for name, t in exact.items() if t.is_floating_point()]
        before, after = (torch.cat([float64(t[name]).flatten() for name in names]) for t in (exact, final))
        return Weights(final, relative_error(before, after))
