"""One recovery under way: the student is trained, judged, kept, and its state written so that it can go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reconv.data import Batch, Feed, reseed, seeded
from reconv.errors import conv_error
from reconv.planning.table import Progress
from reconv.rewriting.average import Average
from reconv.rewriting.checkpoint import (
    forget_checkpoint,
    read_checkpoint,
    set_tensors,
    tensors_of_module,
    write_checkpoint,
)
from reconv.rewriting.logs import Log
from reconv.rewriting.losses import INNER, Whole, loss_of
from reconv.rewriting.processes import Processes
from reconv.rewriting.teacher import Answer, Teacher, Watched
from reconv.surgery.clone import clone
from reconv.surgery.norms import reestimate
from reconv.surgery.outputs import ratio, squared_distance

WARMUP = 0.1  # part of all steps
STATISTICS = 512  # samples from which batch-norm statistics are re-estimated
CLIP = 1.0  # largest norm of the gradient
SECONDS = 30.0  # between two checkpoints within an epoch
SHARE = 0.05  # of the time, at most, that is spent on writing them


class Score(NamedTuple):
    """Higher is better: what `evaluate` says (0 where there is none), then minus the distance to the teacher."""

    value: float
    closeness: float


NOTHING = Score(-math.inf, -math.inf)


class Student(nn.Module):
    """The student as accelerate takes it: what it gives are lists of tensors."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.model, self.watched = watched.model, watched

    def forward(self, *inputs: Any) -> tuple[list[Tensor], list[Tensor]]:
        answer = self.watched(Batch(inputs))
        return answer.outputs, answer.inner


@dataclass
class Recovery:
    """The student is trained in place and ends as the best of all epochs."""

    student: Watched
    teacher: Teacher
    examiner: Teacher  # the same network, asked for its outputs only
    train: Feed
    held: Feed
    evaluate: Callable[[nn.Module], float] | None
    settings: dict[str, Any]
    parameters: list[Tensor]
    processes: Processes
    home: torch.device  # of the user's student
    patience: int
    folder: Path | None
    progress: Progress
    log: Log
    done: int = 0  # epochs
    step: int = 0  # steps of the epoch under way
    total: float = 0.0  # sum of their losses
    stale: int = 0  # epochs without gain
    best: Score = NOTHING
    best_tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = self.train.count(self.settings["batch_size"])  # of one epoch
        self.all_steps = self.steps * self.settings["epochs"]
        self.devices = {self.processes.device}
        self.accelerator = self.processes.accelerator
        plain = torch.optim.AdamW(self.parameters, lr=self.settings["lr"], weight_decay=0.0)
        self.optimizer: Any = self.accelerator.prepare_optimizer(plain)
        self.average = Average(self.parameters, self.settings["ema"]) if self.settings["ema"] else None
        self.kept, self.took = time.monotonic(), 0.0  # when the last checkpoint was written, and in how many seconds

    @property
    def module(self) -> nn.Module:
        return self.student.model

    def run(self, resume: bool) -> None:
        size, epochs = self.settings["batch_size"], self.settings["epochs"]
        if epochs >= self.processes.count:  # else each asks for less than it would remember
            self.examiner.remember(self.held, size)
        self.processes.align(self.module)
        try:
            if not (resume and self.restore()):
                self.begin()
            asked: nn.Module = self.accelerator.prepare_model(Student(self.student))
            if epochs > self.processes.count and self.goes_on:
                self.teacher.remember(self.train, size)
            while self.goes_on and self.epoch(asked):
                pass
        finally:
            if self.best_tensors:
                set_tensors(self.module, self.best_tensors)
        self.processes.align(self.module)
        self.progress("recovering", self.all_steps, self.all_steps)

    @property
    def goes_on(self) -> bool:
        return self.done < self.settings["epochs"] and self.stale < self.patience and not self.exact

    def begin(self) -> None:
        """Judges the student as it came; training begins with re-estimated batch norms, if that is nearer."""
        if self.folder is not None and self.processes.main:
            forget_checkpoint(self.folder)
        self.best, self.best_tensors = self.judge(), tensors_of_module(self.module)
        self.log({"event": "recover", "epoch": 0, **self.said(self.best)})
        if not self.exact and reestimate(self.module, self.train.head(STATISTICS, self.settings["seed"])):
            self.processes.align(self.module)
            if (closeness := self.closeness()) <= self.best.closeness:
                set_tensors(self.module, self.best_tensors)
            elif self.evaluate is None:
                self.best, self.best_tensors = Score(0.0, closeness), tensors_of_module(self.module)
        self.keep()

    @property
    def exact(self) -> bool:
        """Nothing is left to learn."""
        return self.evaluate is None and self.best.closeness == 0

    def epoch(self, asked: nn.Module) -> bool:
        """Trains once over the data, judges, keeps; False where the loss was no number."""
        started, loss = time.perf_counter(), self.train_once(asked)
        if not math.isfinite(loss):
            self.log({"event": "stopped", "epoch": self.done + 1, "reason": "the loss is not finite; the best is kept"})
            return False
        with self.average.shown() if self.average else nullcontext():
            score = self.judge()
            gained = score > self.best
            if gained:
                self.best, self.best_tensors = score, tensors_of_module(self.module)
        self.done, self.step, self.total = self.done + 1, 0, 0.0
        self.stale = 0 if gained else self.stale + 1
        self.keep()
        self.log({"event": "recover", "epoch": self.done, "loss": loss, **self.said(score), "gained": gained,
                  "seconds": round(time.perf_counter() - started, 3)})  # fmt: skip
        return True

    def train_once(self, asked: nn.Module) -> float:
        """Mean loss of an epoch, whose first steps may have been done before an interruption.

        Data and network draw from streams of random numbers of their own, so that steps done need no network.
        """
        seed = self.settings["seed"] * 1_000_003 + self.done + 1
        reseed(seed, self.devices)
        order = torch.Generator().manual_seed(seed)
        for step, batch in enumerate(self.train.batches(self.settings["batch_size"], order), 1):
            if step <= self.step:
                continue
            now = self.done * self.steps + step
            with seeded(seed + step, self.devices):
                loss = self.learn(asked, batch, now / self.all_steps)
            self.total += loss
            if not math.isfinite(loss):
                return loss
            self.step = step
            if self.average:
                self.average.add(now)
            self.keep_at_times()
            self.progress("recovering", now, self.all_steps)
        return self.total / self.step

    def learn(self, asked: nn.Module, batch: Batch, part: float) -> float:
        """One step of the optimizer, all processes sharing the batch; `part` of all steps will then be done."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["lr"] * _schedule(part)
        self.module.eval()  # batch norms too: they learn as the fixed maps that they will be
        own = self.processes.share(batch)
        there = len(own) > 0
        own = own if there else batch.rows(slice(1))  # what it gives counts for nothing
        wanted = self.teacher(own)
        with torch.enable_grad():
            ours = Answer(*asked(*own.inputs))
            loss = loss_of(ours, wanted, own.targets, self.whole(wanted, own, there), INNER * (1 - part))
            value = float(self.processes.total(loss.detach() * there))
            if math.isfinite(value):
                self.optimizer.zero_grad()
                self.accelerator.backward(loss * there * self.processes.count if self.processes.count > 1 else loss)
                self.accelerator.clip_grad_norm_(self.parameters, CLIP)
                self.optimizer.step()
        return value

    def whole(self, wanted: Answer, own: Batch, there: bool) -> Whole:
        if self.processes.count == 1:
            return Whole.of(wanted, own.targets)
        return Whole.over(wanted, own.targets, there, self.processes.total)

    @torch.no_grad()
    def judge(self) -> Score:
        """How good the student is now, on the held-out part."""
        self.module.eval()
        closeness = self.closeness()
        return self.processes.from_main(lambda: Score(self.value(), closeness))

    def value(self) -> float:
        """What `evaluate` says of the student, on the device on which the user gave it."""
        if self.evaluate is None:
            return 0.0
        there = self.home == self.processes.device
        return _sunk(_number(self.evaluate(self.module if there else clone(self.module).to(self.home))))

    @torch.no_grad()
    def closeness(self) -> float:
        """Minus the distance between the outputs on the held-out part."""
        apart, size = 0.0, 0.0
        for batch in self.held.batches(self.settings["batch_size"]):
            if len(own := self.processes.share(batch)):
                parts = squared_distance(self.student(own).outputs, self.examiner(own).outputs)
                apart, size = apart + parts[0], size + parts[1]
        if self.processes.count > 1:
            sums = torch.tensor([apart, size], dtype=torch.float64, device=self.processes.device)
            apart, size = self.processes.total(sums).tolist()
        return _sunk(-ratio(apart, size))

    def said(self, score: Score) -> dict[str, float]:
        value = {} if self.evaluate is None else {"value": score.value}
        return {"distance": -score.closeness, **value}

    def keep_at_times(self) -> None:
        if time.monotonic() - self.kept >= max(SECONDS, self.took / SHARE):
            self.keep()

    def keep(self) -> None:
        if self.folder is None or not self.processes.main:
            return
        started, scaler = time.monotonic(), self.accelerator.scaler
        write_checkpoint(self.folder, {
            "settings": self.settings, "done": self.done, "step": self.step, "total": self.total, "stale": self.stale,
            "best": list(self.best), "student": tensors_of_module(self.module), "best_tensors": self.best_tensors,
            "average": self.average and self.average.tensors, "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        })  # fmt: skip
        self.kept = time.monotonic()
        self.took = self.kept - started

    def restore(self) -> bool:
        """Goes back to the checkpoint; False where there is none."""
        folder = self.folder
        if folder is None:
            return False
        state = self.processes.from_main(lambda: read_checkpoint(folder, self.settings))
        if state is None:
            return False
        set_tensors(self.module, state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.restore(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.done, self.step, self.total = state["done"], state["step"], state["total"]
        self.stale, self.best, self.best_tensors = state["stale"], Score(*state["best"]), state["best_tensors"]
        return True

    def close(self) -> None:
        self.optimizer.zero_grad()
        self.student.close()


def _schedule(part: float) -> float:
    """The learning rate, as a part of the highest: it warms up, then falls as a cosine does."""
    return min(1.0, part / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


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
def trainable(module: nn.Module) -> Iterator[list[Tensor]]:
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
