"""`Surroundings`: the network around a site, which a rule that edits several modules looks into when it must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch, seeded
from reconv.errors import ConvError, on_one_line
from reconv.surgery.channels import channels_of
from reconv.surgery.clone import applied, clone, fresh
from reconv.surgery.coupled import Channels
from reconv.surgery.grids import Grids, grids_of
from reconv.surgery.kin import Also, Tensors, change
from reconv.surgery.norms import evaluating
from reconv.surgery.outputs import distance

SAMPLES = 16  # of the calibration data, from which columns are drawn
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


@dataclass
class Surroundings:
    """A network as it is now, with inputs that it accepts. What is asked of it is computed once.

    Args:    batches: calibration data; empty where there are none.
             known: what was found in the same network before edits that do not touch it.
    """

    model: nn.Module = field(repr=False)
    inputs: tuple[Any, ...] = field(repr=False)
    batches: Sequence[Batch] = field(default=(), repr=False)
    given: Channels | None = field(default=None, repr=False)
    columns: dict[str, Tensor] = field(default_factory=dict, repr=False)  # (samples, inputs) of modules
    verdicts: dict[str, str | None] = field(default_factory=dict, repr=False)  # of sites whose channels were tried
    orders: dict[Any, list[tuple[int, float]]] = field(default_factory=dict, repr=False)  # in which channels go

    @cached_property
    def channels(self) -> Channels | str:
        if self.given is not None:
            return self.given
        with evaluating(self.model), seeded(0):
            return channels_of(self.model, self.inputs)

    @cached_property
    def zero_columns(self) -> bool:
        """Whether a convolution or linear layer has an input without any weight."""
        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
        weights = [applied(m)["weight"].ne(0) for m in layers]
        return any(not bool(w.transpose(0, axis).flatten(1).any(1).all()) for w in weights for axis in (0, 1))

    @cached_property
    def grids(self) -> Grids | str:
        with evaluating(self.model), seeded(0):
            return grids_of(self.model, self.inputs)

    def on(self, batches: Sequence[Batch]) -> Surroundings:
        """The same, with calibration data."""
        return Surroundings(self.model, self.inputs, batches, self.given)

    def later(self, model: nn.Module, channels: Channels | None = None) -> Surroundings:
        """Of the network after an edit; `channels` where the edit says what they are then."""
        known = self.__dict__.get("channels", self.given)
        same = None if isinstance(known, str) else known
        verdicts = {} if channels else self.verdicts
        return replace(self, model=model, given=channels or same, columns=dict(self.columns), verdicts=verdicts,
                       orders={})  # fmt: skip

    def moved(self, one: Also, tensors: dict[str, Tensors], other: Also, others: dict[str, Tensors]) -> float | str:
        """How far the outputs of two changed copies of the network are apart, or what went wrong."""
        try:
            with torch.no_grad(), seeded(0):
                outputs = [change(clone(self.model), also, of).eval()(*fresh(self.inputs))
                           for also, of in ((one, tensors), (other, others))]  # fmt: skip
                return distance(*outputs)
        except ConvError as error:
            return str(error)
        except Exception as error:
            return on_one_line(error)
