"""Receptive fields, right through branches, residuals, dilated and transposed paths, gates and permutations."""

from reconv.costing.receptive.observer import ReceptiveField

__all__ = ["ReceptiveField"]
