"""What a block is in PyTorch."""

from __future__ import annotations

from math import prod
from typing import Any, assert_never

from reconv.explorer.writer import Writer, call, one, program
from reconv.ops.problem import flat_pads
from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
)


def pytorch_code(block: Block, dims: int, channels: int) -> str:
    writer = Writer(channels, lambda w, b, x: _pytorch(w, b, x, dims))
    last = writer.block(block, "x")
    head = ["import torch", "from torch import nn"]
    if any("deform_conv" in line for line in writer.lines):  # torchvision's is 2D only
        place = "torchvision.ops" if dims == 2 else "reconv.functional"
        head.append(f"from {place} import deform_conv{dims}d")
    return program(head, writer, last)


def _pytorch(w: Writer, block: Block, x: str, dims: int) -> str:
    match block:
        case ConvSpec():
            kind = "ConvTranspose" if block.transposed else "Conv"
            if block.even_padding is None and not block.transposed:
                ends = tuple(flat_pads(block.padding))
                x = w.say(f"nn.functional.pad({x}, {ends})")
                block = block.replace(padding=0)
            return w.apply("conv", f"nn.{kind}{dims}d({_torch_arguments(block)})", x)
        case Deform():
            return _torch_deform(w, block, x, dims)
        case Shuffle():
            return w.say(f"{x}.unflatten(1, ({block.groups}, -1)).transpose(1, 2).flatten(1, 2)")
        case Gate():
            return _gate(w, block, x, dims)
        case Activation():
            return w.say(f"torch.nn.functional.{block.name}({x})") if block.name != "identity" else x
        case BatchNorm():
            return w.apply("norm", f"nn.BatchNorm{dims}d({w.channels})", x)
        case PixelShuffle():
            return w.say(f"nn.functional.pixel_shuffle({x}, {block.factors[0]})")
        case Permute():
            return w.say(f"{x}[:, order]")
        case Branches():
            outs = w.branches(block, x)
            return w.say(" + ".join(outs) if block.join == "sum" else f"torch.cat([{', '.join(outs)}], dim=1)")
        case Chain():
            return w.block(block, x)
        case _:
            assert_never(block)


def _gate(w: Writer, block: Gate, x: str, dims: int) -> str:
    """Two 1×1 convolutions on the means of the channels."""
    hidden = max(1, w.channels // block.reduction)
    reduce = w.layer("reduce", f"nn.Conv{dims}d({w.channels}, {hidden}, 1)")
    expand = w.layer("expand", f"nn.Conv{dims}d({hidden}, {w.channels}, 1)")
    w.say(f"{x}.mean(dim={tuple(range(2, dims + 2))}, keepdim=True)", "weights")
    w.say(f"torch.sigmoid({expand}(torch.relu({reduce}(weights))))", "weights")
    return w.say(f"{x} * weights")


def _torch_arguments(spec: ConvSpec) -> str:
    kwargs: dict[str, Any] = {"stride": one(spec.stride), "padding": one(spec.even_padding or (0,))}
    if spec.transposed:
        kwargs["output_padding"] = one(spec.output_padding)
    kwargs |= {"dilation": one(spec.dilation), "groups": spec.groups, "bias": spec.bias}
    return call("", (spec.in_channels, spec.out_channels, one(spec.kernel_size)), kwargs)[1:-1]


def _torch_deform(w: Writer, block: Deform, x: str, dims: int) -> str:
    offsets = w.layer("offsets", f"nn.Conv{dims}d({_torch_arguments(block.offset_conv)})")
    conv = w.layer("conv", f"nn.Conv{dims}d({_torch_arguments(block.conv)})")
    taps = block.offset_groups * prod(block.conv.kernel_size)
    w.say(f"{offsets}({x})", "moves")
    mask = ""
    if block.modulated:
        w.say(f"moves.split([{dims * taps}, {taps}], dim=1)", "moves, mask")
        mask = ", mask=mask.sigmoid()"
    spec = block.conv
    return w.say(f"deform_conv{dims}d({x}, moves, {conv}.weight, {conv}.bias, stride={one(spec.stride)}, "
                 f"padding={one(spec.even_padding or (0,))}, dilation={one(spec.dilation)}{mask})")  # fmt: skip
