"""What the kinds of layers promise: what they compose to, their shapes, a step of training, their mistakes."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from cases import fill, whole_numbers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reconv import layers
from reconv.errors import ConvError
from reconv.layers import block_of
from reconv.spec import ConvSpec, output_shape, receptive_field

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
SIZES = (9, 7, 8)


def layer_of(kind: str, dims: int, *arguments: object, **keywords: object) -> nn.Module:
    made = getattr(layers, f"{kind}{dims}d")(*arguments, dtype=torch.float64, **keywords)
    return fill(made)


def composed(layer: nn.Module) -> Tensor:
    """The one kernel that convolutions without anything between compose to."""
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    kernel, *others = [part.weight for part in layer]
    for weight in others:
        kernel = transposed[weight.ndim - 2](weight, kernel)
    return kernel.detach()


# -- one large convolution ------------------------------------------------------------------------
SETTINGS = [
    {},
    {"padding": 2},
    {"padding": "same"},
    {"padding": ((3, 0),), "stride": 2},
    {"stride": 3, "padding": 1, "dilation": 2, "bias": False},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": ((0, 2),), "padding_mode": "replicate"},
]
COMPOSED = [
    ("StackedConv", 5, {}),
    ("StackedConv", 4, {"mid_channels": 2}),
    ("StackedConv", 5, {"small": 2}),
    ("AsymmetricConv", 3, {}),
    ("AsymmetricConv", 4, {"mid_channels": 2}),
]


@DIMS
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind, size, own", COMPOSED, ids=str)
def test_equals_the_large_convolution_borders_included(kind, size, own, settings, dims):
    layer = layer_of(kind, dims, 3, 4, size, **settings, **own)
    large = getattr(layers, f"Conv{dims}d")(3, 4, size, **settings, dtype=torch.float64)
    large.load_state_dict({"weight": composed(layer)} | ({} if large.bias is None else {"bias": layer[-1].bias}))
    x = whole_numbers((2, 3, *SIZES[:dims]))
    assert torch.equal(layer(x), large(x))


@settings(max_examples=60)
@given(st.data())
def test_stacks_have_the_shape_and_the_reach_of_the_large_one(data):
    dims = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(low, high)] * dims))

    small, size = data.draw(st.integers(2, 5)), each(1, 9)
    assume(max(size) > small)
    common = {"stride": each(1, 3), "dilation": each(1, 2), "padding": tuple(zip(each(0, 5), each(0, 5), strict=True))}
    whole = ConvSpec(in_channels=2, out_channels=3, kernel_size=size, **common)
    shape = (1, 2, *each(1, 20))
    layer = getattr(layers, f"StackedConv{dims}d")(
        2, 3, size, **common, small=small, activation=data.draw(st.sampled_from([None, "relu"])), device="meta"
    )
    convolutions = [part for part in layer.block.blocks if isinstance(part, ConvSpec)]
    assert max(max(spec.kernel_size) for spec in convolutions) <= small
    assert len(convolutions) == -(-(max(size) - 1) // (small - 1))
    unstrided = getattr(layers, f"StackedConv{dims}d")(2, 3, size, small=small, dilation=common["dilation"])
    assert receptive_field(unstrided.block) == receptive_field(whole.replace(stride=1))
    try:
        wanted = output_shape(whole, shape)
    except ConvError:
        with pytest.raises(ConvError, match="as large as the dilated kernel"):
            output_shape(layer.block, shape)
    else:
        assert output_shape(layer.block, shape) == wanted


def test_a_stack_says_whether_activations_stand_between():
    assert "no activation between: one linear map" in repr(layers.StackedConv2d(3, 4, 7))
    vgg = layers.StackedConv2d(3, 4, 7, padding=3, activation="relu")
    assert "activations between: 2" in repr(vgg)
    assert [row.text for row in vgg.describe((1, 3, 9, 9))][1::2] == ["relu", "relu"]
    assert {row.output_shape[2:] for row in vgg.describe((1, 3, 9, 9))} == {(9, 9)}


# -- kernels side by side -------------------------------------------------------------------------
@DIMS
@pytest.mark.parametrize("join", ["concat", "sum"])
@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 0), (3, 2), (1, "same"), (2, ((0, 1),))], ids=str)
@pytest.mark.parametrize("sizes, dilation", [((1, 2, 3, 4), 1), ((3, 3, 3), (1, 2, 3)), ((5, 2), (1, 3))], ids=str)
def test_branches_of_all_sizes_join(sizes, dilation, stride, padding, join, dims):
    layer = layer_of("MultiSizeConv", dims, 2, 7, sizes, stride, padding, dilation, join=join)
    shape = (1, 2, *SIZES[:dims])
    one = getattr(layers, f"Conv{dims}d")(2, 7, 1, stride, padding)
    assert output_shape(block_of(layer), shape) == output_shape(block_of(one), shape) == layer(torch.zeros(
        shape, dtype=torch.float64)).shape  # fmt: skip


def test_channels_are_shared_evenly():
    outs = [[branch.out_channels for branch in layers.MultiSizeConv1d(2, n)] for n in (3, 4, 5, 12)]
    assert outs == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [4, 4, 4]]


def test_kernels_are_centred():
    """An impulse answers at its own place in every branch."""
    layer = layers.MultiSizeConv1d(1, 3, (1, 3, 3), dilation=(1, 1, 2), bias=False)
    for branch in layer:
        nn.init.zeros_(branch.weight)
        branch.weight.data[0, 0, branch.kernel_size[0] // 2] = 1
    x = torch.eye(7)[:, None]
    assert torch.equal(layer(x), x.expand(7, 3, 7))


# -- a step of training, against torch.nn by hand -------------------------------------------------
def conv(dims: int, *arguments: object, **keywords: object) -> nn.Module:
    return getattr(nn, f"Conv{dims}d")(*arguments, **keywords)


class Parallel(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Interleaved(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.conv = conv(dims, 4, 6, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[:, [0, 3, 1, 4, 2, 5]]


class Weighted(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        pool = getattr(nn, f"AdaptiveAvgPool{dims}d")(1)
        self.weigh = nn.Sequential(pool, nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)[(..., *[None] * (x.ndim - 2))]


def along(dims: int, axis: int, value: int, other: int) -> tuple[int, ...]:
    return tuple(value if a == axis else other for a in range(dims))


def factors(dims: int) -> nn.Module:
    if dims == 1:
        return nn.Sequential(conv(1, 4, 5, 3, padding=1, bias=False), conv(1, 5, 6, 1))
    channels = [4, *[5] * (dims - 1), 6]
    return nn.Sequential(*[
        conv(dims, channels[a], channels[a + 1], along(dims, a, 3, 1), padding=along(dims, a, 1, 0), bias=a == dims - 1)
        for a in range(dims)
    ])  # fmt: skip


BY_HAND = {  # arguments of ours, theirs
    "DepthwiseConv": ((4, 3), {"depth_multiplier": 2}, lambda d: conv(d, 4, 8, 3, groups=4)),
    "PointwiseConv": ((4, 6), {"stride": 2}, lambda d: conv(d, 4, 6, 1, stride=2)),
    "SeparableConv": (
        (4, 6, 3), {"padding": 1, "activation": "relu"},
        lambda d: nn.Sequential(conv(d, 4, 4, 3, padding=1, groups=4), nn.ReLU(), conv(d, 4, 6, 1))),
    "AsymmetricConv": ((4, 6, 3), {"padding": 1, "mid_channels": 5}, factors),
    "ShuffledGroupConv": ((4, 6, 3), {"padding": 1, "groups": 2}, Interleaved),
    "StackedConv": (
        (4, 3, 5), {"padding": 2, "activation": nn.ReLU},
        lambda d: nn.Sequential(conv(d, 4, 3, 3, padding=1), nn.ReLU(), conv(d, 3, 3, 3, padding=1))),
    "MultiSizeConv": (
        (4, 8), {"reduction": 2},
        lambda d: Parallel([
            conv(d, 4, 3, 1), nn.Sequential(conv(d, 4, 2, 1, bias=False), conv(d, 2, 3, 3, padding=1)),
            nn.Sequential(conv(d, 4, 2, 1, bias=False), conv(d, 2, 2, 5, padding=2))])),
    "SqueezeExcite": ((4, 2), {}, Weighted),
}  # fmt: skip


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The parameters after one step on whole-number targets."""
    output = layer(x)
    loss = (output * whole_numbers(tuple(output.shape), seed=7)).sum()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    loss.backward()
    optimiser.step()
    return [p.detach() for p in layer.parameters()]


def pair(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both with the same numbers."""
    theirs.double()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        other.copy_(mine)
    return ours, theirs


@DIMS
@pytest.mark.parametrize("kind", BY_HAND)
def test_a_step_of_training_is_torchs(kind, dims):
    arguments, keywords, make = BY_HAND[kind]
    ours, theirs = pair(layer_of(kind, dims, *arguments, **keywords), make(dims))
    x = whole_numbers((2, 4, *SIZES[:dims]))
    bound = 1e-12 if kind == "SqueezeExcite" else 0
    before = [p.detach().clone() for p in ours.parameters()]
    torch.testing.assert_close(ours(x), theirs(x), rtol=bound, atol=bound)
    after = step(ours, x)
    torch.testing.assert_close(after, step(theirs, x), rtol=bound, atol=bound)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@DIMS
def test_a_batch_norm_between_learns_and_keeps_statistics(dims):
    norm = getattr(nn, f"BatchNorm{dims}d")
    theirs = nn.Sequential(conv(dims, 4, 8, 3, groups=4, bias=False), norm(8), nn.SiLU(), conv(dims, 8, 6, 1))
    ours = layer_of("SeparableConv", dims, 4, 6, 3, depth_multiplier=2, norm=norm, activation="silu")
    ours, theirs = pair(ours, theirs)
    x = whole_numbers((2, 4, *SIZES[:dims]))
    torch.testing.assert_close(step(ours, x), step(theirs, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var)
    assert ours[1].num_batches_tracked == theirs[1].num_batches_tracked
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-10, atol=1e-10)


# -- what stands between --------------------------------------------------------------------------
class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_modules_without_a_name_work_but_have_no_block():
    layer = layers.SeparableConv2d(4, 6, 3, norm=lambda channels: nn.GroupNorm(2, channels), activation=Halved)
    assert [type(part).__name__ for part in layer] == ["Conv2d", "GroupNorm", "Halved", "Conv2d"]
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(layer(x), nn.Sequential(*layer)(x))
    for ask in (lambda: layer.block, lambda: layer.describe((2, 4, 5, 5))):
        with pytest.raises(ConvError, match=r"block_of: the layer must be .*; got layer=GroupNorm"):
            ask()


def test_modules_between_are_not_shared_and_take_the_dtype():
    layer = layers.StackedConv2d(4, 6, 7, activation=nn.PReLU, dtype=torch.float64)
    assert layer[1] is not layer[3]
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


def test_a_slice_is_a_chain():
    layer = layers.SeparableConv2d(4, 6, 3, norm="batch")
    assert str(layer[:2].block) == "ic4oc4k3x3g4nb -> bn"
    assert isinstance(layers.MultiSizeConv1d(4, 6)[1:], nn.ModuleList)


def test_absorbed_parts_change_nothing():
    layer = fill(layers.SeparableConv2d(4, 6, 3, activation="relu"))
    longer = layers.ChainLayer(OrderedDict(a=layer[0], b=layers.Absorbed(), c=layer[1], d=layer[2]))
    x = whole_numbers((2, 4, 5, 5)).float()
    with torch.no_grad():
        assert torch.equal(longer(x), layer(x))
    assert torch.equal(longer(x), layer(x))
    assert longer.block == layer.block
    assert longer[:2].block == layer[0].block
    assert torch.equal(layers.ChainLayer(layers.Absorbed())(x), x)
