"""`reconv.classic`: the hand-made kernels of image processing, as layers."""

from reconv.layers.classic import *  # noqa: F403
from reconv.layers.classic import __all__ as __all__
