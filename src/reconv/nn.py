"""`reconv.nn`: the layers, under the name that users of torch.nn expect."""

from reconv.layers import *  # noqa: F403
from reconv.layers import __all__ as __all__
