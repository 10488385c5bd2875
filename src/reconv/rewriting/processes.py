"""The processes that recover a network together, started by `accelerate launch` or torchrun; mostly there is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from reconv.data import Batch
from reconv.errors import ConvError, conv_error

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # our names are torch's
WAIT = timedelta(hours=3)  # for the others, one of which may be evaluating
LOST = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "NCCL")  # what torch says of it


@dataclass(frozen=True)
class Processes:
    """What Hugging Face Accelerate decided: how many processes there are, which this is, its device and precision.

    Args:    device: where this process trains.
    """

    accelerator: Accelerator
    device: torch.device

    @property
    def count(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the one that judges and writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def precision(self) -> str:
        return next(name for name, theirs in PRECISIONS.items() if theirs == self.accelerator.mixed_precision)

    def share(self, batch: Batch) -> Batch:
        """The rows of a batch that are this process's; there may be none."""
        if self.count == 1:
            return batch
        n, index = len(batch), self.accelerator.process_index
        return batch.rows(slice(index * n // self.count, (index + 1) * n // self.count))

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values if self.count == 1 else self.accelerator.reduce(values, "sum")

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, for all; an error that it meets is an error of all."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        held: list[Any] = [None, None]
        failed: Exception | None = None
        if self.main:
            try:
                held[0] = make()
            except Exception as error:  # whatever a user's code may raise
                failed, held[1] = error, f"{type(error).__name__}: {error}"
        broadcast_object_list(held)
        if failed is not None:
            raise failed
        if held[1] is not None:
            raise conv_error("recover", "the main process must not fail", got={"error": repr(held[1])})
        made: T = held[0]
        return made

    def align(self, module: nn.Module) -> None:
        """Gives every process the main one's parameters and buffers."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.data, 0)


@contextmanager
def processes(precision: str | None, module: nn.Module) -> Iterator[Processes]:
    """Joins the other processes of this launch.

    Args:    precision: one of PRECISIONS; None: what accelerate was launched with. module: what will be trained.
    Raises:  ConvError: for a precision that the device lacks, and when another process stops.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    if launched() > 1:  # its functions' defaults hold a group that is there before them, threads and all, to the end
        import_module("torch.distributed.nn")
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if precision is None else PRECISIONS[precision]
    if wanted not in PRECISIONS.values():
        raise conv_error("recover", f"mixed precision must be one of {', '.join(PRECISIONS.values())}", also=ValueError,
                         got={"ACCELERATE_MIXED_PRECISION": repr(wanted)})  # fmt: skip
    users = dict(AcceleratorState._shared_state)  # one per process, whose precision cannot be changed
    AcceleratorState._shared_state.clear()
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=WAIT)]  # fmt: skip
    try:
        accelerator = Accelerator(device_placement=False, mixed_precision=wanted, kwargs_handlers=handlers,
                                  cpu=launched() > 1 and not torch.accelerator.is_available())  # fmt: skip
        joined = Processes(accelerator, _device(accelerator, module))
        _check(joined)
        with _parting(joined.count):
            yield joined
    finally:
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(users)


def launched() -> int:
    """How many processes were started together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def stop_once() -> None:
    """Of several processes each is told twice to stop, by the terminal and by the launcher: once is enough."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if launched() > 1:
        signal.signal(signal.SIGINT, stop)


def leave() -> None:
    """Closes the connections to the other processes: whoever waits for this one fails, and does not hang."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _device(accelerator: Accelerator, module: nn.Module) -> torch.device:
    """Accelerate's, but for a network that the user put elsewhere by himself, or that it cannot compute."""
    own = next((p.device for p in module.parameters()), torch.device("cpu"))
    chosen: torch.device = accelerator.device
    double = any(p.dtype is torch.float64 for p in module.parameters())
    kept = accelerator.num_processes == 1 and own.type != "cpu"
    if kept or (chosen.type == "mps" and double):
        return own
    return torch.device("cpu") if chosen.type == "cpu" else chosen


def _check(joined: Processes) -> None:
    kind = str(joined.accelerator.distributed_type.value)
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise conv_error("recover", "each process must hold the whole network", got={"distributed_type": kind},
                         do="Launch without sharding.")  # fmt: skip
    if joined.count != launched():
        raise conv_error("recover", "accelerate must know all processes of the launch",
                         got={"processes": joined.count, "launched": launched()},
                         do="Start them with accelerate launch.")  # fmt: skip
    if joined.precision == "float16" and joined.device.type == "cpu":
        raise conv_error("recover", "float16 needs a GPU", got={"precision": "'float16'", "device": joined.device},
                         do="Use bfloat16.", also=ValueError)  # fmt: skip


@contextmanager
def _parting(count: int) -> Iterator[None]:
    """Who fails leaves; that another one left is said as such."""
    try:
        yield
    except BaseException as error:
        if count == 1:
            raise
        leave()
        if isinstance(error, RuntimeError) and not isinstance(error, ConvError) and any(s in str(error) for s in LOST):
            raise conv_error("recover", "every process must go on to the end",
                             got={"error": repr(str(error).partition("\n")[0])},
                             do="Another one has stopped: it says why.") from error  # fmt: skip
        raise
