"""`reconv.functional`: the operations, under the name that users of torch.nn.functional expect."""

from reconv.ops.functional import *  # noqa: F403
from reconv.ops.functional import __all__ as __all__
