"""Which kernel computes a pass of a convolution: the first one, in order of preference, that does not refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from reconv.ops import direct, results
from reconv.ops.families import DENSE, DEPTHWISE, PLANAR
from reconv.ops.fft import FFT
from reconv.ops.kernel import ONEDNN, RELAID, TORCH, Kernel
from reconv.ops.problem import Problem

CLEARLY = {True: 0.85, False: 0.95}  # of PyTorch's time, by `foreign`: nearer is noise, more so in its own detours

CALL_MS = 0.005  # of the checks before a kernel of ours that PyTorch's does not need

DIRECT = Kernel("direct", direct.prepare_one, direct.refuse)
_MEASURED = (DEPTHWISE, PLANAR, DENSE, FFT, ONEDNN, RELAID)  # stand before torch where that was measured to be faster
KERNELS: dict[str, tuple[Kernel, ...]] = {
    "forward": (DIRECT, *_MEASURED, TORCH),
    "input_gradient": (DEPTHWISE, PLANAR, DENSE, FFT, RELAID, TORCH),
    "weight_gradient": (DEPTHWISE, PLANAR, FFT, RELAID, TORCH),
}


def choose(asked: Problem) -> Kernel:
    """The first kernel that serves and that nothing measured speaks against; the last, PyTorch, always does."""
    reasons = refusals(asked)
    return next(kernel for kernel in KERNELS[asked.op] if reasons[kernel.name] is None)


def refusals(asked: Problem) -> dict[str, str | None]:
    """Why each kernel is not taken: it cannot serve, or another one was measured to be faster; or None."""
    near = results.nearest(asked)
    best = fastest(near.ms, asked) if near else TORCH.name
    return {kernel.name: _refusal(kernel, asked, near, best) for kernel in KERNELS[asked.op]}


def _refusal(kernel: Kernel, asked: Problem, near: results.Measured | None, best: str) -> str | None:
    if (reason := kernel.refuse(asked)) is not None or kernel in (DIRECT, TORCH):
        return reason
    if near is None:
        return f"nothing like it has been measured on {results.results_isa()}"
    if kernel.name not in near.ms:
        return f"it was not measured on {near.line}"
    if best == kernel.name:
        return None
    if best == "torch" and near.ms["torch"] > near.ms[kernel.name]:
        return f"it was hardly faster than torch on {near.line}"
    return f"{best} took {near.ms[best] / near.ms[kernel.name]:.2f} of its time on {near.line}"


def fastest(ms: Mapping[str, float], asked: Problem) -> str:
    """Which of the measured kernels that serve the problem was the fastest, PyTorch where none was clearly so."""
    serving = {k.name: k for k in KERNELS[asked.op] if k is not DIRECT and k.name in ms and k.refuse(asked) is None}
    clearly = {name: 1 if k is TORCH else CLEARLY[k.foreign] for name, k in serving.items()}
    return min(serving, key=lambda name: ms[name] / clearly[name])


def saving_ms(asked: Problem) -> float:
    """How much faster than PyTorch the chosen kernel was, on the nearest problem that was measured."""
    kernel, near = choose(asked), results.nearest(asked)
    return max(0.0, near.ms["torch"] - near.ms[kernel.name]) if near and kernel.name in near.ms else 0.0


def worth_a_call(asked: Problem) -> bool:
    """Whether the chosen kernel, as far as it is known, saves more than a call of its own costs."""
    return choose(asked).foreign or not 0 < saving_ms(asked) < CALL_MS


@dataclass(frozen=True)
class Explanation:
    """What computes a problem and why not each of the others.

    reasons: for each kernel, in order, why it is not taken; None for the one that is. roofline_ms: what this machine
    needs at least, of its arithmetic and of its memory; None where neither was measured. near: the measured problem.
    """

    problem: Problem
    chosen: str
    reasons: dict[str, str | None]
    roofline_ms: float | None
    near: results.Measured | None


def explain(asked: Problem) -> Explanation:
    """Why `choose` decides as it does."""
    chosen = choose(asked)
    reasons = {name: None if name == chosen.name else reason or f"{chosen.name} comes before it"
               for name, reason in refusals(asked).items()}  # fmt: skip
    return Explanation(asked, chosen.name, reasons, results.roofline_ms(asked), results.nearest(asked))


# -- where kernels may be chosen at all -----------------------------------------------------------
NOT_PLAIN, WANTS_GRADIENTS, PLAIN = range(3)
ORDINARY = frozenset((Tensor, Parameter))


def eager() -> bool:
    """Whether the sizes of tensors are numbers that may be looked at: nothing compiles, traces or transforms."""
    # first: torch.compile looks no further
    return not torch.compiler.is_compiling() and _tracing() is None and _functorch() is None


def watched() -> bool:
    """Whether, in eager mode, something must see PyTorch's own operators: a mode, forward-mode AD, autocast."""
    return bool(_dispatch_modes() or _function_modes() or forward_ad._current_level >= 0 or _autocast("cpu"))


def asked_for(*tensors: Tensor | None) -> int:
    """`plainness` of ordinary CPU tensors of one dtype, in eager mode where nothing watches."""
    grad, found = torch.is_grad_enabled(), PLAIN
    for tensor in tensors:
        if tensor is not None:
            # a view may negate: its memory is not its value; a Parameter is none
            if type(tensor) is not Parameter and tensor.is_neg():
                return NOT_PLAIN
            if grad and tensor.requires_grad:
                found = WANTS_GRADIENTS
    return found


def plainness(*tensors: Tensor | None) -> int:
    """PLAIN: nothing but numbers is asked for, in eager mode, of ordinary CPU tensors of one dtype, without gradients.
    WANTS_GRADIENTS: the same, to be differentiated by autograd.

    Elsewhere (torch.compile, export, tracing, functorch, dispatch modes, autocast) PyTorch's own operators are what
    the surroundings know.
    """
    if not eager() or watched() or not alike(*tensors):
        return NOT_PLAIN
    return asked_for(*tensors)


def alike(*tensors: Tensor | None) -> bool:
    """Whether they are ordinary CPU tensors of one dtype; the first is one, others may be missing."""
    first = tensors[0]
    if first is None or type(first) not in ORDINARY or first.layout is not _strided:
        return False
    dtype = first.dtype
    return all(t is None or (type(t) in ORDINARY and t.dtype is dtype and t.is_cpu) for t in tensors)


def batched(tensor: Tensor) -> bool:
    """Whether it is what torch.autograd.grad(is_grads_batched=True) makes: it looks plain, but has no memory."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def autocasts(tensor: Tensor) -> bool:
    """Whether torch.autocast is on for its device; of devices that have none, such as meta, PyTorch does not answer."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


_autocast = torch.is_autocast_enabled
_strided = torch.strided
_tracing = torch._C._get_tracing_state
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_functorch = torch._C._functorch.peek_interpreter_stack
