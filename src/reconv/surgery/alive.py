"""Bytes of activations that are alive at once in a forward pass, as its operators make and drop them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reconv.surgery.clone import fresh


class Alive:
    """Follows the storages of tensors, each counted once however many views it has; those of `state` are not counted.

    Args:    state: parameters and buffers, which are there before and after.
    """

    def __init__(self, state: Iterable[Tensor]) -> None:
        self.state = {storage_of(tensor) for tensor in filter(_is_dense, state)}
        self.sizes: dict[StorageWeakRef, int] = {}

    def see(self, made: Any) -> int:
        """Bytes alive, the tensors of `made` among them."""
        for tensor in filter(_is_dense, tree_leaves(made)):
            if (storage := storage_of(tensor)) not in self.state:
                self.sizes[storage] = tensor.untyped_storage().nbytes()
        # a storage is told from another by its address, which is not given away again while it is known here
        self.sizes = {storage: size for storage, size in self.sizes.items() if not storage.expired()}
        return sum(self.sizes.values())


class Peak(NamedTuple):
    """The most bytes of activations alive at once in a forward pass, and the most while no convolution runs."""

    most: int
    elsewhere: int


class _Watch(TorchDispatchMode):
    def __init__(self, alive: Alive, inputs: tuple[Any, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.alive = alive
        self.most = self.elsewhere = alive.see(inputs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else all of torch.compile is imported, some seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = self.alive.see(out)
        self.most = max(self.most, held)
        if "convolution" not in func._schema.name:
            self.elsewhere = max(self.elsewhere, held)
        return out


def peak_of(model: nn.Module, inputs: tuple[Any, ...]) -> Peak:
    """The most bytes of activations alive at once in one forward pass, its inputs among them.

    PyTorch's operators run, one after the other; what they need inside for themselves is not counted.

    Args:    model: in evaluation mode; it is run, so give a copy where that may change it.
    Example:
             >>> peak_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval(), (torch.zeros(1, 3, 5, 5),))
             Peak(most=1900, elsewhere=1900)
    """
    alive, inputs = Alive(state_of(model)), fresh(inputs)
    with torch.no_grad(), _Watch(alive, inputs) as watch:
        model(*inputs)
    return Peak(watch.most, watch.elsewhere)


def state_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def state_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_of(model))


def storage_of(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided  # others have no storage to ask
