"""`Block`: an expression over convolutions. Folds live beside this file, one idea each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Never

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
    """One after the other: `A -> B`.

    Args:    blocks: two at least; the parts of a chain among them become parts of this one.
    Raises:  ConvError: when there are fewer, or one of them is no block.
    Example:
             >>> a, b = Activation("relu"), Shuffle(4)
             >>> str(Chain(a, Chain(b, a)))
             'relu -> shuffle(4) -> relu'
    """

    blocks: tuple[Block, ...]

    def __init__(self, *blocks: Block) -> None:
        _check_blocks("Chain", blocks)
        flat = [part for b in blocks for part in (b.blocks if isinstance(b, Chain) else (b,))]
        if len(flat) < 2:
            raise conv_error("Chain", "there must be at least two blocks", got={"blocks": len(flat)}, also=ValueError)
        object.__setattr__(self, "blocks", tuple(flat))


@dataclass(frozen=True)
class Branches(_Composite):
    """Side by side on the same input: `(A | B)` joined by concatenation, `(A + B)` by addition.

    Args:    blocks: two at least. join: "concat" or "sum".
    Raises:  ConvError: when there are fewer, one of them is no block, or join is another word.
    Example:
             >>> str(Branches(Activation("relu"), Activation("tanh"), join="sum"))
             '(relu + tanh)'
    """

    blocks: tuple[Block, ...]
    join: str

    def __init__(self, *blocks: Block, join: str = "concat") -> None:
        _check_blocks("Branches", blocks)
        if len(blocks) < 2 or join not in ("concat", "sum"):
            raise conv_error("Branches", "there must be at least two blocks, joined by 'concat' or 'sum'",
                             got={"blocks": len(blocks), "join": join}, also=ValueError)  # fmt: skip
        object.__setattr__(self, "blocks", tuple(blocks))
        object.__setattr__(self, "join", join)


@dataclass(frozen=True)
class Shuffle(_Composite):
    """Channel shuffle: y[n, j·groups + i] = x[n, i·(C / groups) + j].

    Args:    groups: which divides the channels.
    Raises:  ConvError: when it is no count.
    Source:  Zhang et al. 2017, arXiv:1707.01083
    Example:
             >>> str(Shuffle(4))
             'shuffle(4)'
    """

    groups: int

    def __post_init__(self) -> None:
        _check_count(self, "groups")


@dataclass(frozen=True)
class Permute(_Composite):
    """Channels taken in another order; the order itself is data (`index`), as weights are.

    Args:    channels: how many there are.
    Raises:  ConvError: when it is no count.
    Example:
             >>> str(Permute(64))
             'permute(64)'
    """

    channels: int

    def __post_init__(self) -> None:
        _check_count(self, "channels")


@dataclass(frozen=True)
class PixelShuffle(_Composite):
    """Blocks of channels spread over space: y[n, c, s·p + r] = x[n, (c, r), p], with r below s along each axis.

    Args:    factors: s of each spatial axis, which fixes the number of dimensions.
             crop: (lo, hi) positions cut off the result along each axis; none of them: nothing.
    Raises:  ConvError: when these are no 1, 2 or 3 counts, or no pairs.
    Source:  Shi et al. 2016, arXiv:1609.05158
    Example:
             >>> PixelShuffle((2, 2)).crop
             ((0, 0), (0, 0))
    """

    factors: tuple[int, ...]
    crop: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        factors = tuple(self.factors) if isinstance(self.factors, Iterable) else ()
        if not 1 <= len(factors) <= 3 or not all(isinstance(s, int) and s >= 1 for s in factors):
            raise conv_error("PixelShuffle", "factors must be 1, 2 or 3 integers >= 1, in a tuple",
                             got={"factors": repr(self.factors)}, also=ValueError)  # fmt: skip
        object.__setattr__(self, "factors", factors)
        crop = tuple(self.crop) if isinstance(self.crop, Iterable) else (self.crop,)
        crop = crop or ((0, 0),) * len(factors)
        if len(crop) != len(factors) or not all(map(_is_crop, crop)):
            raise conv_error("PixelShuffle", "crop must be a pair of integers >= 0 for each factor",
                             got={"crop": repr(self.crop)}, also=ValueError)  # fmt: skip
        object.__setattr__(self, "crop", tuple(map(tuple, crop)))


def _is_crop(ends: object) -> bool:
    return isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(n, int) and n >= 0 for n in ends)


@dataclass(frozen=True)
class Gate(_Composite):
    """Squeeze-and-excitation: each channel times a weight that a small network makes of the means of all channels.

    Args:    reduction: the hidden layer has max(1, channels // reduction) units.
    Raises:  ConvError: when it is no count.
    Source:  Hu et al. 2017, arXiv:1709.01507
    Example:
             >>> str(Gate(8))
             'se(8)'
    """

    reduction: int = 16

    def __post_init__(self) -> None:
        _check_count(self, "reduction")


@dataclass(frozen=True)
class Activation(_Composite):
    """A function of each value, by its name, with PyTorch's default settings.

    Args:    name: relu, relu6, leaky_relu, elu, silu, gelu, hardswish, hardsigmoid, sigmoid, tanh or identity.
    Raises:  ConvError: when it is another.
    Example:
             >>> str(Activation("silu"))
             'silu'
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise conv_error("Activation", f"name must be one of {', '.join(ACTIVATIONS)}",
                             got={"name": repr(self.name)}, also=ValueError)  # fmt: skip


@dataclass(frozen=True)
class BatchNorm(_Composite):
    """y[n, c] = γ[c] · (x[n, c] − μ[c]) / √(σ²[c] + 1e-5) + β[c].

    Source:  Ioffe and Szegedy 2015, arXiv:1502.03167
    Example:
             >>> str(BatchNorm())
             'bn'
    """


@dataclass(frozen=True)
class Deform(_Composite):
    """A convolution whose sampling points are shifted by learned offsets, and weighted where `modulated`.

    Args:    conv: a ConvSpec, not transposed. offset_groups: parts of the channels that are shifted alike.
             modulated: whether each sample has a learned weight, too.
    Raises:  ConvError: when the convolution is another, or offset_groups does not divide its channels.
    Source:  Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2018, arXiv:1811.11168
    Example:
             >>> conv = ConvSpec(in_channels=8, out_channels=16, kernel_size=(3, 3), padding=1)
             >>> str(Deform(conv, modulated=True)), Deform(conv, modulated=True).offset_conv.out_channels
             ('deform(ic8oc16k3x3p1, og1, mask)', 27)
    """

    conv: ConvSpec
    offset_groups: int = 1
    modulated: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.conv, ConvSpec):
            raise conv_error("Deform", "conv must be a ConvSpec", got={"conv": repr(self.conv)}, also=TypeError)
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


def no_block(thing: Never) -> Never:
    """Ends a match over all blocks; only what is none comes here."""
    raise conv_error("reconv", "the block must be a Block", got={"type": type(thing).__name__},
                     do="Read a text with reconv.parse, a layer with reconv.nn.block_of.", also=TypeError)  # fmt: skip


def _check_blocks(name: str, blocks: tuple[object, ...]) -> None:
    for block in blocks:
        if not isinstance(block, Block):
            raise conv_error(name, "each part must be a block", got={"part": repr(block)}, also=TypeError)


def _check_count(block: object, field: str) -> None:
    value = getattr(block, field)
    if not isinstance(value, int) or value < 1:
        raise conv_error(type(block).__name__, f"{field} must be an integer >= 1", got={field: repr(value)},
                         also=ValueError)  # fmt: skip


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
            no_block(block)
