"""Rules of the operators that only move elements: views, permutations, slices, concatenation."""

from itertools import accumulate
from math import prod

import torch

from reconv.costing.receptive.call import Call, Rules
from reconv.costing.receptive.combine import concatenate
from reconv.costing.receptive.field import Field
from reconv.costing.receptive.taps import LostError, mirror

MOVES = Rules()


@MOVES.rule("view _unsafe_view reshape _reshape_alias flatten unflatten")
def _view(call: Call) -> Field:
    return call.field().view(call.shape)


@MOVES.rule("permute")
def _permute(call: Call) -> Field:
    return call.field().permute(call["dims"])


@MOVES.rule("transpose t numpy_T")
def _transpose(call: Call) -> Field:
    field = call.field()
    order = list(range(len(field.axes)))
    if "dim0" in call.arguments:
        order[call["dim0"]], order[call["dim1"]] = order[call["dim1"]], order[call["dim0"]]
    else:
        order.reverse()
    return field.permute(order)


@MOVES.rule("expand broadcast_to expand_as")
def _expand(call: Call) -> Field:
    call.ignore("other")
    return call.field("self").expand(call.shape)


@MOVES.rule("unsqueeze")
def _unsqueeze(call: Call) -> Field:
    return call.field().insert(call["dim"])


@MOVES.rule("squeeze")
def _squeeze(call: Call) -> Field:
    field, dims = call.field(), call.get("dim")
    dims = range(len(field.axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    return field.drop([dim for dim in dims if field.axes and field.shape[dim] == 1])


@MOVES.rule("slice")
def _slice(call: Call) -> Field:
    field, dim = call.field(), call["dim"]
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(field.shape[dim])
    return field.slice(dim, start, step, call.shape[dim])


@MOVES.rule("select")
def _select(call: Call) -> Field:
    field, dim = call.field(), call["dim"]
    return field.slice(dim, call["index"] % field.shape[dim], 1, 1).drop([dim])


@MOVES.rule("unbind")
def _unbind(call: Call) -> list[Field]:
    field, dim = call.field(), call["dim"]
    return [field.slice(dim, i, 1, 1).drop([dim]) for i in range(field.shape[dim])]


@MOVES.rule("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split")
def _split(call: Call) -> list[Field]:
    field, dim = call.field(), call["dim"]
    sizes = [output.shape[dim] for output in call.outputs]
    starts = accumulate(sizes[:-1], initial=0)
    return [field.slice(dim, start, 1, size) for start, size in zip(starts, sizes, strict=True)]


@MOVES.rule("unfold")
def _unfold(call: Call) -> Field:
    return call.field().unfold(call["dimension"], call["size"], call["step"])


@MOVES.rule("flip")
def _flip(call: Call) -> Field:
    field = call.field()
    for dim in (dim % len(field.axes) for dim in call["dims"]):
        field = field.through(dim, mirror(field.shape[dim]), field.shape[dim])
    return field


@MOVES.rule("roll cumsum cumprod")
def _blur(call: Call) -> Field:
    field, dims = call.field(), call.get("dims", "dim")
    if dims == []:
        raise LostError("a roll over all axes as one")
    for dim in [dims] if isinstance(dims, int) else dims:
        field = field.blur(dim, field.shape[dim])
    return field


@MOVES.rule("repeat")
def _repeat(call: Call) -> Field:
    field, rank = call.field(), len(call.shape)
    while len(field.axes) < rank:
        field = field.insert(0)
    for axis, (old, new) in enumerate(zip(field.shape, call.shape, strict=True)):
        if 1 < old < new:
            field = field.blur(axis, new)
    return field.expand(call.shape)


@MOVES.rule("cat")
def _cat(call: Call) -> Field:
    return concatenate([field for field in call.fields() if field.shape != (0,)], call["dim"])


@MOVES.rule("stack")
def _stack(call: Call) -> Field:
    return concatenate([field.insert(call["dim"]) for field in call.fields()], call["dim"])


@MOVES.rule("index index_select")
def _index(call: Call) -> Field:
    field = call.field("self")
    indices = [(i, index) for i, index in enumerate(call.get("indices") or ()) if index is not None]
    if len(indices) > 1 or any(index.dtype == torch.bool and index.dim() > 1 for _, index in indices):
        raise LostError("an index along several axes")
    axis = indices[0][0] if indices else call["dim"] % len(field.axes)
    others = prod(size for i, size in enumerate(field.shape) if i != axis)
    return field.blur(axis, prod(call.shape) // others).view(call.shape)


@MOVES.rule("channel_shuffle")
def _channel_shuffle(call: Call) -> Field:
    field, groups = call.field(), call["groups"]
    batch, channels, *space = field.shape
    field = field.view((batch, groups, channels // groups, *space))
    return field.permute([0, 2, 1, *range(3, len(field.axes))]).view(call.shape)


@MOVES.rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Field:
    field, r = call.field(), call["upscale_factor"]
    *lead, _, height, width = field.shape
    n = len(lead)
    field = field.view((*lead, call.shape[-3], r, r, height, width))
    return field.permute([*range(n), n, n + 3, n + 1, n + 4, n + 2]).view(call.shape)


@MOVES.rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Field:
    field, r = call.field(), call["downscale_factor"]
    *lead, channels, height, width = field.shape
    n = len(lead)
    field = field.view((*lead, channels, height // r, r, width // r, r))
    return field.permute([*range(n), n, n + 2, n + 4, n + 1, n + 3]).view(call.shape)
