"""The dense kernel of a block of linear parts, from its tensors and differentiable in each of them: a fold over Block.

Unlike `linear`, which says what a block *is* at its borders too, this says what it computes away from them, for every
kind that has such a kernel (reordered channels and chains of transposed ones among them), in one site's own form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from reconv.ruleset.linear import inside, regrouped
from reconv.spec import Block, Branches, Chain, ConvSpec, Permute, Shuffle
from reconv.spec.conv import Ints

Tensors = Mapping[str, Tensor]


class NotLinearError(Exception):
    """Why a block has no single kernel in a site's form; a refusal, never shown as an error."""


@dataclass(frozen=True)
class Composed:
    """A kernel (groups, out / groups, in / groups, *kernel), and what the biases add to each output (None: nothing)."""

    kernel: Tensor
    added: Tensor | None


def composed(block: Block, tensors: Tensors, spec: ConvSpec) -> Composed:
    """The block's kernel, in the form of the convolution `spec` in whose place it stands.

        chain:   w[o, c, t] = Σ_{m, steps meet} w_B[o, m, t_B] · w_A[m, c, t_A]
        sum:     w[o, c, t] = Σ_j w_j[o, c, t]             concat: each branch with its own outputs o
        order:   y[c] = x[index[c]]

    Args:    tensors: of the block's state dict, any floating dtype; gradients flow into them.
    Raises:  NotLinearError: where there is no such kernel.
    """
    return _in_form(_part(block, tensors), spec)


@dataclass(frozen=True)
class _Part:
    """Tap t reads x[stride · p + start + step · t], or transposed writes there; `transposed` None: it only mixes."""

    kernel: Tensor
    added: Tensor | None
    stride: Ints
    start: Ints
    step: Ints
    transposed: bool | None

    @property
    def groups(self) -> int:
        return self.kernel.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape[3:])


def _part(block: Block, tensors: Tensors) -> _Part:
    match block:
        case ConvSpec():
            return _conv(block, tensors)
        case Chain():
            return _chain(block, tensors)
        case Branches():
            return _side_by_side([_part(b, inside(tensors, i)) for i, b in enumerate(block.blocks)], block.join)
        case _:
            raise NotLinearError(f"no kernel by itself: {block}")


def _conv(spec: ConvSpec, tensors: Tensors) -> _Part:
    grouped = tensors["weight"].reshape(spec.groups, -1, *spec.weight_shape[1:])
    start = tuple(-lo for lo, _ in spec.padding)
    mixes = spec.pointwise and not any(start) and set(spec.stride) == {1} and not any(spec.output_padding)
    return _Part(grouped.transpose(1, 2) if spec.transposed else grouped, tensors.get("bias"), spec.stride, start,
                 spec.dilation, None if mixes else spec.transposed)  # fmt: skip


# -- one after the other ----------------------------------------------------------------------------------
def _chain(chain: Chain, tensors: Tensors) -> _Part:
    now: _Part | None = None
    order: Tensor | None = None  # of the channels that come in
    for position, block in enumerate(chain.blocks):
        mine = inside(tensors, position)
        if isinstance(block, Permute | Shuffle):
            index = mine["index"] if isinstance(block, Permute) else _shuffled(block, now)
            if now is None:
                order = index if order is None else order[index]
            else:
                now = _reordered(now, index)
            continue
        part = _part(block, mine)
        if now is None and order is not None:
            part = replace(part, kernel=regrouped(part.kernel, 1)[:, :, order.argsort()])
        now = part if now is None else _after(now, part)
    if now is None:
        raise NotLinearError("it only reorders channels")
    return now


def _shuffled(block: Shuffle, now: _Part | None) -> Tensor:
    if now is None:
        raise NotLinearError("it begins with a shuffle")
    channels = now.groups * now.kernel.shape[1]
    return torch.arange(channels, device=now.kernel.device).reshape(block.groups, -1).T.flatten()


def _reordered(part: _Part, index: Tensor) -> _Part:
    added = None if part.added is None else part.added[index]
    return replace(part, kernel=regrouped(part.kernel, 1)[:, index], added=added)


def _after(a: _Part, b: _Part) -> _Part:
    """b on what a gives."""
    if None not in (a.transposed, b.transposed) and a.transposed != b.transposed:
        raise NotLinearError("a chain of a transposed and of another convolution")
    transposed = b.transposed if a.transposed is None else a.transposed
    if transposed:  # what is written last has the finest grid
        start = [sb * s + t for sb, s, t in zip(b.stride, a.start, b.start, strict=True)]
        steps = [sb * d for sb, d in zip(b.stride, a.step, strict=True)], list(b.step)
    else:
        start = [s + sa * t for sa, s, t in zip(a.stride, a.start, b.start, strict=True)]
        steps = list(a.step), [sa * d for sa, d in zip(a.stride, b.step, strict=True)]
    step = [gcd(*(s for s, k in ((x, ka), (y, kb)) if k > 1)) or 1
            for x, y, ka, kb in zip(*steps, a.size, b.size, strict=True)]  # fmt: skip
    stride = tuple(x * y for x, y in zip(a.stride, b.stride, strict=True))
    kernel = _convolved(a.kernel, b.kernel, *([s // d for s, d in zip(each, step, strict=True)] for each in steps))
    return _Part(kernel, _passed(a, b), stride, tuple(start), tuple(step), transposed)


def _passed(a: _Part, b: _Part) -> Tensor | None:
    """What both add: a's constant map, mixed by b."""
    if a.added is None:
        return b.added
    through = b.kernel.flatten(3).sum(-1)
    mixed = torch.einsum("gom,gm->go", through, a.added.reshape(b.groups, -1)).flatten()
    return mixed if b.added is None else mixed + b.added


def _convolved(a: Tensor, b: Tensor, step_a: Sequence[int], step_b: Sequence[int]) -> Tensor:
    """Channels multiplied; taps of either, so many places apart, added up where they meet."""
    size_a, size_b = a.shape[3:], b.shape[3:]
    if prod(size_b) == 1 or prod(size_a) == 1:
        one = _mixed(a.flatten(3), b.flatten(3))
        size, steps = (size_a, step_a) if prod(size_b) == 1 else (size_b, step_b)
        one = one.reshape(*one.shape[:3], *size)
        if all(k == 1 or s == 1 for k, s in zip(size, steps, strict=True)):
            return one
        wide = one.new_zeros(*one.shape[:3], *((k - 1) * max(s, 1) + 1 for k, s in zip(size, steps, strict=True)))
        wide[_strided([0] * len(size), steps, size)] = one
        return wide
    room = [(ka - 1) * sa + (kb - 1) * sb + 1 for ka, sa, kb, sb in zip(size_a, step_a, size_b, step_b, strict=True)]
    result: Tensor | None = None
    for tap in product(*map(range, size_b)):
        mixed = _mixed(a.flatten(3), b[(..., *tap, None)])
        if result is None:
            result = mixed.new_zeros(*mixed.shape[:3], *room)
        at = [t * s for t, s in zip(tap, step_b, strict=True)]
        result[_strided(at, step_a, size_a)] += mixed.reshape(*mixed.shape[:3], *size_a)
    assert result is not None  # a kernel has a tap
    return result


def _strided(start: Sequence[int], step: Sequence[int], size: Sequence[int]) -> Any:
    return (..., *(slice(at, at + (k - 1) * max(s, 1) + 1, max(s, 1))
                   for at, s, k in zip(start, step, size, strict=True)))  # fmt: skip


def _mixed(a: Tensor, b: Tensor) -> Tensor:
    """Σ_m b[o, m, x] · a[m, c, x], where one of them has a single x, in as many groups as the finer side leaves."""
    (ga, m, i, _), (gb, o, n, _) = a.shape, b.shape
    if ga % gb == 0:  # each of b's groups reads several of a's
        many = ga // gb
        result = torch.einsum("gjmix,gojmx->gojix", a.reshape(gb, many, m, i, -1), b.reshape(gb, o, many, m, -1))
        return result.reshape(gb, o, many * i, -1)
    if gb % ga == 0:
        many = gb // ga
        result = torch.einsum("gjmix,gjomx->gjoix", a.reshape(ga, many, n, i, -1), b.reshape(ga, many, o, n, -1))
        return result.reshape(ga, many * o, i, -1)
    groups = gcd(ga, gb)
    return _mixed(regrouped(a, groups), regrouped(b, groups))


# -- side by side -----------------------------------------------------------------------------------------
def _side_by_side(parts: Sequence[_Part], join: str) -> _Part:
    kinds = {part.transposed for part in parts} - {None}
    if len(kinds) > 1 or len({part.stride for part in parts}) > 1:
        raise NotLinearError("its branches differ in their strides, or only some are transposed")
    axes = range(len(parts[0].stride))
    start = [min(part.start[x] for part in parts) for x in axes]
    step = [gcd(*(p.step[x] for p in parts if p.size[x] > 1), *(p.start[x] - start[x] for p in parts)) or 1
            for x in axes]  # fmt: skip
    room = [max(p.start[x] - start[x] + (p.size[x] - 1) * p.step[x] for p in parts) // step[x] + 1 for x in axes]
    groups = gcd(*(part.groups for part in parts)) if join == "sum" else 1
    kernels, added = [], []
    for part in parts:
        kernel = regrouped(part.kernel, groups)
        at = [(s - t) // d for s, t, d in zip(part.start, start, step, strict=True)]
        wide = kernel.new_zeros(*kernel.shape[:3], *room)
        wide[_strided(at, [p // d for p, d in zip(part.step, step, strict=True)], part.size)] = kernel
        kernels.append(wide)
        outputs = part.groups * part.kernel.shape[1]
        added.append(kernel.new_zeros(outputs) if part.added is None else part.added)
    joined = torch.stack(kernels).sum(0) if join == "sum" else torch.cat(kernels, 1)
    together = torch.stack(added).sum(0) if join == "sum" else torch.cat(added)
    return _Part(joined, together if any(part.added is not None for part in parts) else None, parts[0].stride,
                 tuple(start), tuple(step), next(iter(kinds), None))  # fmt: skip


# -- as the site's own ------------------------------------------------------------------------------------
def _in_form(part: _Part, spec: ConvSpec) -> Composed:
    kernel = _grouped(part.kernel, spec.groups)
    wanted = (spec.out_channels // spec.groups, spec.in_channels // spec.groups)
    if kernel.shape[1:3] != wanted or part.stride != spec.stride:
        raise NotLinearError("its channels or its stride are others")
    if part.transposed is not None and part.transposed != spec.transposed:
        raise NotLinearError("only one of the two is transposed")
    window: list[Any] = [...]
    for start, step, k, (lo, _), d, room in zip(part.start, part.step, part.size, spec.padding, spec.dilation,
                                                spec.kernel_size, strict=True):  # fmt: skip
        at, off = divmod(start + lo, d)
        stride, uneven = divmod(step, d) if k > 1 else (1, 0)
        if off or uneven or at < 0 or at + (k - 1) * stride >= room:
            raise NotLinearError("it has taps that the convolution does not have")
        window.append(slice(at, at + (k - 1) * stride + 1, stride))
    result = kernel.new_zeros(*kernel.shape[:3], *spec.kernel_size)
    result[tuple(window)] = kernel
    return Composed(result, part.added)


def _grouped(kernel: Tensor, groups: int) -> Tensor:
    """The kernel in so many groups; what stood between them must be nothing."""
    now = kernel.shape[0]
    if now % groups == 0:
        return regrouped(kernel, groups)
    whole = regrouped(kernel, 1)[0]
    o, i, *k = whole.shape
    blocks = whole.reshape(groups, o // groups, groups, i // groups, *k)
    each = torch.arange(groups)
    diagonal = blocks[each, :, each]
    if int(diagonal.detach().count_nonzero()) != int(whole.detach().count_nonzero()):
        raise NotLinearError("it mixes channels of different groups")
    return diagonal
