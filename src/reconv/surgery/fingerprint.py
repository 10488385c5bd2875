"""A hash of a network's structure: names, shapes and types of what its state dict holds."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn


def structure_hash(model: nn.Module) -> str:
    """Equal for networks whose state dicts have the same names, shapes and dtypes, whatever the values."""
    lines = sorted(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()
                   if isinstance(t, Tensor))  # fmt: skip
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
