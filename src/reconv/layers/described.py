"""What every layer can tell of itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from reconv.errors import ConvError
from reconv.spec import Block, Description, describe


class Described(nn.Module):
    """A layer that knows its block, and what that block makes of an input."""

    __jit_unused_properties__ = ("block",)

    @property
    def block(self) -> Block:
        """The block that the layer computes.

        Raises:  ConvError (a TypeError): when no block says what one of its parts computes.
        """
        from reconv.layers.compose import block_of  # which knows every layer

        return block_of(self)

    def _repr_svg_(self) -> str | None:
        """A picture in notebooks, where a block says what the layer computes; its repr stays torch's."""
        try:
            return self.block._repr_svg_()
        except ConvError:
            return None

    def describe(self, input_shape: Sequence[int]) -> Description:
        """A table of the layer's parts, for printing: input, weight and output shapes, parameters and macs.

        Args:    input_shape: (N, C, *spatial).
        Raises:  ConvError: when the layer does not take such an input, or has no block.
        Example:
                 >>> from reconv.nn import Conv2d
                 >>> Conv2d(16, 32, 3, padding=1, bias=False).describe((1, 16, 28, 28))
                 Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
                 part              input       weight     output      params       macs
                 ic16oc32k3x3p1nb  1×16×28×28  32×16×3×3  1×32×28×28   4,608  3,612,672
                 total             1×16×28×28             1×32×28×28   4,608  3,612,672
        """
        return describe(self.block, input_shape, f"{type(self).__name__}({self.extra_repr()})")
