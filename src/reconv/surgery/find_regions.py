"""Finds the modules of a network that are more than one layer, as sites: a rule may rewrite them as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reconv.errors import ConvError, conv_error
from reconv.layers.described import Described
from reconv.spec import convs, macs, output_shape
from reconv.surgery.clone import clone, fresh, not_accepted, tensors_of, user_hooks
from reconv.surgery.regions import IDENTITY, Region, region
from reconv.surgery.sites import ConvCall, Site


def find_regions(
    model: nn.Module, example_inputs: Tensor | Sequence[Any], wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Site]:
    """The modules of `model` that hold others, inner ones before those around them, each as a site.

    The block is all that the module computes in evaluation, `calls` are the module's, `modules` the names of what is
    inside of it. Where it cannot be rewritten as a whole, `refusal` says why.

    Args:    wanted: which names to look at.
    Example:
             >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten())
             >>> [(s.name, str(s.block), s.refusal) for s in find_regions(net, torch.zeros(1, 3, 5, 5))][0]
             ('0', 'ic3oc4k1x1 -> relu', None)
    """
    copied = clone(model).eval()
    runs = Runs.of(copied, fresh(tensors_of(example_inputs)))
    for name in inner_first(copied):
        if wanted(name):
            yield region_site(copied, name, runs)


@dataclass
class Runs:
    """What one forward pass showed of each module: what it was given, and inside of which others it always ran."""

    inputs: dict[nn.Module, list[Tensor | None]] = field(default_factory=dict)  # on "meta"; None: not one map
    around: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)
    several: set[nn.Module] = field(default_factory=set)  # that give something else than one map
    names: dict[nn.Module, list[str]] = field(default_factory=dict)
    owners: dict[nn.Parameter, list[nn.Module]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...]) -> Runs:
        """Runs `model` (a copy, in evaluation mode) once.

        Raises:  ConvError: when the network rejects the inputs.
        """
        runs, stack = cls(), list[nn.Module]()
        for name, module in model.named_modules(remove_duplicate=False):
            runs.names.setdefault(module, []).append(name)
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                runs.owners.setdefault(parameter, []).append(module)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            runs.around[module] = runs.around.get(module, set(stack)) & set(stack)
            stack.append(module)
            one = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
            runs.inputs.setdefault(module, []).append(None if one is None else one.detach().to("meta"))

        def leave(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            stack.pop()
            if not isinstance(out, Tensor):
                runs.several.add(module)

        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        handles = [h for m in modules for h in (m.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
                                                m.register_forward_hook(leave, always_call=True))]  # fmt: skip
        try:
            with torch.no_grad():
                model(*inputs)
        except Exception as error:
            raise not_accepted(inputs, error) from error
        finally:
            for handle in handles:
                handle.remove()
        return runs


def inner_first(model: nn.Module) -> list[str]:
    """The names of the modules that hold others and are not ours, children before those around them."""
    names, done = list[str](), set[nn.Module]()

    def visit(module: nn.Module, name: str) -> None:
        done.add(module)
        for key, child in module.named_children():
            if child not in done and not isinstance(child, torch.jit.ScriptModule):
                visit(child, f"{name}.{key}" if name else key)
        holds = any(True for _ in module.children())
        if holds and not isinstance(module, Described | nn.ModuleList | nn.ModuleDict):
            names.append(name)

    if not isinstance(model, torch.jit.ScriptModule):  # whose modules are not Python's
        visit(model, "")
    return names


def region_site(model: nn.Module, name: str, runs: Runs) -> Site:
    """A module as a site. `model` is the copy that ran, in which modules may have been rewritten since."""
    module = model.get_submodule(name)
    names = tuple(runs.names.get(module, [name]))
    inside = tuple(n for n, _ in module.named_modules() if n)
    reason = _unfit(module, runs)
    maps = [x for x in runs.inputs.get(module, []) if x is not None]
    found = reason or region(module, maps[0].shape[1])
    if isinstance(found, str):
        return Site(name, IDENTITY, {}, names, refusal=found, modules=inside)
    try:
        calls = tuple(_call(name, found, x) for x in maps)
    except ConvError as error:
        return Site(name, IDENTITY, {}, names, refusal=str(error), modules=inside)
    return Site(name, found.block, found.tensors, names, calls, refusal=_mixed(found), modules=inside)


def _unfit(module: nn.Module, runs: Runs) -> str | None:
    """Why a module cannot be rewritten as a whole, whatever it computes."""
    maps = runs.inputs.get(module)
    if not maps:
        return "it does not run"
    if module in runs.several or any(x is None or x.ndim < 3 for x in maps):
        return "it does not take and give one map"
    inside = {part: name for name, part in module.named_modules() if part is not module}
    if any(isinstance(part, torch.jit.ScriptModule) for part in (module, *inside)):
        return "TorchScript: its layers cannot be swapped"
    for part, name in inside.items():
        if module not in runs.around.get(part, {module}):
            return f"a part of it, {name}, runs outside of it, too"
        if user_hooks(part):
            return f"a hook watches {name}"
    for parameter in module.parameters():
        for other in runs.owners.get(parameter, []):
            if other is not module and other not in inside:
                return f"its parameters are tied to those of {runs.names[other][0] or 'the network'}"
    return None


def _call(name: str, found: Region, x: Tensor) -> ConvCall:
    """One run of the module; its spec is that of its first convolution.

    Raises:  ConvError: when there is none, or the block does not take such a map.
    """
    spec = next(convs(found.block), None)
    if spec is None:
        raise conv_error("region", "a module must hold a convolution to be rewritten", got={"module": name},
                         also=ValueError)  # fmt: skip
    shape = tuple(x.shape)
    return ConvCall(name, "module", spec, shape, spec.weight_shape, output_shape(found.block, shape), x.dtype,
                    macs(found.block, shape))  # fmt: skip


def _mixed(found: Region) -> str | None:
    """One layer has one dtype, and is on one device."""
    kinds = {(t.dtype, t.device) for t in found.tensors.values() if t.is_floating_point() or t.is_complex()}
    if len(kinds) > 1:
        return f"its parameters differ in dtype or device: {', '.join(sorted(f'{d} {at}' for d, at in kinds))}"
    unreal = next((dtype for dtype, _ in kinds if not dtype.is_floating_point), None)
    return f"its weights must be real floating point; they are {unreal}" if unreal else None
