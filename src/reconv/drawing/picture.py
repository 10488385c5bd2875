"""The one place where a block's picture comes from: pages and notebooks show what this gives."""

from __future__ import annotations

from collections.abc import Sequence

from reconv.drawing.blocks import svg
from reconv.spec import Block


def block_svg(block: Block) -> str:
    """How a block shows itself in a notebook, where no input is known."""
    return picture([(str(block), block, None)], f"A picture of {block}")


def picture(blocks: Sequence[tuple[str, Block, Sequence[int] | None]], label: str) -> str:
    """An SVG of blocks, one below the other: (title, block, input shape (N, C, *spatial), where it is known).

    Example:
             >>> from reconv.spec import parse
             >>> picture([("", parse("ic4oc8k3x3"), None)], "a layer").count("3×3")
             1
    """
    return svg(blocks, label)
