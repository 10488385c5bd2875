"""`Block`: an expression over convolutions. Folds live beside this file, one idea each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from reconv.errors import conv_error
from reconv.shown import show
from reconv.spec.conv import ConvSpec

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
               "identity")  # fmt: skip


class _Composite:
    def _repr_svg_(self) -> str | None:
        return show("block", self)

    def __str__(self) -> str:
        from reconv.spec.text import block_text

        return block_text(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Chain(_Composite):
    """One after the other: `A -> B`."""

    blocks: tuple[Block, ...]

    def __init__(self, *blocks: Block) -> None:
        _check_blocks("Chain", blocks)
        flat = [part for b in blocks for part in (b.blocks if isinstance(b, Chain) else (b,))]
        if len(flat) < 2:
            raise conv_error("Chain", "a chain has at least two blocks", got={"blocks": len(flat)}, also=ValueError)
        object.__setattr__(self, "blocks", tuple(flat))


@dataclass(frozen=True)
class Branches(_Composite):
    """Side by side on the same input: `(A | B)` joined by concatenation, `(A + B)` by addition."""

    blocks: tuple[Block, ...]
    join: str

    def __init__(self, *blocks: Block, join: str = "concat") -> None:
        _check_blocks("Branches", blocks)
        if len(blocks) < 2 or join not in ("concat", "sum"):
            raise conv_error("Branches", "at least two blocks, joined by 'concat' or 'sum'",
                             got={"blocks": len(blocks), "join": join}, also=ValueError)  # fmt: skip
        object.__setattr__(self, "blocks", tuple(blocks))
        object.__setattr__(self, "join", join)


@dataclass(frozen=True)
class Shuffle(_Composite):
    """Channel shuffle: (groups, channels / groups) transposed. Source: Zhang et al. 2017, arXiv:1707.01083."""

    groups: int

    def __post_init__(self) -> None:
        _check_count(self, "groups")


@dataclass(frozen=True)
class Permute(_Composite):
    """Channels taken in another order; the order itself is data (`index`), as weights are."""

    channels: int

    def __post_init__(self) -> None:
        _check_count(self, "channels")


@dataclass(frozen=True)
class PixelShuffle(_Composite):
    """Blocks of channels spread over space: y[n, c, s·p + r] = x[n, (c, r), p], with r below s along each axis.

    Args:    factors: s of each spatial axis, which fixes the number of dimensions.
             crop: (lo, hi) positions cut off the result along each axis; none of them: nothing.
    Source:  Shi et al. 2016, arXiv:1609.05158
    """

    factors: tuple[int, ...]
    crop: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        crop = tuple(tuple(ends) for ends in self.crop) or ((0, 0),) * len(self.factors)
        object.__setattr__(self, "crop", crop)
        if not 1 <= len(self.factors) <= 3 or not all(isinstance(s, int) and s >= 1 for s in self.factors):
            raise conv_error("PixelShuffle", "factors must be 1, 2 or 3 integers >= 1", got={"factors": self.factors},
                             also=ValueError)  # fmt: skip
        if len(crop) != len(self.factors) or not all(isinstance(n, int) and n >= 0 for ends in crop for n in ends):
            raise conv_error("PixelShuffle", "crop must be a pair of integers >= 0 for each factor",
                             got={"crop": crop}, also=ValueError)  # fmt: skip


@dataclass(frozen=True)
class Gate(_Composite):
    """Squeeze-and-excitation: each channel times a learned weight. Source: Hu et al. 2017, arXiv:1709.01507."""

    reduction: int = 16

    def __post_init__(self) -> None:
        _check_count(self, "reduction")


@dataclass(frozen=True)
class Activation(_Composite):
    """A function of each value, by its name: one of `ACTIVATIONS`, with PyTorch's default settings."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise conv_error("Activation", f"name must be one of {', '.join(ACTIVATIONS)}",
                             got={"name": repr(self.name)}, also=ValueError)  # fmt: skip


@dataclass(frozen=True)
class BatchNorm(_Composite):
    """y[n, c] = γ[c] · (x[n, c] − μ[c]) / √(σ²[c] + 1e-5) + β[c]. Source: Ioffe and Szegedy 2015, arXiv:1502.03167."""


@dataclass(frozen=True)
class Deform(_Composite):
    """A convolution whose sampling points are shifted by learned offsets, and weighted where `modulated`.

    Source:  Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2018, arXiv:1811.11168.
    """

    conv: ConvSpec
    offset_groups: int = 1
    modulated: bool = False

    def __post_init__(self) -> None:
        _check_blocks("Deform", (self.conv,))
        _check_count(self, "offset_groups")
        if self.conv.transposed:
            raise conv_error("Deform", "the convolution must not be transposed", spec=self.conv, also=ValueError)
        if self.conv.in_channels % self.offset_groups:
            raise conv_error("Deform", "in_channels must be divisible by offset_groups",
                             got={"offset_groups": self.offset_groups}, spec=self.conv, also=ValueError)  # fmt: skip

    @property
    def offset_conv(self) -> ConvSpec:
        """The convolution that computes the offsets, and the mask where modulated."""
        taps = 1
        for k in self.conv.kernel_size:
            taps *= k
        per_tap = self.conv.spatial_dims + self.modulated
        return self.conv.replace(out_channels=self.offset_groups * taps * per_tap, groups=1, bias=True)


Block = ConvSpec | Chain | Branches | Shuffle | Permute | PixelShuffle | Gate | Deform | Activation | BatchNorm


def _check_blocks(name: str, blocks: tuple[object, ...]) -> None:
    for block in blocks:
        if not isinstance(block, Block):
            raise conv_error(name, "each part must be a block", got={"part": repr(block)}, also=TypeError)


def _check_count(block: object, field: str) -> None:
    value = getattr(block, field)
    if not isinstance(value, int) or value < 1:
        raise conv_error(type(block).__name__, f"{field} must be an integer >= 1", got={field: value}, also=ValueError)


def convs(block: Block) -> Iterator[ConvSpec]:
    """Every convolution of a block, from left to right (a gate's two layers are not spelled as such)."""
    match block:
        case ConvSpec():
            yield block
        case Chain() | Branches():
            for part in block.blocks:
                yield from convs(part)
        case Deform():
            yield block.offset_conv
            yield block.conv
        case Shuffle() | Permute() | PixelShuffle() | Gate() | Activation() | BatchNorm():
            return
        case _:
            assert_never(block)
