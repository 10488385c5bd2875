"""`Task`: one line of a problem file, and the numbers that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reconv.errors import ConvError, conv_error
from reconv.spec import Block, Chain, ConvSpec, Deform, macs, output_shape, params, parse

DIRECTIONS = ("forward", "input", "weight", "training")
DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2}  # and their bytes
MAX_ELEMENTS = 2**31  # of one tensor
_FORM = f"write BLOCK SHAPE [{'|'.join(DIRECTIONS)}] [{'|'.join(DTYPES)}], as in 'ic8oc8k3x3p1g8 1x8x28x28 weight'"


@dataclass(frozen=True)
class Task:
    """A convolution to be timed.

    Args:    direction: "forward"; "input" or "weight", the gradient to it alone, without the forward pass; or
             "training", the forward pass and every gradient.
             group: the file that it stands in, without its ending.
    Example:
             >>> task = Task.parse("ic8oc8k3x3p1g8nb -> ic8oc16k1x1  1x8x28x28 training")
             >>> str(task), task.macs
             ('ic8oc8k3x3p1g8nb -> ic8oc16k1x1 1x8x28x28 training', 470400)
    """

    block: ConvSpec | Chain | Deform
    input_shape: tuple[int, ...]
    direction: str = "forward"
    dtype: str = "float32"
    group: str = ""

    @classmethod
    def parse(cls, line: str, group: str = "") -> Task:
        """Reads a line.

        Raises:  ConvError (a ValueError): when it is not one, or the block does not fit the shape.
        """
        words = line.split()
        dtype = words.pop() if words and words[-1] in DTYPES else "float32"
        direction = words.pop() if words and words[-1] in DIRECTIONS else "forward"
        if len(words) < 2:
            raise _wrong("a problem is a block and the shape of its input", line, _FORM)
        sizes = words.pop().split("x")
        if not all(size.isdecimal() and len(size) < 10 and int(size) for size in sizes):
            raise _wrong("the shape must be sizes with x between them", line, _FORM)
        shape, block = tuple(map(int, sizes)), _served(parse(" ".join(words)), direction, line)
        if max(prod(shape), prod(output_shape(block, shape)), params(block)) > MAX_ELEMENTS:
            raise _wrong(f"a tensor must have at most {MAX_ELEMENTS} elements", line)
        return cls(block, shape, direction, dtype, group)

    def __str__(self) -> str:
        words = [str(self.block), "x".join(map(str, self.input_shape))]
        words += [self.direction] if self.direction != "forward" else []
        return " ".join(words + ([self.dtype] if self.dtype != "float32" else []))

    @property
    def output_shape(self) -> tuple[int, ...]:
        return output_shape(self.block, self.input_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pass; training computes three times those of the forward pass."""
        block = self.block.conv if isinstance(self.block, Deform) else self.block  # offsets are given, not computed
        return macs(block, self.input_shape) * (3 if self.direction == "training" else 1)

    @property
    def bytes(self) -> int:
        """Bytes of all that is read and all that is written, each once."""
        x, y, w = prod(self.input_shape), prod(self.output_shape), params(self.block)
        if isinstance(self.block, Deform):
            w = params(self.block.conv)
            x += y // self.block.conv.out_channels * self.block.offset_conv.out_channels  # offsets and mask
        # training reads x, w and the gradient of y, and writes y and the gradients of x and w
        return (x + y + w) * (2 if self.direction == "training" else 1) * DTYPES[self.dtype]


def read_tasks(given: Iterable[str]) -> list[Task]:
    """The problems of files and of single lines, in order.

    Args:    given: names of files that exist or end in .txt, or lines. In a file # begins a comment.
    Raises:  ConvError (a ValueError): for a bad line, with its file and number. OSError: for an unreadable file.
    """
    tasks: list[Task] = []
    for text in given:
        path = Path(text)
        if path.suffix == ".txt" or (" " not in text and path.is_file()):
            tasks += read_file(path)
        else:
            tasks.append(Task.parse(text))
    return tasks


def read_file(path: Path) -> list[Task]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise conv_error("bench", "a problem file must be text", got={"file": path}, also=ValueError) from error
    tasks = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                tasks.append(Task.parse(text, path.stem))
            except ConvError as error:
                raise conv_error("bench", f"{path}, line {number}, must be a problem", got={"line": repr(text)},
                                 do=str(error), also=ValueError) from error  # fmt: skip
    return tasks


def _served(block: Block, direction: str, line: str) -> ConvSpec | Chain | Deform:
    """The block, if there is a function for it in torch and in reconv."""
    if isinstance(block, Chain) and not _is_separable(block):
        raise _wrong("a chain must be a depthwise convolution without bias, then a pointwise one", line)
    if not isinstance(block, ConvSpec | Chain | Deform):
        raise _wrong("the block must be a convolution, a separable chain or deform(…)", line)
    for spec in specs_of(block):
        if spec.padding_mode != "zeros" or spec.even_padding is None:
            raise _wrong("the padding must be zeros, as many before as behind", line)
    if direction in ("input", "weight") and not isinstance(block, ConvSpec):
        raise _wrong(f"{direction!r} is for single convolutions", line, "Write training.")
    return block


def _is_separable(block: Chain) -> bool:
    first, last = block.blocks[0], block.blocks[-1]
    return (
        len(block.blocks) == 2
        and isinstance(first, ConvSpec)
        and isinstance(last, ConvSpec)
        and (first.groups, first.bias, first.transposed) == (first.in_channels, False, False)
        and last.replace(bias=False, out_channels=1, in_channels=1)
        == ConvSpec(in_channels=1, out_channels=1, kernel_size=(1,) * first.spatial_dims, bias=False)
    )


def specs_of(block: ConvSpec | Chain | Deform) -> list[ConvSpec]:
    """The convolutions, as they follow each other; without the one that would compute offsets."""
    if isinstance(block, Chain):
        return [part for part in block.blocks if isinstance(part, ConvSpec)]
    return [block.conv if isinstance(block, Deform) else block]


def _wrong(must: str, line: str, do: str = "") -> ConvError:
    return conv_error("bench", must, got={"line": repr(line)}, do=do, also=ValueError)
