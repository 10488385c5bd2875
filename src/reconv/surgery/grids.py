"""`Grids`: the positions of a network's maps, followed from module to module, to tell what becomes of them when a
stride is taken out.

The network runs once, and every operator is noted with the axes that it hands on. Where a convolution or a pooling
moves on by 1 instead of s positions, its map is finer by s; so is then all that is computed from it, position by
position, where every module behind it reads s times as far. `Grids.finer` says how fine each map becomes, or why that
cannot be: a sum with a map that stays coarse, an operator that mixes positions and is no module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from reconv.errors import on_one_line
from reconv.spec import ConvSpec
from reconv.surgery.channels import ALONG, MOVES, POINTWISE, REDUCTIONS, is_pointwise, reduction
from reconv.surgery.clone import first_names, fresh
from reconv.surgery.kin import pool_grid
from reconv.surgery.outputs import tensors_in
from reconv.surgery.trace import VALUE_READS, can_hook, is_conv, plain_forward

Axes = tuple[int | None, ...]  # for each axis of an output, the axis of the input that it is; None: it is none of them
Fineness = tuple[int, ...]  # of each axis of a value
SAME = frozenset(("clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh", "native_dropout"))


@dataclass(frozen=True)
class Step:
    """An operator, or a module that has positions of its own.

    Args:    module: its name, where it is a convolution, a pooling or a linear layer; stride: of each of its axes.
             conv: whether it is a convolution.
             inputs: values, and their axes. own: axes along which a tensor that is not followed is long.
             ends: it takes all positions together, however many.
    """

    what: str
    inputs: tuple[tuple[int, Axes], ...]
    output: int
    module: str = ""
    stride: tuple[int, ...] = ()
    conv: bool = False
    own: tuple[int, ...] = ()
    ends: bool = False


@dataclass(frozen=True)
class Finer:
    """What the network becomes: which modules move on by 1, how fine each value is, which are of other positions."""

    moved: frozenset[str]
    values: dict[int, Fineness]
    ended: frozenset[int]


@dataclass
class Grids:
    """The steps of a forward pass, and the shapes of the values between them."""

    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    makers: dict[int, Step] = field(default_factory=dict)
    results: list[int | None] = field(default_factory=list)  # the network's outputs

    def add(self, shape: Sequence[int], step: Any = None) -> int:
        """A new value; step: what made it, given its number."""
        self.shapes.append(tuple(shape))
        value = len(self.shapes) - 1
        if step is not None:
            self.makers[value] = step(value)
            self.steps.append(self.makers[value])
        return value

    def runs(self, module: str) -> list[Step]:
        return [step for step in self.steps if step.module == module]

    def strides_before(self, values: Iterable[int], moved: Iterable[str] = ()) -> Iterator[Step]:
        """The nearest modules before these values that move on by more than 1, through all that is no convolution or
        pooling, and through those of `moved`, whose stride is gone already."""
        seen, waiting = set[int](), list(values)
        while waiting:
            value = waiting.pop()
            step = self.makers.get(value)
            if value in seen or step is None:
                continue
            seen.add(value)
            if max(step.stride, default=1) > 1 and step.module not in moved:
                yield step
            else:
                waiting += [one for one, _ in step.inputs]

    def finer(self, start: Iterable[str]) -> Finer | str:
        """The network with the strides of these modules taken out, and those that must go with them; or why not."""
        moved = frozenset(start)
        while True:
            found = _Spread(self, moved)
            try:
                found.run()
                return Finer(moved, found.values, frozenset(found.ended))
            except _CoarseError as coarse:
                more = {s.module for s in self.strides_before(coarse.values, moved)} - moved
                if not more:
                    return f"{coarse.what} joins it with a map that has no stride to take out"
                moved |= more
            except _LostError as lost:
                return str(lost)


class _LostError(Exception):
    """An operator does with positions what finer ones would change."""


class _CoarseError(Exception):
    """An operator takes values that are not as fine as another one."""

    def __init__(self, what: str, values: Sequence[int]) -> None:
        super().__init__(what)
        self.what, self.values = what, values


class _Spread:
    """How fine each value is, once the strides of some modules are 1."""

    def __init__(self, grids: Grids, moved: frozenset[str]) -> None:
        self.grids, self.moved = grids, moved
        self.values: dict[int, Fineness] = {}
        self.ended = set[int]()

    def run(self) -> None:
        for step in self.grids.steps:
            inputs = [(value, axes, self.of(value)) for value, axes in step.inputs]
            changed = any(max(fine, default=1) > 1 for _, _, fine in inputs)
            ended = any(value in self.ended for value, _ in step.inputs)
            if changed and ended:
                raise _LostError(f"{step.what} brings back to its map what was taken of all positions")
            if changed:
                ended = self.checked(step, inputs)
            if changed or step.module in self.moved:
                self.values[step.output] = self.joined(step, inputs)
            if ended:
                self.ended.add(step.output)

    def of(self, value: int) -> Fineness:
        return self.values.get(value, (1,) * len(self.grids.shapes[value]))

    def checked(self, step: Step, inputs: Sequence[tuple[int, Axes, Fineness]]) -> bool:
        """Whether positions end here; raises where they are lost."""
        lost = [fine for _, axes, fine in inputs if any(n > 1 and a not in axes for a, n in enumerate(fine))]
        if lost and not step.ends:
            raise _LostError(f"{step.what} takes its positions in a way that is not followed")
        return bool(lost)

    def joined(self, step: Step, inputs: Sequence[tuple[int, Axes, Fineness]]) -> Fineness:
        result = []
        strides = (1,) * (len(self.grids.shapes[step.output]) - len(step.stride)) + step.stride
        for axis, stride in enumerate(strides):
            fine = {value: of[axes[axis]] for value, axes, of in inputs if axes[axis] is not None}  # type: ignore[index]
            finest = max(fine.values(), default=1)
            if min(fine.values(), default=1) < finest:
                raise _CoarseError(step.what, [v for v, n in fine.items() if n < finest])
            if finest > 1 and axis in step.own:
                raise _LostError(f"{step.what} takes it with a tensor of its own, one number a position")
            result.append(finest * (stride if step.module in self.moved else 1))
        return tuple(result)


# -- the pass ---------------------------------------------------------------------------------------------
def grids_of(model: nn.Module, inputs: tuple[Any, ...]) -> Grids | str:
    """The grids of `model` (in evaluation mode), or why they cannot be followed."""
    follower = _Follower(model)
    handles = [h for m in model.modules() if can_hook(m) for h in follower.watch(m)]
    try:
        inputs = fresh(inputs)
        for x in tree_leaves(inputs):
            if isinstance(x, Tensor):
                follower.values[x] = follower.grids.add(x.shape)
        with torch.no_grad(), follower:
            result = model(*inputs)
    except Exception as error:
        return f"its positions cannot be followed: {on_one_line(error)}"
    finally:
        for handle in handles:
            handle.remove()
    if follower.reads_values:
        return "the forward pass decides by values, so that its positions are not certain"
    follower.grids.results = [follower.values.get(t) for t in tensors_in(result)]
    return follower.unclear or follower.grids


class _Follower(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.names = first_names(model)
        self.grids = Grids()
        self.values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inside = 0  # of how many leaves
        self.reads_values = False
        self.unclear: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports all of torch.compile

    def watch(self, module: nn.Module) -> list[Any]:
        if not is_leaf(module):
            return []

        def enter(m: nn.Module, args: tuple[Any, ...]) -> None:
            self.inside += 1

        def leave(m: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self.inside -= 1
            if self.inside == 0 and len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                if args[0] in self.values:
                    self.leaf(m, args[0], out)
            elif self.inside == 0:
                self.unclear = f"{self.names[m]} is called in a way that is not followed"

        return [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]

    def leaf(self, module: nn.Module, x: Tensor, out: Tensor) -> None:
        name, stride = self.names[module], strides_of(module)
        channels = out.ndim - 1 if not stride else -1
        axes = tuple(None if a == channels else a for a in range(out.ndim))
        if transposed(module):  # of a stride, it would mix positions that were with those between them
            first = out.ndim - len(stride)
            axes = tuple(a if a < first or stride[a - first] == 1 else None for a in axes)  # type: ignore[operator]
            stride = ()
        self.note(name or "the network", [(x, axes)], out, module=name, stride=stride, conv=is_conv(module))

    def note(self, what: str, inputs: Sequence[tuple[Tensor, Axes]], out: Tensor, **more: Any) -> None:
        known = tuple((self.values[x], axes) for x, axes in inputs)
        self.values[out] = self.grids.add(out.shape, lambda value: Step(what, known, value, **more))

    # -- operators --------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func._schema.name in VALUE_READS:
            self.reads_values = True
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = [x for x in given if x in self.values]
        if self.inside or not known:
            return func(*args, **kwargs)
        maps = self.maps(name, func, args, kwargs, known)  # before the operator, which may change its input
        out = func(*args, **kwargs)
        for number, result in enumerate(t for t in tree_leaves(out) if isinstance(t, Tensor)):
            if name in POINTWISE or is_pointwise(func):
                axes = [_aligned(x.shape, result.shape) for x in known]
                others = [x for x in given if x not in self.values]
                own = {a for x in others for a, n in enumerate(_aligned(x.shape, result.shape))
                       if n is not None and x.shape[n] > 1}  # fmt: skip
                self.note(name, list(zip(known, axes, strict=True)), result, own=tuple(own))
            else:
                if 0 < len(maps[0]) <= number:  # statistics beside what it gives
                    continue
                axes = [each[number] if each else () for each in maps]
                axes = [a if len(a) == result.ndim else (None,) * result.ndim for a in axes]
                self.note(name, list(zip(known, axes, strict=True)), result, ends=_ends(name))
        return out

    def maps(self, name: str, func: Any, args: Any, kwargs: Any, known: Sequence[Tensor]) -> list[list[Axes]]:
        """For each known input, for each output, its axes."""
        first = known[0]
        every = tuple(range(first.ndim))
        if name in SAME:
            return [[every]] * len(known)
        if name == "cat":
            along = int(args[1]) % first.ndim if len(args) > 1 else 0
            return [[tuple(None if a == along else a for a in every)]] * len(known)
        if name in MOVES and len(known) == 1:
            return [_moved(func, args, kwargs, first)]
        if name in REDUCTIONS and len(known) == 1:
            return [[_left(func, args, kwargs, first)]]
        if name in ALONG:
            return [[tuple(None if a == int(args[1]) % first.ndim else a for a in every)]]
        if "batch_norm" in name and args[3] is not None and args[5 if "no_training" not in name else 3] is not True:
            return [[every]]
        if name == "native_layer_norm":
            return [[tuple(None if a >= first.ndim - len(args[1]) else a for a in every)]]
        if name.startswith(("_adaptive_avg_pool", "adaptive_max_pool")):
            return [[tuple(None if a >= first.ndim - len(args[1]) else a for a in every)] * 2]
        if name.endswith(("_pad_nd", "_pad1d", "_pad2d", "_pad3d", "_pad")) and len(args) > 1:
            pads = list(args[1])
            still = [a for a in every if not any(pads[2 * (first.ndim - 1 - a) : 2 * (first.ndim - a)])]
            return [[tuple(a if a in still else None for a in every)]]
        return [[] for _ in known]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module's positions are those of its own attributes."""
    if is_conv(module):
        return plain_forward(module) is None
    linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return linear or pool_grid(module) is not None


def strides_of(module: nn.Module) -> tuple[int, ...]:
    """The stride of each spatial axis; none of a linear layer."""
    if is_conv(module):
        return ConvSpec.of(module).stride
    grid = pool_grid(module)
    return tuple(grid[1]) if grid else ()


def transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def _ends(name: str) -> bool:
    return name in REDUCTIONS or name.startswith(("_adaptive_avg_pool", "adaptive_max_pool"))


def _aligned(shape: Sequence[int], out: Sequence[int]) -> Axes:
    """Axes of an input that is broadcast: from the right, without those that are spread."""
    lead = len(out) - len(shape)
    return tuple(None if a < lead or shape[a - lead] != n else a - lead for a, n in enumerate(out))


def _left(func: Any, args: Any, kwargs: Any, x: Tensor) -> Axes:
    """Axes that a reduction leaves."""
    gone, kept = reduction(func, args, kwargs)
    if kept:
        return tuple(None if a in gone else a for a in range(x.ndim))
    return tuple(a for a in range(x.ndim) if a not in gone)


def _moved(func: Any, args: Any, kwargs: Any, x: Tensor) -> list[Axes]:
    """Axes of what an operator that only moves values gives: it is run on the coordinates of each axis."""
    results: list[list[int | None]] = []
    for axis, n in enumerate(x.shape):
        line = torch.arange(n).reshape([-1 if a == axis else 1 for a in range(x.ndim)]).expand(x.shape)
        if func._schema.name in ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias"):
            given = [line.reshape(args[1])]
        elif func._schema.name == "aten::expand":
            given = [line.expand(args[1])]
        else:
            swapped = [line if each is x else each for each in args]
            given = [t for t in tree_leaves(func(*swapped, **kwargs)) if isinstance(t, Tensor)]
        results = results or [[None] * t.ndim for t in given]
        for out, axes in zip(given, results, strict=True):
            for a, length in enumerate(out.shape):
                whole = torch.arange(n).reshape([-1 if b == a else 1 for b in range(out.ndim)])
                if length == n and (n > 1 or _still(x, out, axis, a)) and bool((out == whole).all()):
                    axes[a] = axis
    return [tuple(axes) for axes in results]


def _still(x: Tensor, out: Tensor, axis: int, a: int) -> bool:
    """Whether an axis of one position is the same before and behind: no coordinate tells."""
    return x.shape == out.shape and axis == a
