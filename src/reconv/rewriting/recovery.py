"""`recover`: a rewritten network learns what its original answers, and is never worse than it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reconv.data import Batch, Feed, reseed, seeded
from reconv.errors import conv_error
from reconv.rewriting.checkpoint import read_checkpoint, set_tensors, tensors_of_module, write_checkpoint
from reconv.rewriting.losses import distillation_loss, label_loss
from reconv.rewriting.teacher import Answer, Teacher, Watched, named_sites
from reconv.surgery.clone import clone, fresh
from reconv.surgery.norms import evaluating, reestimate
from reconv.surgery.outputs import ratio, squared_distance
from reconv.targets.layout import layout_of, to_layout

Log = Callable[[dict[str, Any]], None]
Progress = Callable[[str, int, int], None]  # (what, done, of how many)

INNER, LABELS = 1.0, 0.02  # weights of the matched activations, which fade, and of the labels beside the outputs
WARMUP = 0.1  # part of all steps
STATISTICS = 512  # samples from which batch-norm statistics are re-estimated
CLIP = 1.0  # largest norm of the gradient


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
) -> nn.Module:
    """A copy of `student`, trained to give what `model` gives; by the judge never worse than `student` is.

        loss = ‖s − t‖² / ‖t‖² of the outputs + (1 − part of all steps done) · the same of the matched activations
               + 0.02 · cross entropy with the labels

    The judge sees the held-out part of the data only: `evaluate`, and where that says the same (or nothing) the
    distance between the outputs. Student and model stay untouched, as do torch's random numbers.

    Args:    data: a tensor, a Dataset or batches; labels are used where they are class indices, but are not needed.
             epochs: passes over the data; 0 gives a plain copy. evaluate: higher is better.
             holdout: the part of the data to judge by, or a Feed of other data that does.
             example_inputs: needed where the network has several inputs.
             match: modules of both networks whose outputs are to agree; None: those that were rewritten.
             patience: epochs without gain until it stops; None: half of all, but 3 at least.
             checkpoint: a folder in which the state is kept after each epoch. resume: goes on from there, if
             something is there, and on a CPU ends with the very weights of an uninterrupted run.
             progress: is called with (what, steps done, of how many).
             log: is given a dict after each epoch (0: before the first), and when training stops early.
    Returns: a new module, in the modes of `student`.
    Raises:  ConvError: for data that is empty, not finite or of another kind, outputs that cannot be compared, and a
             checkpoint that cannot be written, read, or was made with other settings.
    """
    _check_settings(epochs=epochs, batch_size=batch_size, lr=lr)
    copied = clone(student)
    if epochs == 0:
        return copied
    train, held = _parts(Feed.of(data, example_inputs), holdout, seed, copied)
    devices = {p.device for p in copied.parameters()}
    with torch.inference_mode(False), seeded(seed, devices), evaluating(copied), _trainable(copied) as parameters:
        teacher = to_layout(clone(model), layout_of(copied)).eval()  # both from now on run alike
        few = next(iter(train.batches(batch_size))).rows(slice(2))
        _check_takes(teacher, few)
        names = named_sites(copied, teacher, match, few)
        job = Recovery(
            Watched(copied, names), Teacher(teacher, names), Teacher(teacher, ()), train, held, evaluate,
            {"epochs": epochs, "seed": seed, "batch_size": batch_size, "lr": lr, "matched": list(names)},
            torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
            patience=max(3, epochs // 2) if patience is None else patience,
            folder=None if checkpoint is None else Path(checkpoint),
            progress=progress or (lambda what, done, total: None), log=log or (lambda entry: None),
        )  # fmt: skip
        try:
            _check_alike(job.student(few), job.teacher(few))
            job.run(resume)
        finally:
            job.close()
    return copied


class Score(NamedTuple):
    """Higher is better: what `evaluate` says (0 where there is none), then minus the distance to the teacher."""

    value: float
    closeness: float


NOTHING = Score(-math.inf, -math.inf)


@dataclass
class Recovery:
    """One recovery under way. The student is trained in place and ends as the best of all epochs."""

    student: Watched
    teacher: Teacher
    examiner: Teacher  # the same network, asked for its outputs only
    train: Feed
    held: Feed
    evaluate: Callable[[nn.Module], float] | None
    settings: dict[str, Any]
    optimizer: torch.optim.Optimizer
    patience: int
    folder: Path | None
    progress: Progress
    log: Log
    done: int = 0  # epochs
    stale: int = 0  # epochs without gain
    best: Score = NOTHING
    best_tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = self.train.count(self.settings["batch_size"])  # of one epoch

    @property
    def module(self) -> nn.Module:
        return self.student.model

    def run(self, resume: bool) -> None:
        size, epochs = self.settings["batch_size"], self.settings["epochs"]
        self.examiner.remember(self.held, size)
        if not (resume and self.restore()):
            self.begin()
        if epochs > 1 and not self.exact:
            self.teacher.remember(self.train, size)
        while self.done < epochs and self.stale < self.patience and not self.exact:
            if not self.epoch():
                break
        set_tensors(self.module, self.best_tensors)
        self.progress("recovering", self.steps * epochs, self.steps * epochs)

    def begin(self) -> None:
        """Judges the student as it came; training begins with re-estimated batch norms, if that is nearer."""
        self.best, self.best_tensors = self.judge(), tensors_of_module(self.module)
        self.log({"event": "recover", "epoch": 0, **self.said(self.best)})
        if self.exact or not reestimate(self.module, self.train.head(STATISTICS, self.settings["seed"])):
            return
        if (closeness := self.closeness()) <= self.best.closeness:
            set_tensors(self.module, self.best_tensors)
        elif self.evaluate is None:
            self.best, self.best_tensors = Score(0.0, closeness), tensors_of_module(self.module)

    @property
    def exact(self) -> bool:
        """Nothing is left to learn."""
        return self.evaluate is None and self.best.closeness == 0

    def epoch(self) -> bool:
        """Trains once over the data, judges, keeps; False where the loss was no number."""
        started, loss = time.perf_counter(), self.train_once()
        if not math.isfinite(loss):
            self.log({"event": "stopped", "epoch": self.done + 1, "reason": "the loss is not finite; the best is kept"})
            return False
        score = self.judge()
        self.done, self.stale = self.done + 1, self.stale + 1
        if gained := score > self.best:
            self.best, self.best_tensors, self.stale = score, tensors_of_module(self.module), 0
        self.keep()
        self.log({"event": "recover", "epoch": self.done, "loss": loss, **self.said(score), "gained": gained,
                  "seconds": round(time.perf_counter() - started, 3)})  # fmt: skip
        return True

    def train_once(self) -> float:
        """Mean loss of an epoch; it stops at the first that is not finite."""
        seed = self.settings["seed"] * 1_000_003 + self.done + 1
        reseed(seed, {p.device for p in self.module.parameters()})
        total, step, all_steps = 0.0, 0, self.steps * self.settings["epochs"]
        order = torch.Generator().manual_seed(seed)
        for step, batch in enumerate(self.train.batches(self.settings["batch_size"], order), 1):
            now = self.done * self.steps + step
            loss = self.learn(batch, now / all_steps)
            total += loss
            if not math.isfinite(loss):
                return loss
            self.progress("recovering", now, all_steps)
        return total / step

    def learn(self, batch: Batch, part: float) -> float:
        """One step of the optimizer; `part` of all steps will then be done."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["lr"] * _schedule(part)
        self.module.eval()  # batch norms too: they learn as the fixed maps that they will be
        wanted = self.teacher(batch)
        with torch.enable_grad():
            answer = self.student(batch)
            loss = distillation_loss(answer.outputs, wanted.outputs)
            if answer.inner:
                loss = loss + INNER * (1 - part) * distillation_loss(answer.inner, wanted.inner)
            labels = label_loss(answer.outputs, wanted.outputs, batch.targets)
            if labels is not None:
                loss = loss + LABELS * labels
            self.optimizer.zero_grad()
            loss.backward()
        if bool(loss.isfinite()):
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, CLIP)
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def judge(self) -> Score:
        """How good the student is now, on the held-out part."""
        self.module.eval()
        closeness = self.closeness()
        return Score(0.0 if self.evaluate is None else _sunk(_number(self.evaluate(self.module))), closeness)

    @torch.no_grad()
    def closeness(self) -> float:
        """Minus the distance between the outputs on the held-out part."""
        apart, size = 0.0, 0.0
        for batch in self.held.batches(self.settings["batch_size"]):
            parts = squared_distance(self.student(batch).outputs, self.examiner(batch).outputs)
            apart, size = apart + parts[0], size + parts[1]
        return _sunk(-ratio(apart, size))

    def said(self, score: Score) -> dict[str, float]:
        value = {} if self.evaluate is None else {"value": score.value}
        return {"distance": -score.closeness, **value}

    def keep(self) -> None:
        if self.folder is None:
            return
        write_checkpoint(self.folder, {
            "settings": self.settings, "done": self.done, "stale": self.stale, "best": list(self.best),
            "student": tensors_of_module(self.module), "best_tensors": self.best_tensors,
            "optimizer": self.optimizer.state_dict(),
        })  # fmt: skip

    def restore(self) -> bool:
        """Goes back to the checkpoint; False where there is none."""
        state = None if self.folder is None else read_checkpoint(self.folder, self.settings)
        if state is None:
            return False
        set_tensors(self.module, state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.stale, self.best = state["done"], state["stale"], Score(*state["best"])
        self.best_tensors = state["best_tensors"]
        return True

    def close(self) -> None:
        self.optimizer.zero_grad()
        self.student.close()


def _schedule(part: float) -> float:
    """The learning rate, as a part of the highest: it warms up, then falls as a cosine does."""
    return min(1.0, part / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def _parts(feed: Feed, holdout: float | Feed, seed: int, module: nn.Module) -> tuple[Feed, Feed]:
    """What is trained on and what judges, on the module's device."""
    train, held = (feed, holdout) if isinstance(holdout, Feed) else feed.split(holdout, seed)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return train.on(device), held.on(device)


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
        if not value >= 0 or (value == 0 and name != "epochs"):
            raise conv_error("recover", f"{name} must be positive", got={name: value}, also=ValueError)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # this is the check
    except (TypeError, ValueError) as error:
        raise conv_error("recover", "evaluate must return a number", got={"value": repr(value)},
                         also=TypeError) from error  # fmt: skip


def _sunk(value: float) -> float:
    """What is no number is worse than any."""
    return -math.inf if math.isnan(value) else value


@contextmanager
def _trainable(module: nn.Module) -> Iterator[list[Tensor]]:
    """The parameters to train: those that the user left open, or all where none is."""
    everything = [p for p in module.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in everything]
    for p in everything if not any(flags) else ():
        p.requires_grad_(True)
    try:
        yield [p for p in everything if p.requires_grad]
    finally:
        for p, flag in zip(everything, flags, strict=True):
            p.requires_grad_(flag)
