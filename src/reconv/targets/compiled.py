"""torch.compile: Inductor, with the weights as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reconv.targets.engine import Job, TorchEager, not_run, waiting
from reconv.targets.timing import Runner


class TorchCompiled(TorchEager):
    """PyTorch's compiler. Networks are compiled for the number of threads that they run with.

    Args:    threads: that the network will have where it runs; None: as many as torch has now.
    """

    engine = "torch.compile"

    def runner(self, job: Job) -> Runner:
        """A call of the compiled network.

        Raises:  ConvError: where it cannot be compiled.
        """
        model, inputs = job
        function = compiled(model)

        def call() -> object:
            with torch.no_grad():
                return function(*inputs)

        run = waiting(call, job)
        try:
            run()
        except Exception as error:  # of Dynamo, Inductor or the C++ compiler
            raise not_run("torch.compile", model, error) from error
        return run


def compiled(function: Callable[..., Any], frozen: bool = True) -> Callable[..., Any]:
    """torch.compile of a function or network; `frozen`: its weights are constants, for calls without gradients.

    The compiler keeps what it made with the code that it was called for, and only a few versions of it: so each
    function gets a code object of its own.
    """

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace()
    return torch.compile(call, options={"freezing": True} if frozen else None)
