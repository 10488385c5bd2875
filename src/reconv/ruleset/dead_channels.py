"""Channels that do nothing: which of a site's are the same whatever the input, or read by nobody, and the network
without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reconv.data import seeded
from reconv.ruleset.prune_channels import surrounding_space
from reconv.spec import ConvSpec
from reconv.surgery.clone import applied, fresh, noise
from reconv.surgery.coupled import Channels, Numbers
from reconv.surgery.norms import evaluating
from reconv.surgery.sites import Site
from reconv.surgery.spaces import Space, narrowed
from reconv.surgery.surroundings import Surroundings

APART = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the output
Constants = dict[tuple[str, int], float]  # of a module's inputs, by their position


@dataclass(frozen=True)
class Without:
    """The modules once the channels are gone: their texts and their tensors."""

    texts: dict[str, str]
    tensors: dict[str, dict[str, Tensor]]
    channels: Channels


def without_dead(site: Site) -> Without | None:
    """The network without the site's dead channels; None where it has none, or is not known."""
    if site.around is None or not (_silent(site) or site.around.zero_columns):
        return None
    found = surrounding_space(site)
    if isinstance(found, str):
        return None
    channels, space, around = found
    roots = [int(r) for c in space.classes for r in c]
    unread = {r for r in roots if all(_weighs_nothing(around, channels, name, r) for name in space.readers)}
    silent = {
        r for r in set(roots) - unread if all(_gives_nothing(site, around, channels, n, r) for n in channels.leaves)
    }
    constants = _constants(around, channels, space, silent) if silent else {}
    dead = unread | {r for r in silent if all(_can_take(around, channels, n, r, constants) for n in space.readers)}
    for members in space.classes:  # one stays
        dead -= set(members.tolist()[:1]) if dead >= set(members.tolist()) else set()
    if not dead:
        return None
    made = _without(around, channels, space, dead, constants)
    apart = around.moved(tuple(made.texts.items()), dict(made.tensors), (), {})
    return made if not isinstance(apart, str) and apart <= APART.get(site.dtype, 0.0) else None


def _silent(site: Site) -> bool:
    """Whether an output of the site does not depend on its input."""
    scaled = site.norm is not None and bool((site.norm.scale == 0).any())
    return scaled or bool((~_rows(site.spec, site.weight)).any())


def _rows(spec: ConvSpec, weight: Tensor) -> Tensor:
    """Which outputs have a weight."""
    if spec.transposed:
        weight = weight.reshape(spec.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.ne(0).flatten(1).any(1)


def _columns(around: Surroundings, name: str) -> Tensor:
    """Which inputs have a weight."""
    module = around.model.get_submodule(name)
    weight = applied(module)["weight"].ne(0)
    if isinstance(module, nn.Linear):
        return weight.any(0)
    spec = ConvSpec.of(module)
    if spec.transposed:
        return weight.flatten(1).any(1)
    return weight.reshape(spec.groups, -1, weight.shape[1], weight[0, 0].numel()).any(3).any(1).flatten()


def _weighs_nothing(around: Surroundings, channels: Channels, name: str, root: int) -> bool:
    """Whether a reader has no weight for a channel, or does not take it."""
    places = np.flatnonzero(channels.leaves[name].ins == root)
    return not len(places) or not bool(_columns(around, name)[torch.from_numpy(places)].any())


def _gives_nothing(site: Site, around: Surroundings, channels: Channels, name: str, root: int) -> bool:
    """Whether a module is none that makes a channel depend on the input."""
    leaf = channels.leaves[name]
    places = torch.from_numpy(np.flatnonzero(leaf.outs == root))
    if leaf.kind not in ("conv", "linear") or not len(places):
        return True  # what norms and depthwise convolutions make of a constant is looked at where it is read
    if name == site.name and site.norm is not None and not bool(site.norm.scale[places].any()):
        return True
    module = around.model.get_submodule(name)
    weight = applied(module)["weight"]
    rows = weight.ne(0).any(1) if isinstance(module, nn.Linear) else _rows(ConvSpec.of(module), weight)
    return not bool(rows[places].any())


def _constants(around: Surroundings, channels: Channels, space: Space, roots: Iterable[int]) -> Constants:
    """What the readers take of these channels, where that is one number at all positions of all inputs."""
    seen: dict[tuple[str, int], list[Tensor]] = {}
    wanted = np.array(sorted(roots), dtype=np.int64)
    handles = []
    for name in space.readers:
        module, places = around.model.get_submodule(name), np.flatnonzero(np.isin(channels.leaves[name].ins, wanted))

        def look(m: nn.Module, args: tuple[Any, ...], name: str = name, places: Numbers = places) -> None:
            axis = args[0].ndim - 1 - (0 if isinstance(m, nn.Linear) else len(m.kernel_size))  # type: ignore[arg-type]
            for place in places.tolist():
                seen.setdefault((name, place), []).append(args[0].select(axis, place).flatten().clone())

        handles.append(module.register_forward_pre_hook(look))
    try:
        with torch.no_grad(), evaluating(around.model), seeded(0):
            for inputs in (around.inputs, tuple(noise(x) for x in around.inputs)):
                around.model(*fresh(inputs))
    except Exception:  # whatever a forward pass may raise on noise
        return {}
    finally:
        for handle in handles:
            handle.remove()
    values = {key: torch.cat(parts) for key, parts in seen.items()}
    return {key: float(v[0]) for key, v in values.items() if v.numel() and bool((v == v[0]).all())}


def _can_take(around: Surroundings, channels: Channels, name: str, root: int, constants: Constants) -> bool:
    """Whether a reader's bias can do what the constant of a channel does: at all positions the same."""
    places = np.flatnonzero(channels.leaves[name].ins == root).tolist()
    if not all((name, p) in constants for p in places):
        return False
    if not any(constants[name, p] for p in places):
        return True
    module = around.model.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module.bias is not None
    spec = ConvSpec.of(module)
    return not spec.transposed and (spec.padding_mode != "zeros" or not any(map(any, spec.padding)))


def _without(around: Surroundings, channels: Channels, space: Space, dead: set[int], constants: Constants) -> Without:
    kept = space.kept(channels, dead)
    texts, tensors = {}, {}
    for name in space.modules:
        module = around.model.get_submodule(name)
        texts[name], tensors[name] = narrowed(module, *kept[name])
        gone = np.flatnonzero(np.isin(channels.leaves[name].ins, sorted(dead))).tolist()
        shift = _shift(module, {p: c for p in gone if (c := constants.get((name, p)))})
        if name in space.readers and shift is not None:
            rows = torch.from_numpy(kept[name][1])
            like = tensors[name]["weight"]
            bias = tensors[name].get("bias", torch.zeros(len(rows), dtype=like.dtype, device=like.device))
            tensors[name]["bias"] = (bias.double() + shift[rows]).to(like)
            if not isinstance(module, nn.Linear):
                texts[name] = str(ConvSpec.parse(texts[name]).replace(bias=True))
    return Without(texts, tensors, channels.without(dead))


def _shift(module: nn.Module, constants: dict[int, float]) -> Tensor | None:
    """What a reader's outputs have of these inputs."""
    if not constants:
        return None
    weight = applied(module)["weight"].double()
    groups = 1 if isinstance(module, nn.Linear) else int(module.groups)  # type: ignore[arg-type]
    weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    shift = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    rows = len(weight) // groups
    for place, value in constants.items():
        group, column = divmod(place, weight.shape[1])
        shift[group * rows : (group + 1) * rows] += value * weight[group * rows : (group + 1) * rows, column]
    return shift
