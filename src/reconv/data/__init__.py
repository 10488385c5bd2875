"""The batches that users give, normalised once: `Feed`."""

from reconv.data.batch import Batch, first
from reconv.data.chance import reseed, seeded
from reconv.data.feed import Feed

__all__ = ["Batch", "Feed", "first", "reseed", "seeded"]
