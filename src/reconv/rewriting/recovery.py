"""`recover`: a rewritten network learns what its original answers, and is never worse than it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reconv.data import Batch, Feed, seeded
from reconv.errors import conv_error
from reconv.planning.plan import Plan
from reconv.planning.table import Progress
from reconv.rewriting.folder import alone
from reconv.rewriting.logs import Log
from reconv.rewriting.processes import PRECISIONS, processes
from reconv.rewriting.teacher import Answer, Teacher, Watched, named_sites
from reconv.rewriting.training import Recovery, trainable
from reconv.surgery.clone import clone, fresh
from reconv.surgery.norms import evaluating
from reconv.targets.layout import layout_of, to_layout


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a recovery; `model` is the best that it had found by then, `distance` how far that is off.

    Args:    plan: of the edits that the model has, where `rewrite` was stopped.
    """

    def __init__(self, model: nn.Module, distance: float) -> None:
        super().__init__("recovery was stopped")
        self.model, self.distance = model, distance
        self.plan: Plan | None = None


def recover(
    student: nn.Module,
    model: nn.Module,
    data: object,
    epochs: int = 3,
    evaluate: Callable[[nn.Module], float] | None = None,
    holdout: float | Feed = 0.1,
    seed: int = 0,
    *,
    example_inputs: Tensor | Sequence[Any] | None = None,
    match: Sequence[str] | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    patience: int | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: Log | None = None,
    precision: str | None = None,
    ema: float = 0.0,
) -> nn.Module:
    """A copy of `student`, trained to give what `model` gives; by the judge never worse than `student` is.

        loss = ‖s − t‖² / ‖t‖² of the outputs + (1 − part of all steps done) · the same of the matched activations
               + 0.02 · cross entropy with the labels

    The judge sees the held-out part of the data only: `evaluate`, and where that says the same (or nothing) the
    distance between the outputs. Student and model stay untouched, as do torch's random numbers.

    Accelerate chooses the device. Processes that `accelerate launch` started share each batch; the main one judges,
    writes and logs, and all return the same network. Ctrl-C raises `Stopped`, a KeyboardInterrupt whose `model` is the
    best so far.

    Args:    data: a tensor, a Dataset or batches; labels are used where they are class indices, but are not needed.
             epochs: passes over the data; 0 gives a plain copy. evaluate: higher is better.
             holdout: the part of the data to judge by, or a Feed of other data that does.
             example_inputs: needed where the network has several inputs.
             match: modules of both networks whose outputs are to agree; None: those that were rewritten.
             patience: epochs without gain until it stops; None: half of all, but 3 at least.
             checkpoint: a folder in which the state is kept, after each epoch and at times between. resume: goes on
             from there, if something is there, and on a CPU ends with the very weights of an uninterrupted run.
             progress: is called with (what, steps done, of how many).
             log: is given a dict after each epoch (0: before the first), and when training stops early.
             precision: "float32", "bfloat16" or "float16" (GPUs only), in which the student is trained; weights, the
             teacher's answers and the judge keep their own. None: what accelerate was launched with, else float32.
             ema: decay of a moving average of the weights, which is judged and returned in their place; 0: none.
    Returns: a new module, in the modes of `student` and on its device.
    Raises:  ConvError: for data that is empty, not finite or of another kind, outputs that cannot be compared, and a
             checkpoint that cannot be written, read, was made with other settings, or is another process's.
    Example:
             >>> teacher, student = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 8, 3)
             >>> x = torch.randn(32, 3, 9, 9)
             >>> better = recover(student, teacher, x, epochs=1, batch_size=8)
             >>> bool((better(x) - teacher(x)).norm() <= (student(x) - teacher(x)).norm())
             True
    """
    _check_settings(epochs=epochs, batch_size=batch_size, lr=lr)
    check_training(precision, ema)
    copied = clone(student)
    if epochs == 0:
        return copied
    train, held = _parts(Feed.of(data, example_inputs), holdout, seed)
    home = next((p.device for p in copied.parameters()), torch.device("cpu"))
    folder = None if checkpoint is None else Path(checkpoint)
    job = None
    try:
        with (torch.inference_mode(False), processes(precision, copied) as joined, seeded(seed, {joined.device}),
              alone(folder if joined.main else None, "recover"), evaluating(copied),
              trainable(copied.to(joined.device)) as parameters):  # fmt: skip
            train, held = train.on(joined.device), held.on(joined.device)
            teacher = to_layout(clone(model), layout_of(copied)).to(joined.device).eval()  # both from now on run alike
            few = next(iter(train.batches(batch_size))).rows(slice(2))
            _check_takes(teacher, few)
            names = named_sites(copied, teacher, match, few)
            settings = {"epochs": epochs, "seed": seed, "batch_size": batch_size, "lr": lr, "matched": list(names),
                        "precision": joined.precision, "ema": ema}  # fmt: skip
            silent = not joined.main
            job = Recovery(
                Watched(copied, names), Teacher(teacher, names), Teacher(teacher, ()), train, held, evaluate,
                settings, parameters, joined, home,
                patience=max(3, epochs // 2) if patience is None else patience,
                folder=folder,
                progress=_nothing if silent or progress is None else progress,
                log=_nothing if silent or log is None else log,
            )  # fmt: skip
            try:
                _check_alike(job.student(few), job.teacher(few))
                job.run(resume)
            finally:
                job.close()
    except KeyboardInterrupt:
        if job is None or not job.best_tensors:
            raise
        raise Stopped(copied.to(home), -job.best.closeness) from None
    return copied.to(home)


def check_training(precision: str | None, ema: float) -> None:
    """What can be said of these before anything runs."""
    if precision is not None and precision not in PRECISIONS:
        raise conv_error("recover", f"precision must be one of {', '.join(PRECISIONS)}", also=ValueError,
                         got={"precision": repr(precision)})  # fmt: skip
    if not isinstance(ema, Real) or not 0 <= ema < 1:
        raise conv_error("recover", "ema must be at least 0 and less than 1", got={"ema": repr(ema)}, also=ValueError)


def _nothing(*args: object) -> None:
    """Nobody is to be told."""


def _parts(feed: Feed, holdout: float | Feed, seed: int) -> tuple[Feed, Feed]:
    """What is trained on and what judges."""
    return (feed, holdout) if isinstance(holdout, Feed) else feed.split(holdout, seed)


def _check_takes(model: nn.Module, few: Batch) -> None:
    """Where there are no example inputs to compare the data with, the network says whether it takes them."""
    try:
        with torch.no_grad():
            model(*fresh(few.inputs))
    except Exception as error:  # whatever a forward pass may raise
        found = ", ".join(str(x.dtype) for x in few.inputs if isinstance(x, Tensor))
        weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        raise conv_error("recover", "the network must run on the data", also=TypeError,
                         got={"dtype": found, "weights": weights, "error": repr(f"{type(error).__name__}: {error}")},
                         do=f"Convert the data to {weights}." if found != str(weights) else "",
                         ) from error  # fmt: skip


def _check_alike(ours: Answer, theirs: Answer) -> None:
    shapes = [[tuple(t.shape) for t in answer.outputs] for answer in (ours, theirs)]
    if not theirs.outputs or shapes[0] != shapes[1] or ours.structure != theirs.structure:
        raise conv_error("recover", "student and model must give the same floating tensors", also=ValueError,
                         got={"student": f"{shapes[0]} in {ours.structure}",
                              "model": f"{shapes[1]} in {theirs.structure}"})  # fmt: skip


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if not isinstance(value, Real) or not value >= 0 or (value == 0 and name != "epochs"):
            more = ", or 0" if name == "epochs" else ""
            raise conv_error("recover", f"{name} must be positive{more}", got={name: repr(value)}, also=ValueError)
