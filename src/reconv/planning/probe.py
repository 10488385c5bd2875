"""`Probe`: how far a network's output moves on calibration inputs when it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch, seeded
from reconv.errors import conv_error
from reconv.surgery import fresh, move_hooks
from reconv.surgery.outputs import at_old_positions, ratio, squared_distance, tensors_in

LEAST_FOR_STATISTICS = 16  # samples, under which a batch says too little about means and variances
MEMORY = 256 * 2**20  # bytes of outputs that a `Prefix` may keep
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Probe:
    """The teacher's outputs on some batches of inputs, to which other networks are compared."""

    def __init__(self, teacher: nn.Module, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.can_restat = all(len(batch) >= LEAST_FOR_STATISTICS for batch in batches)
        with torch.no_grad():
            self.outputs: list[Any] = [teacher(*fresh(batch.inputs)) for batch in batches]
        if not all(bool(t.isfinite().all()) for output in self.outputs for t in tensors_in(output)):
            bad = [name for name, p in teacher.named_parameters() if not bool(p.isfinite().all())]
            raise conv_error("reconv", "the network's outputs must be finite",
                             got={"outputs": "NaN or Inf"} | ({"and so are": ", ".join(bad[:3])} if bad else {}),
                             do="Mend its weights first.", also=ValueError)  # fmt: skip

    def error(self, student: nn.Module, finer: bool = False) -> float:
        """‖student − teacher‖ / ‖teacher‖ of the outputs; finer: at the positions that the teacher's have."""
        with torch.no_grad():
            answers = [student(*fresh(batch.inputs)) for batch in self.batches]
        if finer:
            answers = [at_old_positions(one, other) for one, other in zip(answers, self.outputs, strict=True)]
        return self.moved(answers, self.outputs)

    def answers(self, model: nn.Module, norm: nn.Module | None, prefix: Prefix) -> list[Any]:
        """What `model` gives for each batch.

        Args:    norm: a batch norm that takes its statistics from the batch, as it will once they are re-estimated.
                 prefix: of the model, of which at most one layer was edited.
        """
        outputs = []
        with torch.no_grad(), batch_statistics(norm if self.can_restat else None):
            for number, batch in enumerate(self.batches):
                prefix.rewind(number)
                outputs.append(model(*fresh(batch.inputs)))
        return outputs

    def moved(self, answers: Sequence[Any], unedited: Sequence[Any]) -> float:
        """‖answers − unedited‖ / ‖unedited‖: what an edit alone changes.

        Both with the same batch norm on the statistics of the batch: these differ from those of all data, which would
        else hide small edits.
        """
        apart = size = 0.0
        for answer, output in zip(answers, unedited, strict=True):
            a, s = squared_distance(answer, output)
            apart, size = apart + a, size + s
        return ratio(apart, size)


class Prefix:
    """Answers the convolutions of a network that run before an edited layer with what they gave when it was unedited.

    Up to the first run of the edited layer both networks do the same on the same batch, whatever their structure. All
    but the convolutions runs anew, as their outputs may be written into. The network stays wrapped.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.kept: list[list[tuple[nn.Module, Tensor]]] = []  # for each batch, in the order in which they ran
        self.room = MEMORY
        self.recording = True
        self.ahead: Iterator[tuple[nn.Module, Tensor]] = iter(())  # what is still to come in this run
        for conv in (m for m in model.modules() if type(m) in CONVOLUTIONS):
            conv.forward = partial(self._answer, conv, conv.forward)
        with torch.no_grad(), seeded(0):  # the user's random numbers stay as they are
            for batch in batches:
                self.kept.append([])
                model(*fresh(batch.inputs))
        self.recording = False

    def rewind(self, number: int) -> None:
        """Batch `number` is about to run."""
        self.ahead = iter(self.kept[number])

    def until(self, layer: nn.Module) -> nn.Module:
        """The layer, at whose first run the answers end."""

        def run(*args: Any, forward: Callable[..., Any] = layer.forward, **kwargs: Any) -> Any:
            self.ahead = iter(())
            return forward(*args, **kwargs)

        layer.forward = run
        return layer

    def _answer(self, conv: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        known = next(self.ahead, None)
        if known is not None and known[0] is conv:
            return known[1].clone()
        self.ahead = iter(())
        output = forward(*args, **kwargs)
        if self.recording:
            self.room -= output.nbytes
            if self.room >= 0:
                self.kept[-1].append((conv, output.clone()))
        return output


@contextmanager
def batch_statistics(norm: nn.Module | None) -> Iterator[None]:
    """The batch norm normalises by its batch; its running statistics stay as they are."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        yield
        return
    kept = norm.training, norm.momentum, norm.num_batches_tracked
    norm.training, norm.momentum = True, 0.0
    if kept[2] is not None:
        norm.num_batches_tracked = kept[2].clone()
    try:
        yield
    finally:
        norm.training, norm.momentum, norm.num_batches_tracked = kept


@contextmanager
def standing_in(model: nn.Module, names: Sequence[str], new: nn.Module) -> Iterator[nn.Module]:
    """`new`, with its hooks, in the place of a module, for a while; yields the root."""
    old = model.get_submodule(names[0])
    move_hooks(old, new.eval())
    if "" in names:
        yield new
        return
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    try:
        for parent, leaf in places:
            setattr(parent, leaf, new)
        yield model
    finally:
        for parent, leaf in places:
            setattr(parent, leaf, old)
