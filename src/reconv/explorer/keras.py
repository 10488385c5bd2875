"""What a block is in Keras, which TensorFlow's users write; channels come last."""

from __future__ import annotations

from typing import assert_never

from reconv.explorer.writer import Writer, call, one, program
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

NEITHER = "Keras has no transposed convolution with both strides and a dilation"


def keras_code(block: Block, dims: int, channels: int) -> str:
    writer = Writer(channels, lambda w, b, x: _keras(w, b, x, dims))
    last = writer.block(block, "x")
    return program(["import keras", "from keras import layers"], writer, last)


def _keras(w: Writer, block: Block, x: str, dims: int) -> str:
    match block:
        case ConvSpec():
            return _keras_conv(w, block, x, dims)
        case Deform():
            w.lines.append('raise NotImplementedError("Keras has no deformable convolution")')
            return x
        case Shuffle():
            size = ", ".join(f"{x}.shape[{i}]" for i in range(dims + 1))
            axes = (*range(dims + 1), dims + 2, dims + 1)
            w.say(f"keras.ops.reshape({x}, ({size}, {block.groups}, -1))", "parts")
            w.say(f"keras.ops.transpose(parts, {axes})", "parts")
            return w.say(f"keras.ops.reshape(parts, ({size}, -1))")
        case Gate():
            axes = tuple(range(1, dims + 1))
            reduce = w.layer("reduce", f'layers.Dense({max(1, w.channels // block.reduction)}, activation="relu")')
            expand = w.layer("expand", f'layers.Dense({w.channels}, activation="sigmoid")')
            w.say(f"{expand}({reduce}(keras.ops.mean({x}, axis={axes}, keepdims=True)))", "weights")
            return w.say(f"{x} * weights")
        case Activation():
            return w.say(f"keras.activations.{block.name}({x})") if block.name != "identity" else x
        case BatchNorm():
            return w.apply("norm", "layers.BatchNormalization(epsilon=1e-5)", x)
        case PixelShuffle() | Permute():
            w.lines.append(f'raise NotImplementedError("Keras has no {type(block).__name__}")')
            return x
        case Branches():
            outs = w.branches(block, x)
            joined = " + ".join(outs) if block.join == "sum" else f"keras.ops.concatenate([{', '.join(outs)}], axis=-1)"
            return w.say(joined)
        case Chain():
            return w.block(block, x)
        case _:
            assert_never(block)


def _keras_conv(w: Writer, spec: ConvSpec, x: str, dims: int) -> str:
    if spec.transposed:
        return _keras_transposed(w, spec, x, dims)
    # Keras takes no strides beside a dilation: every so many positions of all of them
    picks = max(spec.stride) > 1 and max(spec.dilation) > 1
    if any(map(any, spec.padding)):
        x = w.apply("pad", f"layers.ZeroPadding{dims}D({_pads(spec.padding)})", x)
    kwargs = {"strides": 1 if picks else one(spec.stride), "dilation_rate": one(spec.dilation), "use_bias": spec.bias}
    if spec.depthwise and dims < 3:
        kwargs["depth_multiplier"] = spec.out_channels // spec.in_channels
        made = call(f"layers.DepthwiseConv{dims}D", (one(spec.kernel_size),), kwargs)
    else:
        kwargs["groups"] = spec.groups
        made = call(f"layers.Conv{dims}D", (spec.out_channels, one(spec.kernel_size)), kwargs)
    x = w.apply("conv", made, x)
    return w.say(f"{x}[:, {', '.join(f'::{s}' for s in spec.stride)}]") if picks else x


def _keras_transposed(w: Writer, spec: ConvSpec, x: str, dims: int) -> str:
    """The whole output, then what the padding cuts off."""
    if max(spec.stride) > 1 and max(spec.dilation) > 1:
        w.lines.append(f'raise NotImplementedError("{NEITHER}")')
        return x
    kwargs = {"strides": one(spec.stride), "dilation_rate": one(spec.dilation), "use_bias": spec.bias}
    x = w.apply("conv", call(f"layers.Conv{dims}DTranspose", (spec.out_channels, one(spec.kernel_size)), kwargs), x)
    cut = tuple((lo, hi - op) for (lo, hi), op in zip(spec.padding, spec.output_padding, strict=True))
    if any(hi < 0 for _, hi in cut):
        w.lines.append("# the last positions of output_padding hold the bias only, and Keras leaves them out")
        cut = tuple((lo, max(0, hi)) for lo, hi in cut)
    return w.apply("crop", f"layers.Cropping{dims}D({_pads(cut)})", x) if any(map(any, cut)) else x


def _pads(pads: tuple[tuple[int, int], ...]) -> str:
    """As Keras takes them: a pair for one axis, pairs for more."""
    if len({*pads}) == 1 and pads[0][0] == pads[0][1]:
        return str(pads[0][0])
    return str(pads[0]) if len(pads) == 1 else str(pads)
