"""`Site`: one convolution of one network, with what surrounds it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reconv.errors import conv_error
from reconv.spec import Block, ConvSpec, macs, output_shape

if TYPE_CHECKING:
    from reconv.surgery.surroundings import Surroundings

DEFORMABLE = "deformable"  # the kind of such a call


@dataclass(frozen=True)
class ConvCall:
    """One run of one convolution in a forward pass."""

    name: str  # of the site, or of the call itself where it is functional
    kind: str
    spec: ConvSpec
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    macs: int
    functional: bool = False
    receptive_field: tuple[int, ...] | None = None
    beside_bytes: int = field(default=0, compare=False)  # alive then, besides its input and what it makes

    @property
    def output_bytes(self) -> int:
        return prod(self.output_shape) * self.dtype.itemsize

    def shape_by(self, block: Block) -> tuple[int, ...]:
        """The shape of the output, had this block run; raises ConvError where it cannot take the input."""
        batch = (1,) * (self.spec.spatial_dims + 2 - len(self.input_shape))  # where there is none
        return output_shape(block, batch + self.input_shape)[len(batch) :]


@dataclass(frozen=True)
class Norm:
    """A batch norm that follows a convolution, as the affine map that it is in evaluation: scale · y + shift."""

    name: str
    scale: Tensor  # (C,), float64
    shift: Tensor


@dataclass(frozen=True)
class Site:
    """One convolution of one network: what it computes, how often, and its neighbours where they are known.

    Args:    name: the first qualified name of its module; names: all of them.
             block, tensors: what it computes, and the state dict of `layers.build(block)`.
             calls: its runs in one forward pass of the example inputs.
             norm: the batch norm that alone consumes its output; norm_refusal: why none is known.
             norms: the batch norms that alone consume its runs' outputs, one behind each run; empty where a run has
             none.
             activation: the module that alone consumes the output (of the norm, where there is one).
             activation_kind: which function that is, where it is known, and nobody else needs the module.
             refusal: why its module cannot be swapped at all.
             ours: whether its module is one of reconv's layers.
             modules: of a site that is a whole module of several layers, their names inside of it; else empty.
             around: the network, for rules that edit several modules; None where it is no longer known.
    """

    name: str
    block: Block
    tensors: dict[str, Tensor] = field(repr=False)
    names: tuple[str, ...] = ()
    calls: tuple[ConvCall, ...] = ()
    norm: Norm | None = None
    norm_refusal: str | None = None
    norms: tuple[Norm, ...] = ()
    activation: str | None = None
    activation_kind: str | None = None
    refusal: str | None = None
    ours: bool = False
    modules: tuple[str, ...] = ()
    around: Surroundings | None = field(default=None, repr=False, compare=False)

    @property
    def spec(self) -> ConvSpec:
        """The convolution, where the site is still a single one."""
        if not isinstance(self.block, ConvSpec):
            raise conv_error("Site.spec", "the site must be a single convolution",
                             got={"site": self.name}, spec=self.block)  # fmt: skip
        return self.block

    @property
    def weight(self) -> Tensor:
        return self.tensors["weight"]

    @property
    def bias(self) -> Tensor | None:
        return self.tensors.get("bias")

    @property
    def dtype(self) -> torch.dtype:
        return next(t.dtype for t in self.tensors.values() if t.is_floating_point() or t.is_complex())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of its first run."""
        return self.calls[0].input_shape

    def after(self, block: Block, tensors: dict[str, Tensor], absorbed: tuple[str, ...] = ()) -> Site:
        """The same site once an edit has put `block` in its place and absorbed the named modules."""
        norm = None if self.norm and self.norm.name in absorbed else self.norm
        gone = None if norm is self.norm else "its batch norm is folded already"
        activation, kind = (None, None) if self.activation in absorbed else (self.activation, self.activation_kind)
        norms = tuple(n for n in self.norms if n.name not in absorbed)
        calls = tuple(_narrowed(call, block) for call in self.calls) if isinstance(block, ConvSpec) else self.calls
        return replace(self, block=block, tensors=tensors, calls=calls, norm=norm,
                       norm_refusal=gone or self.norm_refusal, norms=norms, activation=activation,
                       activation_kind=kind, ours=True, around=None)  # fmt: skip


def _narrowed(call: ConvCall, spec: ConvSpec) -> ConvCall:
    """The run with as many channels as the convolution now takes and gives."""
    if (call.spec.in_channels, call.spec.out_channels) == (spec.in_channels, spec.out_channels):
        return call
    axis = len(call.input_shape) - 1 - spec.spatial_dims
    shapes = [(*shape[:axis], channels, *shape[axis + 1 :]) for shape, channels in
              ((call.input_shape, spec.in_channels), (call.output_shape, spec.out_channels))]  # fmt: skip
    return replace(call, spec=spec, input_shape=shapes[0], weight_shape=spec.weight_shape, output_shape=shapes[1],
                   macs=macs(spec, shapes[0]))  # fmt: skip


def check_sites(name: str, sites: object) -> None:
    """What `chosen` takes as patterns."""
    if not isinstance(sites, str) and not (isinstance(sites, Iterable) and all(isinstance(s, str) for s in sites)):
        raise conv_error(name, "sites must be a name, a pattern such as features.*, or a list of them",
                         got={"sites": repr(sites)}, also=TypeError)  # fmt: skip


def chosen(name: str, patterns: str | Sequence[str]) -> bool:
    """Whether a site is meant by the patterns: globs, several as a list or with commas."""
    wanted = patterns.split(",") if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern.strip()) for pattern in wanted)


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module of this name is one of these, or in one of them."""
    return any(module in ("", name) or name.startswith(f"{module}.") for module in modules)
