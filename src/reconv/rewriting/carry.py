"""`carry_optimizer`: an optimizer goes on with the network that a rewriting made of the one it trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from reconv.errors import conv_error
from reconv.planning.plan import Plan
from reconv.rewriting.apply import altering
from reconv.ruleset import RULES
from reconv.targets import layout_of

Parameters = dict[str, nn.Parameter]


def for_training(plan: Plan, model: nn.Module) -> Plan:
    """The plan without the edits that come behind a training (exact ones: they fold batch norms), in the model's own
    memory format.
    """
    return replace(plan, edits=(*plan.wholes, *altering(plan, RULES)), layout=layout_of(model))


def carry_optimizer(optimizer: Optimizer, before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Makes an optimizer that trained `before` train `after` instead, in place.

    A parameter that has the same name, shape and dtype in both keeps its state (momentum, moments, steps) bit for bit;
    the others start anew, each in the group of the parameter that it stands in for. Groups keep their settings and
    their parameters of other networks, so that schedulers, which hold the groups, go on.

    Args:    optimizer: of torch.optim's kind. before: the network that it was made for. after: what that became.
    Returns: the names in `after` of those that start anew.
    Raises:  ConvError: when the optimizer does not train `before`, or keeps parameters outside of its groups (LBFGS).
    Example:
             >>> import torch
             >>> from reconv import Plan, apply
             >>> x, convs = torch.zeros(1, 3, 9, 9), [torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)]
             >>> net = torch.nn.Sequential(*convs)
             >>> adam = torch.optim.Adam(net.parameters(), lr=1e-3)
             >>> net(x).sum().backward()
             >>> adam.step()
             >>> edit = {"site": "1", "rule": "separable", "block": "ic8oc8k3x3g8nb -> ic8oc8k1x1"}
             >>> after = apply(net, Plan.from_dict({"format": 1, "edits": [edit]}), x)
             >>> carry_optimizer(adam, net, after)
             ('1.0.weight', '1.1.weight', '1.1.bias')
             >>> int(adam.state[after[0].weight]["step"])
             1
    """
    old, new = _parameters(before), _parameters(after)
    _check(optimizer, old)
    names = {id(parameter): name for name, parameter in old.items()}
    heirs = {name: name if name in old else _stands_in(name, parameter, old, new) for name, parameter in new.items()}
    for group in optimizer.param_groups:
        _regroup(group, names, heirs, new)
    fresh = []
    states = {name: optimizer.state.pop(parameter, None) for name, parameter in old.items()}
    trained = trained_by(optimizer)
    for name, parameter in new.items():
        if name in old and old[name].shape == parameter.shape and old[name].dtype == parameter.dtype:
            if states[name] is not None:
                optimizer.state[parameter] = states[name]
        elif id(parameter) in trained:
            fresh.append(name)
    return tuple(fresh)


def trained_by(optimizer: Optimizer) -> set[int]:
    """The ids of its parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _parameters(model: nn.Module) -> Parameters:
    if not isinstance(model, nn.Module):
        raise conv_error("carry_optimizer", "before and after must be networks", got={"type": type(model).__name__},
                         also=TypeError)  # fmt: skip
    return dict(getattr(model, "_orig_mod", model).named_parameters())  # what torch.compile wraps


def _check(optimizer: Optimizer, old: Mapping[str, nn.Parameter]) -> None:
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        raise conv_error("carry_optimizer", "the optimizer must be one of torch.optim's kind, other than LBFGS",
                         got={"optimizer": type(optimizer).__name__}, do="Make a new one for the rewritten network.",
                         also=TypeError)  # fmt: skip
    trained = trained_by(optimizer)
    if not any(id(parameter) in trained for parameter in old.values()):
        raise conv_error("carry_optimizer", "the optimizer must train parameters of `before`", also=ValueError,
                         got={"groups": len(optimizer.param_groups), "parameters": len(trained)},
                         do="Give the network that it was made for, and carry once.")  # fmt: skip


def _regroup(group: dict[str, Any], names: Mapping[int, str], heirs: Mapping[str, str], new: Parameters) -> None:
    """Puts the new parameters in the place of the old ones, in the order that the network has them in."""
    mine = {names[id(parameter)] for parameter in group["params"] if id(parameter) in names}
    places = [i for i, parameter in enumerate(group["params"]) if id(parameter) in names]
    if not places:
        return
    taken = [name for name, heir in heirs.items() if heir in mine]
    if "param_names" in group:
        first = group["param_names"][places[0]]
        prefix = first.removesuffix(names[id(group["params"][places[0]])])
        group["param_names"] = _inserted(group["param_names"], places, [prefix + name for name in taken])
    group["params"] = _inserted(group["params"], places, [new[name] for name in taken])


def _inserted(items: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """The new ones at the first of the places, nothing at the others."""
    kept = [item for i, item in enumerate(items) if i not in set(places)]
    return [*kept[: places[0]], *new, *kept[places[0] :]]


def _stands_in(name: str, parameter: nn.Parameter, old: Parameters, new: Parameters) -> str:
    """The old parameter whose place a new one takes: nearest in the tree of modules, and of its kind."""
    path = name.split(".")

    def nearness(other: str) -> tuple[int, bool, bool, bool]:
        theirs = other.split(".")
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(path, theirs, strict=False))))
        matrix = (old[other].dim() > 1) == (parameter.dim() > 1)
        return shared, matrix, path[-1] == theirs[-1], other not in new

    return max(old, key=nearness)
