"""`channels_of`: which channels of a network are one and the same, seen in its forward pass.

The network runs once for each way that its decisions by values may take, and every tensor is followed by the numbers
of its channels: a convolution gives new ones; a sum, a gate or a depthwise convolution says that two are the same; a
concatenation, a view or a permutation moves the numbers as it moves the values. What cannot be followed (a softmax
over channels, an operator that is not known, the network's output) pins the channels that it touches, with its reason:
pinned channels stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from reconv.errors import on_one_line
from reconv.spec import ConvSpec
from reconv.surgery.clone import first_names, fresh, user_hooks
from reconv.surgery.coupled import Channels, Leaf, Numbers
from reconv.surgery.norms import normalises
from reconv.surgery.trace import VALUE_READS, can_hook, is_conv, plain_forward

MOVES = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand",
    "clone", "alias", "detach", "_to_copy", "contiguous", "slice", "select", "split", "split_with_sizes", "unbind",
    "cat", "stack", "lift_fresh", "flip",
))  # fmt: skip
CUTS = frozenset(("slice", "select", "split", "split_with_sizes", "unbind"))
POINTWISE = frozenset(("hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "native_dropout", "prelu",
                       "_prelu_kernel"))  # fmt: skip
REDUCTIONS = frozenset(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "norm"))
ALONG = frozenset(("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum"))  # as long as before, but mixed
SPATIAL = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "upsample_", "_upsample_",
           "reflection_pad", "replication_pad", "constant_pad_nd")  # fmt: skip
UNCERTAIN = "the forward pass decides by values, so that its channels are not certain"
WAYS = 16  # through the decisions of a forward pass, at most


def channels_of(model: nn.Module, inputs: tuple[Any, ...]) -> Channels | str:
    """The channels of `model` (in evaluation mode), or why they cannot be followed."""
    follower = _Follower(model)
    handles = [h for m in model.modules() if can_hook(m) for h in follower.watch(m)]
    ways: list[tuple[bool, ...]] = [()]
    try:
        for count in range(WAYS):
            way = ways.pop()
            if reason := _followed(follower, model, fresh(inputs), way):
                return f"{UNCERTAIN}: in another way {reason}" if count else reason
            ways += [(*follower.taken[:i], not follower.taken[i]) for i in range(len(way), len(follower.taken))]
            if not ways:
                return follower.found.settled()
    finally:
        for handle in handles:
            handle.remove()
    return f"{UNCERTAIN}: there are more than {WAYS} ways through it"


def _followed(follower: _Follower, model: nn.Module, inputs: tuple[Any, ...], way: tuple[bool, ...]) -> str | None:
    """Runs the model with its first decisions taken as told; why it cannot be followed, or None."""
    follower.start(way)
    try:
        for x in inputs:
            if isinstance(x, Tensor):
                follower.fixed(x, "they are the network's input")
        with torch.no_grad(), follower:
            result = model(*inputs)
    except Exception as error:
        return f"its channels cannot be followed: {on_one_line(error)}"
    if follower.reads_values:
        return "the forward pass computes with values that it reads, so that its channels are not certain"
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            follower.pin(leaf, "they are the network's output")
        elif leaf is not None and not isinstance(leaf, int | float | str | bool):
            return f"the network gives a {type(leaf).__name__}"
    return None


class _Follower(TorchDispatchMode):
    """Each tensor's numbers: an array of as many axes, 1 long where the number does not depend on the axis."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.names = first_names(model)
        owners: dict[nn.Parameter, set[nn.Module]] = {}
        for m in model.modules():
            for p in m.parameters(recurse=False):
                owners.setdefault(p, set()).add(m)
        self.tied = {m for several in owners.values() if len(several) > 1 for m in several}
        self.hooked = {m for m in model.modules() if user_hooks(m)}
        self.found = Channels()
        self.numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inside = 0  # of how many leaves
        self.way: tuple[bool, ...] = ()  # the decisions that are told
        self.taken: list[bool] = []  # all of them
        self.reads_values = False

    def start(self, way: tuple[bool, ...]) -> None:
        """Before each run; what was found before stays."""
        self.numbers, self.inside = WeakIdKeyDictionary(), 0
        self.way, self.taken, self.reads_values = way, [], False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports all of torch.compile

    # -- modules ----------------------------------------------------------------------------------
    def watch(self, module: nn.Module) -> list[Any]:
        kind = leaf_kind(module)

        def enter(m: nn.Module, args: tuple[Any, ...]) -> None:
            self.inside += kind is not None
            if m in self.hooked:
                self.pin_all(args, f"a hook watches {self.names[m]}")

        def leave(m: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if kind is not None:
                self.inside -= 1
                if self.inside == 0 and len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                    self.leaf(kind, m, args[0], out)
            if m in self.hooked:
                self.pin_all(out, f"a hook watches {self.names[m]}")

        return [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]

    def leaf(self, kind: str, module: nn.Module, x: Tensor, out: Tensor) -> None:
        axis, name = _channel_axis(kind, module, x), self.names[module]
        ins = self.along(x, axis, f"{name} takes them along several axes")
        outs = self.found.new(out.shape[axis]) if kind != "norm" else ins
        if kind == "conv":
            kind = self.grouped(ConvSpec.of(module), ins, outs)
        if module in self.tied:
            self.found.pin(np.concatenate([ins, outs]), f"the parameters of {name} are shared with another module")
        known = self.found.leaves.setdefault(name, Leaf(kind, ins, outs))
        if len(known.ins) != len(ins):
            self.found.pin(np.concatenate([ins, outs, known.ins, known.outs]), f"{name} runs on different inputs")
        else:
            self.found.tie(known.ins, ins)
            self.found.tie(known.outs, outs)
        shape = [1] * out.ndim
        shape[axis] = -1
        self.numbers[out] = outs.reshape(shape)

    def grouped(self, spec: ConvSpec, ins: Numbers, outs: Numbers) -> str:
        """Depthwise: what comes in goes out. Else all groups lose the same of their channels."""
        if spec.groups == 1:
            return "conv"
        if spec.groups == spec.in_channels:
            self.found.tie(np.repeat(ins, spec.out_channels // spec.in_channels), outs)
            return "depthwise"
        for side in (ins, outs):
            rows = side.reshape(spec.groups, -1)
            self.found.tie(np.broadcast_to(rows[:1], rows.shape), rows)
        return "conv"

    # -- operators --------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._schema.name in VALUE_READS:
            return self.read(out)
        if self.inside == 0 and self.known(args, kwargs):
            self.follow(func, args, kwargs, out)
        return out

    def read(self, value: Any) -> Any:
        """A decision, taken as told; what is read beside decisions may change anything."""
        if not isinstance(value, bool):
            self.reads_values = True
            return value
        at = len(self.taken)
        if at >= WAYS:
            raise RuntimeError(f"more than {WAYS} decisions by values")
        self.taken.append(self.way[at] if at < len(self.way) else value)
        return self.taken[at]

    def known(self, *arguments: Any) -> list[Tensor]:
        return [x for x in tree_leaves(arguments) if isinstance(x, Tensor) and x in self.numbers]

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in MOVES:
            self.moved(name, func, args, kwargs, outs)
        elif name in POINTWISE or is_pointwise(func):
            self.pointwise(name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)], outs)
        elif name.startswith(SPATIAL):
            self.spatial(name, args, outs)
        elif name in REDUCTIONS and len(self.known(args, kwargs)) == 1:
            self.reduced(name, func, args, kwargs, outs)
        elif name in ALONG and self.shape(args[0])[int(args[1])] == 1:
            self.numbers[outs[0]] = self.numbers[args[0]]
        else:
            self.lost(name, (args, kwargs), outs)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(self.numbers[x].shape)

    def lost(self, name: str, inputs: Any, outs: Iterable[Tensor], reason: str | None = None) -> None:
        """Nothing is known of what the operator does: all that it touches stays."""
        reason = reason or f"{name} takes them, which is not followed"
        self.pin_all(inputs, reason)
        for out in outs:
            self.fixed(out, reason)

    def fixed(self, tensor: Tensor, reason: str) -> None:
        number = self.found.new(1)
        self.found.pin(number, reason)
        self.numbers[tensor] = number.reshape([1] * tensor.ndim)

    def pin(self, tensor: Tensor, reason: str) -> None:
        if tensor in self.numbers:
            self.found.pin(self.numbers[tensor], reason)

    def pin_all(self, arguments: Any, reason: str) -> None:
        for x in self.known(arguments):
            self.pin(x, reason)

    def along(self, x: Tensor, axis: int, reason: str) -> Numbers:
        """The numbers of a tensor along one axis, where they depend on no other; else new ones, all pinned."""
        if x not in self.numbers:
            self.fixed(x, "they are made in the forward pass")
        numbers = self.numbers[x]
        if numbers.size != numbers.shape[axis]:
            self.pin(x, reason)
            self.fixed(x, reason)
            numbers = self.numbers[x]
        return np.ascontiguousarray(np.broadcast_to(numbers.reshape(-1), (x.shape[axis],)))

    def moved(self, name: str, func: Any, args: Any, kwargs: Any, outs: Sequence[Tensor]) -> None:
        """The operator is run on the numbers themselves."""
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x not in self.numbers:
                self.fixed(x, "they are made in the forward pass")
        given = self.known(args, kwargs)
        if name in CUTS and not self.cut_apart(name, given[0], outs):
            return self.lost(name, (args, kwargs), outs, f"{name} cuts the channels")
        full = {id(x): torch.from_numpy(self.numbers[x].copy()).expand(x.shape) for x in given}
        swapped = [_replaced(a, full) for a in args]
        if name == "_to_copy":
            func, kwargs = torch.ops.aten.clone.default, {}
        elif name in ("view", "_unsafe_view", "_reshape_alias"):
            func, swapped, kwargs = torch.ops.aten.reshape.default, [swapped[0], outs[0].shape], {}
        results = [t for t in tree_leaves(func(*swapped, **kwargs)) if isinstance(t, Tensor)]
        for out, result in zip(outs, results, strict=True):
            self.numbers[out] = self.rectangular(_compact(result))
        if name in ("split", "split_with_sizes", "unbind"):
            self.equal_parts(outs)

    def cut_apart(self, name: str, x: Tensor, outs: Sequence[Tensor]) -> bool:
        """Whether only axes are cut along which all channels are alike, or all parts are as long."""
        numbers = self.shape(x)
        varying = [i for i, n in enumerate(numbers) if n > 1]
        if name in ("unbind", "select"):
            lost = [i for i in varying if outs[0].ndim < x.ndim and x.shape[i] not in outs[0].shape]
            return not lost and (name == "select" or not varying or x.shape[varying[0]] in outs[0].shape)
        same = len({out.shape for out in outs}) == 1 and len(outs) > 1
        return all(outs[0].shape[i] == x.shape[i] or same for i in varying)

    def equal_parts(self, outs: Sequence[Tensor]) -> None:
        """Parts of the channels that must stay as long as each other lose the same of them."""
        first = self.numbers[outs[0]]
        for out in outs[1:]:
            if self.numbers[out].shape == first.shape:
                self.found.tie(first, self.numbers[out])

    def rectangular(self, numbers: Numbers) -> Numbers:
        """Where channels lie along several axes (in a shuffle, say), each row loses the same of them."""
        while sum(n > 1 for n in numbers.shape) > 1:
            axis = next(i for i, n in enumerate(numbers.shape) if n > 1)
            first = np.take(numbers, [0], axis)
            self.found.tie(np.broadcast_to(first, numbers.shape), numbers)
            numbers = first
        return numbers

    def pointwise(self, name: str, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Values at the same place: their channels are the same."""
        ndim = outs[0].ndim
        aligned = [(x, (1,) * (ndim - x.ndim) + tuple(x.shape)) for x in inputs]
        known = [(x, shape, self.numbers[x].reshape((1,) * (ndim - x.ndim) + self.shape(x)))
                 for x, shape in aligned if x in self.numbers]  # fmt: skip
        varying = [max(sizes) > 1 for sizes in zip(*(n.shape for _, _, n in known), strict=True)]
        for x, shape in aligned:
            if x not in self.numbers and any(v and n > 1 for v, n in zip(varying, shape, strict=True)):
                return self.lost(name, inputs, outs, f"{name} takes them with a tensor of its own")
        result: Numbers | None = None
        for x, shape, numbers in known:
            if any(v and n == 1 for v, n in zip(varying, shape, strict=True)):
                if any(n > 1 for n in numbers.shape):
                    return self.lost(name, inputs, outs, f"{name} spreads them over other channels")
                self.pin(x, f"{name} spreads it over other channels")
            elif result is None:
                result = numbers
            else:
                full = np.broadcast_shapes(result.shape, numbers.shape)
                one, other = np.broadcast_to(result, full), np.broadcast_to(numbers, full)
                self.found.tie(one, other)
                result = one
        if result is None:
            return self.lost(name, inputs, outs)
        for out in outs:
            self.numbers[out] = result
        return None

    def spatial(self, name: str, args: Any, outs: Sequence[Tensor]) -> None:
        """Poolings and the like, which see each channel alone."""
        x = args[0]
        last = len(args[1]) // 2 if name == "constant_pad_nd" else next(int(c) for c in name if c.isdigit())
        shape = self.shape(x)
        padded = [i for i in range(x.ndim) if outs[0].shape[i] != x.shape[i]] if name == "constant_pad_nd" else \
            range(x.ndim - last, x.ndim)  # fmt: skip
        if any(shape[i] > 1 for i in padded):
            return self.lost(name, args, outs)
        for out in outs:
            self.numbers[out] = self.numbers[x]
        return None

    def reduced(self, name: str, func: Any, args: Any, kwargs: Any, outs: Sequence[Tensor]) -> None:
        x = args[0]
        axes, _ = reduction(func, args, kwargs)
        shape = self.shape(x)
        if any(shape[i] > 1 for i in axes):
            return self.lost(name, args, outs, f"{name} is taken over the channels")
        kept = outs[0].ndim == x.ndim
        for out in outs:
            self.numbers[out] = self.numbers[x].reshape([n for i, n in enumerate(shape) if kept or i not in axes])
        return None


def reduction(func: Any, args: Any, kwargs: Any) -> tuple[set[int], bool]:
    """The axes of its first argument that a reduction takes away, and whether they stay with a length of 1."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)
    dims, count = given.get("dim"), args[0].ndim
    dims = range(count) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return {d % count for d in dims} if count else set(), bool(given.get("keepdim"))


def leaf_kind(module: nn.Module) -> str | None:
    """ "conv", "norm" or "linear" of a module whose channels can be taken away."""
    if is_conv(module):
        return "conv" if plain_forward(module) is None else None
    if isinstance(module, _BatchNorm) and normalises(module):
        return "norm"
    return "linear" if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward else None


def _channel_axis(kind: str, module: nn.Module, x: Tensor) -> int:
    if kind == "linear":
        return x.ndim - 1
    return 1 if kind == "norm" else x.ndim - 1 - len(module.kernel_size)  # type: ignore[arg-type]


def is_pointwise(func: Any) -> bool:
    packet = func._overloadpacket
    return any(torch.Tag.pointwise in getattr(packet, each).tags for each in packet.overloads())


def _replaced(argument: Any, full: dict[int, Tensor]) -> Any:
    if isinstance(argument, Tensor):
        return full[id(argument)]
    if isinstance(argument, list | tuple) and any(isinstance(each, Tensor) for each in argument):
        return [_replaced(each, full) for each in argument]
    return argument


def _compact(full: Tensor) -> Numbers:
    """1 long along every axis on which the numbers do not depend."""
    for axis in range(full.ndim):
        first = full.narrow(axis, 0, min(1, full.shape[axis]))
        if full.shape[axis] > 1 and (full.stride(axis) == 0 or bool((full == first).all())):
            full = first
    return np.array(full.numpy(), order="C")
