"""The memory of a forward pass, counted from what Python's garbage collector knows to be there after each operator."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    most = 0

    def __init__(self, there: set[int]) -> None:
        super().__init__()
        self.there = there

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        storages = [t.untyped_storage() for t in gc.get_objects() if isinstance(t, Tensor)]
        made = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in self.there}
        self.most = max(self.most, sum(made.values()))
        return out


def memory(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of parameters, buffers and inputs, and the most of other tensors that are there at once."""
    model.eval()
    held = [*model.parameters(), *model.buffers(), *inputs]
    gc.collect()
    gc.freeze()  # from here on the collector lists what is new
    try:
        with torch.no_grad(), _Counting({t.untyped_storage().data_ptr() for t in held}) as counting:
            model(*inputs)
    finally:
        gc.unfreeze()
    return sum(t.nbytes for t in held) + counting.most
