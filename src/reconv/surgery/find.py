"""Finds every convolution that a forward pass really runs, as sites that can be swapped or say why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from reconv.errors import conv_error
from reconv.layers.compose import ChainLayer
from reconv.layers.described import Described
from reconv.surgery.certain import doubt
from reconv.surgery.clone import clone, fresh, names_of, tensors_of, user_hooks
from reconv.surgery.norms import after_normalising, normalises
from reconv.surgery.sites import DEFORMABLE, ConvCall, Norm, Site
from reconv.surgery.surroundings import Surroundings
from reconv.surgery.trace import Field, Observer, Run, Trace, is_conv, plain_forward

SCRIPTED = "TorchScript: its layers cannot be swapped; give the network as Python code"
FUNCTIONAL = "functional convolution: there is no module to swap"
DEFORMED = "deformable convolution: no rule rewrites it"


@dataclass(frozen=True)
class Network:
    """What one forward pass showed.

    Args:    sites: the convolutions that are modules, in the order of their first run.
             calls: every run, in order, functional and scripted ones too.
             refusals: (name of the call, reason) for runs that no module swap can reach.
    """

    sites: tuple[Site, ...]
    calls: tuple[ConvCall, ...]
    refusals: tuple[tuple[str, str], ...] = ()
    reads_values: bool = field(default=False, compare=False)


def find_sites(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    field: Callable[[tuple[Tensor, ...]], Field] | None = None,
    observers: Iterable[Observer] = (),
) -> Network:
    """Every convolution that `model` runs on `example_inputs`, found on a copy in evaluation mode.

    Args:    field: makes the observer of receptive fields for the inputs; observers: see every operator.
    Raises:  ConvError: when the network cannot be copied, rejects the inputs, or runs no convolution.
    """
    inputs = fresh(tensors_of(example_inputs))
    copied = clone(model)
    _check_initialised(copied)
    tensors = tuple(x for x in inputs if isinstance(x, Tensor))
    receptive = field(tensors) if field and all(x.numel() for x in tensors) else None
    trace = Trace.of(copied, inputs, receptive, observers)
    if not trace.runs:
        raise conv_error("reconv", "the network must run at least one convolution",
                         got={"model": type(model).__name__}, also=ValueError)  # fmt: skip
    by_module: dict[nn.Module, list[Run]] = {}
    refusals: dict[str, str] = {}
    for run in trace.runs:
        if run.module is not None:
            by_module.setdefault(run.module, []).append(run)
        else:
            refusals[run.call.name] = _unreachable(run)
    around = Surroundings(copied, fresh(tensors_of(example_inputs)))
    sites = tuple(replace(_site(trace, module, runs), around=around) for module, runs in by_module.items())
    return Network(sites, tuple(r.call for r in trace.runs), tuple(refusals.items()), trace.reads_values)


def _unreachable(run: Run) -> str:
    if run.scripted:
        return SCRIPTED
    return DEFORMED if run.call.kind == DEFORMABLE else FUNCTIONAL


def _check_initialised(model: nn.Module) -> None:
    lazy = [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise conv_error("reconv", "every parameter must have its shape", got={"uninitialised": ", ".join(lazy[:3])},
                         do="Run the network once on an input before.", also=ValueError)  # fmt: skip


def _site(trace: Trace, module: nn.Module, runs: list[Run]) -> Site:
    names = tuple(names_of(trace.model, module))
    first = runs[0]
    tensors = {"weight": first.weight.detach().clone()}
    if first.bias is not None:
        tensors["bias"] = first.bias.detach().clone()
    norm, norm_refusal = _norm(trace, module, runs)
    activation = _activation(trace, runs, norm)
    site = Site(
        name=names[0], names=names, block=first.call.spec, tensors=tensors,
        calls=tuple(replace(r.call, name=names[0]) for r in runs), norm=norm, norm_refusal=norm_refusal,
        norms=_norms(trace, runs),
        activation=activation, activation_kind=_activation_kind(trace, module, runs, norm, activation),
        refusal=_refusal(trace, module, runs), ours=isinstance(module, Described),
    )  # fmt: skip
    return site


def _refusal(trace: Trace, module: nn.Module, runs: list[Run]) -> str | None:
    """Why the module cannot be swapped; None where it can."""
    reason = plain_forward(module)
    if reason:
        return reason
    mine = set(module.parameters())
    for other in trace.model.modules():
        if other is not module and is_conv(other) and not mine.isdisjoint(other.parameters()):
            return f"its parameters are tied to those of {trace.name_of(other)}"
    if module in trace.foreign_weights:
        return f"its parameters are used outside of it, by {trace.foreign_weights[module]}"
    unreal = next((p.dtype for p in mine if not p.is_floating_point()), None)
    if unreal:
        return f"its weight must be real floating point; it is {unreal}"
    if any(not torch.equal(r.weight, runs[0].weight) for r in runs[1:]):
        return "its weight changes from one run to the next"
    return None


def _norm(trace: Trace, module: nn.Module, runs: list[Run]) -> tuple[Norm | None, str | None]:
    """The batch norm that alone consumes the convolution, and that alone consumes; or why none is known."""
    consumers = {id(c): c for r in runs for c in r.consumers}
    norm = next(iter(consumers.values())) if len(consumers) == 1 else None
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        several = sum(isinstance(c, nn.modules.batchnorm._BatchNorm) for c in consumers.values()) > 1
        return None, "different batch norms follow it" if several else "no batch norm alone follows it"
    name = trace.name_of(norm)
    if reason := _doubt(trace, module, norm):
        return None, f"the forward pass decides by values, so that what follows is not certain: {reason}"
    if user_hooks(module) or user_hooks(norm):
        return None, "a hook watches what stands between it and its batch norm"
    if any(len(r.consumers) != 1 or r.returned for r in runs):
        return None, "its output is used twice"
    if any(producer is None or producer.module is not module for m, producer in trace.norm_calls if m is norm):
        return None, f"batch norm {name} serves other inputs too"
    if not normalises(norm):
        return None, f"{type(norm).__name__} {name} does more than normalise"
    if norm.running_mean is None or norm.running_var is None:
        return None, f"batch norm {name} keeps no running statistics"
    return affine(name, norm), None


def _doubt(trace: Trace, first: nn.Module, follower: nn.Module) -> str | None:
    """Why another pass might not have the one after the other as this pass had; None: each pass has."""
    return doubt(trace.model, first, follower, trace.within[first]) if trace.reads_values else None


def _norms(trace: Trace, runs: list[Run]) -> tuple[Norm, ...]:
    """The batch norms that alone consume the runs' outputs, one behind each; none where a run has no such norm."""
    found = []
    for run in runs:
        norm = run.consumers[0] if len(run.consumers) == 1 and not run.returned else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            return ()
        found.append(affine(trace.name_of(norm), norm))
    return tuple(found)


def affine(name: str, norm: nn.Module) -> Norm:
    """A batch norm as the affine map that it is in evaluation.

    Raises:  ConvError: when it is no batch norm, or keeps no running statistics.
    """
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or mean is None or var is None:
        raise conv_error("reconv", "the norm must be a batch norm with running statistics", got={"norm": name},
                         also=ValueError)  # fmt: skip
    scale = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return Norm(name, scale, shift)


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
               nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus)  # fmt: skip


def _activation(trace: Trace, runs: list[Run], norm: Norm | None) -> str | None:
    """The activation module that alone consumes the convolution (or its batch norm)."""
    if norm is not None:
        if after_normalising(trace.model.get_submodule(norm.name)) is not None:
            return None  # the norm has one of its own
        consumers = trace.norm_consumers[trace.model.get_submodule(norm.name)]
    else:
        consumers = [c for r in runs for c in r.consumers]
    single = consumers[0] if len({id(c) for c in consumers}) == 1 and len(consumers) == len(runs) else None
    return trace.name_of(single) if isinstance(single, ACTIVATIONS) else None


def _activation_kind(trace: Trace, module: nn.Module, runs: list[Run], norm: Norm | None,
                     activation: str | None) -> str | None:  # fmt: skip
    """ "relu" where that module could as well be a part of the convolution: nobody else needs it or sees its input."""
    if activation is None or any(len(r.consumers) != 1 or r.returned for r in runs):
        return None
    relu, *before = (trace.model.get_submodule(name) for name in (activation, *([norm.name] if norm else [])))
    if type(relu) is not nn.ReLU or "forward" in vars(relu) or any(map(user_hooks, (module, relu, *before))):
        return None
    parent = trace.model.get_submodule(activation.rpartition(".")[0])
    if isinstance(parent, ChainLayer):  # fused already
        return None
    if _doubt(trace, before[0] if before else module, relu):
        return None
    mine = {id(producer) for producer in before or runs}
    return "relu" if all(id(producer) in mine for m, producer in trace.relu_calls if m is relu) else None
