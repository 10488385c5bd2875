"""Counts what all operators of a forward pass cost, convolutions or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

KNOWN = ("aten", "prim", "prims", "profiler")


class OperatorCount:
    """Multiply-accumulates of the operators that PyTorch's own counter knows, and the bytes that operators write.

    `foreign`: an operator from elsewhere ran, so that the counts are a lower bound.
    """

    def __init__(self) -> None:
        self.macs = self.activation_bytes = 0
        self.foreign = False

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.foreign |= func.namespace not in KNOWN
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.macs += count(*args, **kwargs, out_val=out) // 2
        if not func.is_view:
            outs = out if isinstance(out, list | tuple) else (out,)
            self.activation_bytes += sum(t.numel() * t.element_size() for t in outs if isinstance(t, Tensor))
