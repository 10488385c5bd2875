"""What some modules of a network give, while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from reconv.surgery.outputs import tensors_in


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While it is open, each run of the network leaves here what these modules gave in their first call of it.

    Copies, with their gradients' history, since what follows may write into them. Clear it between two runs.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensors = tensors_in(output)
        if tensors and name not in seen:
            seen[name] = tensors[0].clone()

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
