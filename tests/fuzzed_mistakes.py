"""Random calls with something wrong: an error of PyTorch's type, or PyTorch's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import torch
from fuzzed import DTYPES, Call
from fuzzed_bounds import Wrong, numbers
from torch import Tensor

from reconv import functional
from reconv.errors import ConvError
from reconv.spec import ConvSpec


def mistaken(call: Call) -> Iterator[str]:
    """Where PyTorch raises, so do we, an error of its type; where it computes, we give the same."""
    spec, r = ConvSpec.parse(call.block), Random(call.seed)
    name = f"conv{'_transpose' * spec.transposed}{spec.spatial_dims}d"
    given: dict[str, Any] = {
        "input": numbers(call, call.shape, 0).to(DTYPES[call.dtype]), "bias": None, "stride": spec.stride,
        "weight": numbers(call, spec.weight_shape, 1).to(DTYPES[call.dtype]), "groups": spec.groups,
        "padding": tuple((min if spec.transposed else max)(pair) for pair in spec.padding), "dilation": spec.dilation,
    }  # fmt: skip
    if spec.bias:
        given["bias"] = numbers(call, (spec.out_channels,), 3).to(DTYPES[call.dtype])
    if spec.transposed:
        given["output_padding"] = spec.output_padding
    right, before = dict(given), _outcome(getattr(functional, name), given)
    for _ in range(r.choice((1, 1, 2))):
        key = r.choice(tuple(given))
        change = r.choice(_MISTAKES[key if key in _MISTAKES else "number"])
        with suppress(AttributeError, IndexError):  # two mistakes may exclude each other
            given[key] = change(r, given[key])
    outcomes = [_outcome(getattr(module, name), given) for module in (functional, torch.nn.functional)]
    ours, theirs = outcomes
    if isinstance(theirs, Tensor):
        if not (isinstance(ours, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)):
            raise Wrong(f"torch computes it, we: {ours!r:.200}: {_shown(given)}: {call}")
    elif not (isinstance(ours, ConvError) and isinstance(ours, type(theirs)) and str(ours).startswith(f"{name}: ")):
        raise Wrong(f"torch: {theirs!r:.200}, we: {ours!r:.200}: {_shown(given)}: {call}")
    after = _outcome(getattr(functional, name), right)  # nothing of the mistake is remembered
    if not (isinstance(before, Tensor) and isinstance(after, Tensor) and torch.equal(before, after)):
        raise Wrong(f"before {before!r:.200}, after {after!r:.200}: {_shown(given)}: {call}")
    yield "computed" if isinstance(theirs, Tensor) else "an error of its type"


def _outcome(compute: Callable[..., Tensor], given: dict[str, Any]) -> object:
    try:
        return compute(**given)
    except Exception as error:
        return error


def _shown(given: dict[str, Any]) -> dict[str, object]:
    return {n: (tuple(t.shape), t.dtype) if isinstance(t, Tensor) else t for n, t in given.items()}


_MISTAKES: dict[str, tuple[Callable[[Random, Any], Any], ...]] = {
    "number": (
        lambda r, v: r.choice((0, -1, 1, 2, 3, 7, 100)), lambda r, v: (1,) * r.randint(0, 4), lambda r, v: [2],
        lambda r, v: r.choice((1.0, None, "same", (1.5,), (-1,), [[1]], True)),
    ),
    "padding": (
        lambda r, v: r.choice((0, -1, 1, 2, 50)), lambda r, v: (1,) * r.randint(0, 4),
        lambda r, v: r.choice(("same", "valid", "sam", 1.0, None, (0.5,), (-1,), [0])),
    ),
    "input": (
        lambda r, v: v[0], lambda r, v: v[None], lambda r, v: v[0, 0], lambda r, v: v[:, :-1], lambda r, v: v[..., :1],
        lambda r, v: v.double(), lambda r, v: v.long(), lambda r, v: v[:0], lambda r, v: v[..., :0],
        lambda r, v: None, lambda r, v: v.tolist(), lambda r, v: torch.cat([v, v], 1),
    ),
    "weight": (
        lambda r, v: v[0], lambda r, v: v[None], lambda r, v: v[:-1], lambda r, v: v[:, :-1], lambda r, v: v[..., :0],
        lambda r, v: v.float(), lambda r, v: v.bfloat16(), lambda r, v: None, lambda r, v: torch.cat([v, v], 1),
    ),
    "bias": (
        lambda r, v: None, lambda r, v: torch.ones(r.randint(0, 5)), lambda r, v: torch.ones(1, 1),
        lambda r, v: torch.tensor(1.0), lambda r, v: 1.0, lambda r, v: v if v is None else v[:-1],
        lambda r, v: v if v is None else v[None], lambda r, v: v if v is None else v.long(),
    ),
}  # fmt: skip
