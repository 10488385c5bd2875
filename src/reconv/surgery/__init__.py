"""Finds every convolution of a model and swaps layers in a copy of it."""

from reconv.surgery.clone import applied, clone, fresh, move_hooks, swap, tensors_of
from reconv.surgery.find import Network, find_sites
from reconv.surgery.find_regions import find_regions
from reconv.surgery.sites import ConvCall, Norm, Site

__all__ = [
    "ConvCall",
    "Network",
    "Norm",
    "Site",
    "applied",
    "clone",
    "find_regions",
    "find_sites",
    "fresh",
    "move_hooks",
    "swap",
    "tensors_of",
]
