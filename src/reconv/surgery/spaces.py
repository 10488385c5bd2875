"""`Space`: the channels that a convolution is the first to give, with all modules that have them, and what these
become without some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reconv.spec import ConvSpec
from reconv.surgery.clone import applied
from reconv.surgery.coupled import Channels, Numbers
from reconv.surgery.kin import text_of

Tensors = Mapping[str, Tensor]
Kept = Mapping[str, tuple[Numbers, Numbers]]  # of each module the positions that stay, of inputs and of outputs


@dataclass(frozen=True)
class Space:
    """The channels of one site that may go.

    Args:    classes: their roots; those of one class are in the same modules, equally often.
             modules: every module that has one of them, in the order of their first run; the site is the first.
             readers: those that compute with them: their weights pay for what goes.
    """

    site: str
    classes: tuple[Numbers, ...]
    modules: tuple[str, ...]
    readers: tuple[str, ...]

    def kept(self, channels: Channels, removed: Iterable[int]) -> Kept:
        """What stays of each module."""
        gone = np.array(sorted(removed), dtype=np.int64)
        sides = {name: (channels.leaves[name].ins, channels.leaves[name].outs) for name in self.modules}
        return {name: (np.flatnonzero(~np.isin(ins, gone)), np.flatnonzero(~np.isin(outs, gone)))
                for name, (ins, outs) in sides.items()}  # fmt: skip

    def counted(self, channels: Channels, counts: Sequence[int]) -> dict[str, tuple[int, int]]:
        """How many inputs and outputs each module keeps, where so many of each class stay."""
        left = {name: [len(channels.leaves[name].ins), len(channels.leaves[name].outs)] for name in self.modules}
        for roots, count in zip(self.classes, counts, strict=True):
            for (name, side), times in channels.members[int(roots[0])].items():
                left[name][side == "out"] -= times * (len(roots) - count)
        return {name: (ins, outs) for name, (ins, outs) in left.items()}


def space_of(channels: Channels, site: str) -> Space | str:
    """The space of a site, or why none of its channels can go."""
    leaf = channels.leaves.get(site)
    if leaf is None or leaf.kind not in ("conv", "depthwise"):
        return "it is not seen as a convolution of its network"
    roots = np.unique(leaf.outs).tolist()
    free = [r for r in roots if r not in channels.pinned]
    if not free:
        return f"its channels must stay: {channels.pinned[roots[0]]}"
    own = [r for r in free if channels.givers[r] == site]
    if not own:
        owner = channels.givers[free[0]]
        return f"its channels are those of {owner}, which gives them first" if owner else \
            "no convolution gives its channels first"  # fmt: skip
    classes: dict[frozenset[Any], list[int]] = {}
    for root in own:
        classes.setdefault(frozenset(channels.members[root].items()), []).append(root)
    touched = {name for members in classes for (name, _), _ in members}
    taking = {name for members in classes for (name, side), _ in members if side == "in"}
    modules = (site, *(n for n in channels.leaves if n in touched and n != site))
    readers = (n for n in channels.leaves if n in taking and channels.leaves[n].kind in ("conv", "linear"))
    return Space(site, tuple(np.array(c) for c in classes.values()), modules, tuple(readers))


# -- modules with fewer channels ------------------------------------------------------------------
def narrowed(module: nn.Module, ins: Numbers, outs: Numbers) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors of a module of which only these inputs and outputs stay."""
    tensors = applied(module)
    rows, columns = torch.from_numpy(outs), torch.from_numpy(ins)
    if isinstance(module, nn.Linear):
        tensors["weight"] = tensors["weight"][rows][:, columns]
        if "bias" in tensors:
            tensors["bias"] = tensors["bias"][rows]
        return f"linear({len(ins)}, {len(outs)})", tensors
    if isinstance(module, nn.modules.conv._ConvNd):
        spec, tensors = narrowed_conv(ConvSpec.of(module), tensors, ins, outs)
        return str(spec), tensors
    return f"norm({len(outs)})", {n: t[rows] if t.ndim == 1 else t for n, t in tensors.items()}


def narrowed_spec(spec: ConvSpec, ins: int, outs: int) -> ConvSpec:
    """A convolution of so many channels: depthwise stays depthwise, else the groups stay."""
    groups = ins if spec.depthwise else spec.groups
    return spec.replace(in_channels=ins, out_channels=outs, groups=groups)


def narrowed_conv(spec: ConvSpec, tensors: Tensors, ins: Numbers, outs: Numbers) -> tuple[ConvSpec, dict[str, Tensor]]:
    """A convolution of which only these channels stay; a group loses what the others lose."""
    new, weight = narrowed_spec(spec, len(ins), len(outs)), tensors["weight"]
    if spec.depthwise:
        weight = weight[torch.from_numpy(ins if spec.transposed else outs)]
    else:
        grouped = weight.reshape(spec.groups, -1, *weight.shape[1:])
        a, b = (of[of < count // spec.groups] for of, count in ((ins, spec.in_channels), (outs, spec.out_channels)))
        first, second = (a, b) if spec.transposed else (b, a)
        weight = grouped[:, torch.from_numpy(first)][:, :, torch.from_numpy(second)].reshape(new.weight_shape)
    bias = {"bias": tensors["bias"][torch.from_numpy(outs)].clone()} if "bias" in tensors else {}
    return new, {"weight": weight.contiguous().clone(), **bias}


def unchanged(model: nn.Module, name: str) -> tuple[str, dict[str, Tensor]]:
    """A module as it is."""
    module = model.get_submodule(name)
    text = text_of(module)
    assert text is not None  # a leaf has one
    return text, applied(module)
