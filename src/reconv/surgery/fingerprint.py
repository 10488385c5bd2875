"""Hashes of a network: of its structure (names, shapes and types in its state dict), and of values."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def structure_hash(model: nn.Module) -> str:
    """Equal for networks whose state dicts have the same names, shapes and dtypes, whatever the values."""
    lines = sorted(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()
                   if isinstance(t, Tensor))  # fmt: skip
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def update(seen: hashlib._Hash, tensor: Tensor) -> None:
    """Takes a tensor's type, shape and values up."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    seen.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    seen.update(flat.view(torch.uint8).numpy().data)
