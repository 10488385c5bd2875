"""Random numbers that follow from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Runs with torch's random numbers from `seed`; the user's are as before afterwards."""
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
        reseed(seed, devices)
        yield


def reseed(seed: int, devices: Iterable[torch.device] = ()) -> None:
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
