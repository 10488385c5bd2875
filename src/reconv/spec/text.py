"""The text of a block and its parser, inverse to each other.

ic64oc128k3x3s2p1d2g4        a convolution; defaults (s1 p0 d1 g1) are left out
…t op1x1 · nb · mreflect     transposed with output padding · no bias · padding mode (written without spaces)
A -> B   (A | B)   (A + B)   a chain, branches concatenated, branches summed
shuffle(4) permute(64) pixel_shuffle(2x2, crop1:0) se(16) deform(A, og1, mask) bn relu gelu …
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reconv.errors import ConvError, conv_error
from reconv.spec.block import (
    ACTIVATIONS,
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    no_block,
)
from reconv.spec.conv import PADDING_MODES, ConvSpec, Ints, Pads

_MODES = "|".join(PADDING_MODES[1:])
_N = "[0-9]{1,9}"
_CONV = re.compile(
    rf"ic(?P<ic>{_N})oc(?P<oc>{_N})k(?P<k>{_N}(?:x{_N}){{0,2}})"
    rf"(?:s(?P<s>{_N}(?:x{_N})*))?(?:p(?P<p>{_N}(?::{_N})?(?:x{_N}(?::{_N})?)*))?"
    rf"(?:d(?P<d>{_N}(?:x{_N})*))?(?:g(?P<g>{_N}))?"
    rf"(?P<t>t(?:op(?P<op>{_N}(?:x{_N})*))?)?(?P<nb>nb)?(?:m(?P<m>{_MODES}))?"
)
_CROP = re.compile(rf"crop({_N}(?::{_N})?(?:x{_N}(?::{_N})?)*)")
_TOKEN = re.compile(r"\s*(->|[|+(),]|[a-z][a-z0-9_:]*|[0-9]+(?:x[0-9]+)*)")
_NUMBERED: dict[str, Callable[[int], Block]] = {"shuffle": Shuffle, "permute": Permute, "se": Gate}
MAX_TEXT, MAX_DEPTH = 100_000, 50


def conv_text(spec: ConvSpec) -> str:
    """ic…oc…k… and what differs from the defaults."""
    text = f"ic{spec.in_channels}oc{spec.out_channels}k{_each(spec.kernel_size)}"
    if set(spec.stride) != {1}:
        text += f"s{_short(spec.stride)}"
    if set(spec.padding) != {(0, 0)}:
        text += f"p{_pads_text(spec.padding)}"
    if set(spec.dilation) != {1}:
        text += f"d{_short(spec.dilation)}"
    if spec.groups != 1:
        text += f"g{spec.groups}"
    if spec.transposed:
        text += "t"
        if any(spec.output_padding):
            text += f"op{_short(spec.output_padding)}"
    text += "" if spec.bias else "nb"
    return text + ("" if spec.padding_mode == "zeros" else f"m{spec.padding_mode}")


def block_text(block: Block) -> str:
    """One line that `parse` reads back as the same block."""
    match block:
        case ConvSpec():
            return conv_text(block)
        case Chain():
            return " -> ".join(block_text(part) for part in block.blocks)
        case Branches():
            mark = " | " if block.join == "concat" else " + "
            return "(" + mark.join(block_text(part) for part in block.blocks) + ")"
        case Shuffle():
            return f"shuffle({block.groups})"
        case Permute():
            return f"permute({block.channels})"
        case PixelShuffle():
            crop = f", crop{_pads_text(block.crop)}" if any(map(any, block.crop)) else ""
            return f"pixel_shuffle({_each(block.factors)}{crop})"
        case Gate():
            return f"se({block.reduction})"
        case Activation():
            return block.name
        case BatchNorm():
            return "bn"
        case Deform():
            mask = ", mask" if block.modulated else ""
            return f"deform({conv_text(block.conv)}, og{block.offset_groups}{mask})"
        case _:
            no_block(block)


def parse(text: str) -> Block:
    """Reads a block from its text.

    Args:    text: as `str(block)` writes it.
    Raises:  ConvError: when the text is not one (a ValueError; a TypeError where it is no text at all), or tells a
             convolution that cannot be.
    Example:
             >>> str(parse("ic8oc8k3x3p1g8nb -> (ic8oc4k1x1 | ic8oc4k3x3p1)"))
             'ic8oc8k3x3p1g8nb -> (ic8oc4k1x1 | ic8oc4k3x3p1)'
    """
    if not isinstance(text, str):
        raise conv_error("parse", "a spec must be text", got={"type": type(text).__name__}, also=TypeError)
    if len(text) > MAX_TEXT:
        raise conv_error("parse", f"a spec must have at most {MAX_TEXT} characters", got={"length": len(text)},
                         also=ValueError)  # fmt: skip
    return _Parser(text).block()


def _each(values: Sequence[int]) -> str:
    return "x".join(str(v) for v in values)


def _short(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else _each(values)


def _pads_text(pads: Pads) -> str:
    each = [str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in pads]
    return each[0] if len(set(each)) == 1 else "x".join(each)


def _ints(text: str | None, default: int) -> int | Ints:
    if text is None:
        return default
    values = tuple(int(v) for v in text.split("x"))
    return values[0] if len(values) == 1 else values


def _pads(text: str | None) -> Pads:
    if text is None:
        return ((0, 0),)
    pairs = []
    for part in text.split("x"):
        lo, _, hi = part.partition(":")
        pairs.append((int(lo), int(hi or lo)))
    return tuple(pairs)


class _Parser:
    """Recursive descent: chain := term ('->' term)* · term := conv | name[(args)] | '(' chain (mark chain)+ ')'."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def block(self) -> Block:
        block = self.chain()
        if self.peek():
            raise self.wrong("the text must end after the block")
        return block

    def chain(self) -> Block:
        parts = [self.term()]
        while self.peek() == "->":
            self.take()
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else Chain(*parts)

    def term(self) -> Block:
        token = self.take()
        if token == "(":
            return self.branches()
        if token == "deform":
            return self.deform()
        if token == "pixel_shuffle":
            return self.pixel_shuffle()
        if token in ACTIVATIONS:
            return Activation(token)
        if token == "bn":
            return BatchNorm()
        if token in _NUMBERED:
            self.expect("(")
            number = self.number()
            self.expect(")")
            return _NUMBERED[token](number)
        return self.conv(token)

    def branches(self) -> Block:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(f"branches nest at most {MAX_DEPTH} deep")
        parts, marks = [self.chain()], set()
        while self.peek() in ("|", "+"):
            marks.add(self.take())
            parts.append(self.chain())
        self.expect(")")
        self.depth -= 1
        if len(marks) != 1:
            raise self.wrong("branches are written (A | B) or (A + B), with one mark")
        return Branches(*parts, join="concat" if marks == {"|"} else "sum")

    def deform(self) -> Block:
        self.expect("(")
        conv = self.conv(self.take())
        offset_groups, modulated = 1, False
        while self.peek() == ",":
            self.take()
            word = self.take()
            if word == "mask":
                modulated = True
            elif re.fullmatch(rf"og{_N}", word):
                offset_groups = int(word[2:])
            else:
                raise self.wrong("deform takes og<number> and mask")
        self.expect(")")
        return Deform(conv, offset_groups, modulated)

    def pixel_shuffle(self) -> Block:
        self.expect("(")
        if not re.fullmatch(rf"{_N}(?:x{_N}){{0,2}}", factors := self.take()):
            raise self.wrong("pixel_shuffle takes a factor per axis, such as 2x2")
        each = tuple(map(int, factors.split("x")))
        crop: Pads = ()
        if self.peek() == ",":
            self.take()
            if not (found := _CROP.fullmatch(self.take())):
                raise self.wrong("the crop is written like crop1 or crop0:1x2")
            pairs = _pads(found[1])
            crop = pairs * len(each) if len(pairs) == 1 else pairs
        self.expect(")")
        return PixelShuffle(each, crop)

    def conv(self, token: str) -> ConvSpec:
        found = _CONV.fullmatch(token)
        if not found:
            raise self.wrong("a convolution is written like ic64oc128k3x3s2p1d2g4")
        part = found.groupdict()
        size = _ints(part["k"], 1)
        return ConvSpec(
            in_channels=int(part["ic"]), out_channels=int(part["oc"]),
            kernel_size=(size,) if isinstance(size, int) else size,
            stride=_ints(part["s"], 1), padding=_pads(part["p"]), dilation=_ints(part["d"], 1),
            groups=int(part["g"] or 1), bias=not part["nb"], padding_mode=part["m"] or "zeros",
            transposed=bool(part["t"]), output_padding=_ints(part["op"], 0),
        )  # fmt: skip

    # -- tokens -----------------------------------------------------------------------------------
    def peek(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        if found:
            return found[1]
        return self.text[self.at :].strip()[:20]

    def take(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        if not found:
            raise self.wrong("a block is expected")
        self.at = found.end()
        return found[1]

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise self.wrong(f"{token!r} is expected")
        self.take()

    def number(self) -> int:
        token = self.take()
        if not re.fullmatch(_N, token) or int(token) < 1:
            raise self.wrong("a number >= 1, of at most nine digits, is expected")
        return int(token)

    def wrong(self, must: str) -> ConvError:
        where = self.text[max(0, self.at - 20) : self.at + 20]
        return conv_error("parse", must, got={"text": repr(where)}, also=ValueError)
