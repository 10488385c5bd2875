"""What is of another kind than what is asked for is told by name, as a ConvError of the builtin type that fits."""

import pytest
import torch
from torch import nn

import reconv
from reconv import functional, spec, targets, tensorflow
from reconv.data import Feed
from reconv.errors import ConvError
from reconv.rewriting.recovery import check_training

CONV, X = nn.Conv2d(3, 3, 3), torch.zeros(1, 3, 8, 8)
BLOCK, SGD = spec.parse("ic3oc3k3x3"), torch.optim.SGD(CONV.parameters())
A_BLOCK, A_LAYER = "the block must be a Block; got type=str. Read a text", "the layer must be a convolution of torch.nn"
A_SHAPE = "input_shape must be integers \\(N, C, \\*spatial\\); got input_shape="

MISTAKES = {
    "build": (lambda: reconv.nn.build("ic3oc3k3x3"), TypeError, A_BLOCK),
    "output_shape": (lambda: spec.output_shape("ic3oc3k3x3", X.shape), TypeError, A_BLOCK),
    "params": (lambda: spec.params("ic3oc3k3x3"), TypeError, A_BLOCK),
    "macs": (lambda: spec.macs("ic3oc3k3x3", X.shape), TypeError, A_BLOCK),
    "describe": (lambda: spec.describe("ic3oc3k3x3", X.shape), TypeError, A_BLOCK),
    "receptive_field": (lambda: spec.receptive_field("ic3oc3k3x3"), TypeError, A_BLOCK),
    "convs": (lambda: list(spec.convs("ic3oc3k3x3")), TypeError, A_BLOCK),
    "shape, one number": (lambda: spec.describe(BLOCK, 8), TypeError, A_SHAPE + "8"),
    "shape, none": (lambda: spec.output_shape(BLOCK, None), TypeError, A_SHAPE + "None"),
    "shape, of text": (lambda: spec.describe(BLOCK, ("N", 3, 8, 8)), TypeError, A_SHAPE),
    "parse": (lambda: reconv.parse(None), TypeError, "a spec must be text; got type=NoneType"),
    "factors": (lambda: spec.PixelShuffle(2), ValueError, "factors must be 1, 2 or 3 integers >= 1, in a tuple; .*=2"),
    "crop": (lambda: spec.PixelShuffle((2, 2), crop=3), ValueError, "crop must be a pair .*; got crop=3"),
    "crop, of ones": (lambda: spec.PixelShuffle((2, 2), crop=(1, 1)), ValueError, "crop must be a pair"),
    "deform": (lambda: spec.Deform(spec.Chain(BLOCK, BLOCK)), TypeError, "conv must be a ConvSpec; got conv="),
    "block_of": (lambda: reconv.nn.block_of(3), TypeError, A_LAYER),
    "draw": (lambda: reconv.draw(3), TypeError, A_LAYER),
    "draw, at": (lambda: reconv.draw(CONV, at=3), ValueError, "at must be .* inside the output; got at="),
    "shuffle, no tensor": (lambda: functional.channel_shuffle(3, 2), TypeError, "input must be a tensor; .*=int"),
    "shuffle, groups": (lambda: functional.channel_shuffle(X, "3"), TypeError, "groups must be an integer >= 1; .*'3'"),
    "shuffle layer": (lambda: reconv.nn.ChannelShuffle(0), ValueError, "groups must be an integer >= 1; .*=0"),
    "permute layer": (lambda: reconv.nn.ChannelPermute(-1), ValueError, "channels must be an integer >= 1; .*=-1"),
    "target": (lambda: targets.get_target(5), TypeError, "must be a name or a Target; .*=int. As a Target, it has no"),
    "front": (lambda: reconv.plan(CONV, X, front="3"), ValueError, "front must be between 0 and .*; got front='3'"),
    "sites": (lambda: reconv.plan(CONV, X, sites=3), TypeError, "sites must be a name, a pattern .*; got sites=3"),
    "sites of maps": (lambda: reconv.feature_maps(CONV, X, sites=3), TypeError, "sites must be a name, .*=3"),
    "plan of a rewrite": (lambda: reconv.rewrite(CONV, X, plan=3), TypeError, "plan must be a Plan; got plan=int"),
    "epochs of a rewrite": (lambda: reconv.rewrite(CONV, X, epochs="3"), ValueError, "epochs must be an integer"),
    "stages": (lambda: reconv.rewrite(CONV, X, stages=None), ValueError, "stages must be an integer; .*=None"),
    "opset": (lambda: reconv.export(CONV, X, "x.onnx", opset="20"), ValueError, "opset must be an integer; .*'20'"),
    "carried from": (lambda: reconv.carry_optimizer(SGD, 3, CONV), TypeError, "before and after must be networks"),
    "converted": (lambda: reconv.networks.convert("vgg11", 3), TypeError, "state_dict must be names and tensors"),
    "layer's factors": (lambda: reconv.nn.PixelShuffleLayer(2), ValueError, "factors must be 1, 2 or 3 integers >= 1"),
    "axes": (lambda: reconv.nn.build(spec.BatchNorm(), channels=3, spatial_dims=7), ValueError, "must be 1, 2 or 3"),
    "mesh": (lambda: reconv.nn.split_groups(CONV, 3), TypeError, "mesh must be a DeviceMesh; got mesh=int. Make it by"),
    "dtype": (lambda: reconv.classic.Box(3, dtype="float"), TypeError, "dtype must be a floating one"),
    "losses": (lambda: tensorflow.losses(3), TypeError, "module must be a torch.nn.Module; got module=int"),
    "keras": (lambda: tensorflow.state_from_keras(3), TypeError, "weights must be a list of arrays; got weights=int"),
    "to keras": (lambda: tensorflow.keras_from_state(3), TypeError, "state must be names and tensors; got state=int"),
    "plan": (lambda: reconv.apply(CONV, "plan.json", X), TypeError, "plan must be a Plan; got plan=str. Read a file"),
    "epochs": (lambda: reconv.recover(CONV, CONV, X, epochs="3"), ValueError, "epochs must be positive, or 0; .*='3'"),
    "lr": (lambda: reconv.recover(CONV, CONV, X, lr=None), ValueError, "lr must be positive; got lr=None"),
    "ema": (lambda: check_training(None, "0.9"), ValueError, "ema must be at least 0 and less than 1; got ema='0.9'"),
    "holdout": (lambda: Feed.of(X).split("0.1"), ValueError, "holdout must be between 0 and 1; got holdout='0.1'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_is_told(mistake):
    call, kind, text = MISTAKES[mistake]
    with pytest.raises(ConvError, match=text) as caught:
        call()
    assert isinstance(caught.value, kind)
