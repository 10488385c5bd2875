"""Layers: what a block describes is what its layer computes, and every way of torch through it works."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from cases import BLOCKS, BUILT, CONVS, Case, fill, whole_numbers
from torch import nn

from reconv import layers
from reconv.errors import ConvError
from reconv.layers import block_of, build
from reconv.ops import reference
from reconv.spec import ConvSpec, convs, output_shape, parse

NAMES = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
EVEN = {name: case for name, case in CONVS.items() if case.block.even_padding is not None}
TELLING = {  # …the number of spatial axes, to parts that need no batch
    name: case for name, case in BUILT.items() if list(convs(case.block)) and "bn" not in str(case.block)
}
ROUNDED = ("se(", "mask", "bn", "leaky_relu", " elu", "gelu", "silu", "hard", "sigmoid", "tanh")  # the rest is exact
each_case = pytest.mark.parametrize("case", BUILT.values(), ids=BUILT.keys())
each_even = pytest.mark.parametrize("case", EVEN.values(), ids=EVEN.keys())


def filled(case: Case) -> nn.Module:
    """The layer of a case in float64, with whole numbers for weights."""
    return fill(build(case.block, channels=case.input_shape[1], dtype=torch.float64)).eval()


def torchs(spec: ConvSpec) -> nn.Module:
    """torch.nn's own module for a spec that it can express."""
    kind = getattr(nn, f"Conv{'Transpose' * spec.transposed}{spec.spatial_dims}d")
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    return kind(spec.in_channels, spec.out_channels, spec.kernel_size, stride=spec.stride, padding=spec.even_padding,
                dilation=spec.dilation, groups=spec.groups, bias=spec.bias, padding_mode=spec.padding_mode,
                dtype=torch.float64, **extra)  # fmt: skip


# -- values ---------------------------------------------------------------------------------------
@each_case
def test_equals_the_reference(case: Case):
    layer, x = filled(case), whole_numbers(case.input_shape, 99)
    output = layer(x).detach().numpy()
    wanted = reference.run(case.block, layer.state_dict(), x)
    if any(word in str(case.block) for word in ROUNDED):
        np.testing.assert_allclose(output, wanted, rtol=1e-12, atol=1e-12)
    else:
        np.testing.assert_array_equal(output, wanted)
    assert output.shape == output_shape(case.block, case.input_shape)


@pytest.mark.parametrize("case", TELLING.values(), ids=TELLING.keys())
def test_takes_one_input_without_batch(case: Case):
    layer, x = filled(case), whole_numbers(case.input_shape)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=1e-12, atol=1e-12)


def test_mixing_layers_take_one_input_where_they_know_the_axes():
    x = whole_numbers((2, 6, 4, 3))
    for layer in (
        layers.ChannelShuffle(3, 2),
        fill(layers.ChannelPermute(6, 2)),
        layers.SqueezeExcite(6, 2, 2).double(),
    ):
        torch.testing.assert_close(layer(x[0]), layer(x)[0])
        assert not torch.equal(layer(x), x)


def test_a_permutation_moves_channels():
    layer = layers.ChannelPermute(4)
    x = whole_numbers((2, 4, 3))
    assert torch.equal(layer(x), x)
    layer.load_state_dict({"index": torch.tensor([3, 1, 0, 2])})
    assert torch.equal(layer(x), x[:, [3, 1, 0, 2]])
    assert layer.half().index.dtype == torch.int64


# -- block and layer ------------------------------------------------------------------------------
@each_case
def test_block_of_is_the_inverse_of_build(case: Case):
    assert block_of(build(case.block, channels=case.input_shape[1])) == case.block


@each_even
def test_block_of_knows_torchs_own(case: Case):
    assert block_of(torchs(case.block)) == case.block
    assert ConvSpec.of(torchs(case.block)) == case.block


KEYS = [
    ("ic6oc4k3x3", ["weight", "bias"]),
    ("ic6oc4k3x3nb -> ic4oc4k1x1", ["0.weight", "1.weight", "1.bias"]),
    ("permute(6) -> (ic6oc4k1nb | ic6oc6k1nb -> ic6oc2k1)",
     ["0.index", "1.0.weight", "1.1.0.weight", "1.1.1.weight", "1.1.1.bias"]),
    ("(ic6oc4k1nb + ic6oc4k1nb)", ["0.weight", "1.weight"]),
    ("shuffle(2) -> ic6oc4k1t", ["1.weight", "1.bias"]),
    ("ic6oc4k1 -> relu -> ic4oc2k1nb", ["0.weight", "0.bias", "2.weight"]),
    ("ic6oc4k1nb -> se(2)", ["0.weight", "1.reduce.weight", "1.reduce.bias", "1.expand.weight", "1.expand.bias"]),
]  # fmt: skip


@pytest.mark.parametrize("text, keys", KEYS)
def test_keys_of_the_state_dict(text, keys):
    assert list(build(parse(text)).state_dict()) == keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_build_takes_device_and_dtype(dtype):
    layer = build(parse("permute(6) -> ic6oc4k3x3p0:1nb -> se(2)"), device="meta", dtype=dtype)
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    assert {t.dtype for t in layer.parameters()} == {dtype}
    assert layer[0].index.dtype == torch.int64


class Scaled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class ScaledChain(layers.SeparableConv1d):
    def forward(self, input):
        return 2 * super().forward(input)


def replaced_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda input: input
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 3),
        Scaled(3, 3, 1),
        ScaledChain(3, 3, 1),
        replaced_forward(nn.Conv2d(3, 3, 1)),
        replaced_forward(layers.SqueezeExcite(3)),
        replaced_forward(nn.ReLU()),
        nn.PReLU(),
        nn.LeakyReLU(0.2),
        nn.BatchNorm2d(3, eps=1e-3),
        nn.BatchNorm1d(3, affine=False),
        nn.InstanceNorm2d(3),
        type("Leak", (nn.ReLU,), {})(),
    ],
    ids=repr,
)
def test_block_of_refuses_what_is_more_than_its_block(layer):
    with pytest.raises(ConvError, match="block_of: the layer must be a convolution") as caught:
        block_of(layer)
    assert isinstance(caught.value, TypeError)


def test_block_of_understands_parametrised_ones():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    assert str(block_of(layer)) == "ic3oc4k3x3"


MISFITS = [
    ("ic3oc4k3x3 -> ic5oc4k1x1", {}, "each part must take the channels that come in; got channels=4, needed=5"),
    ("permute(4) -> ic5oc4k1x1", {}, "each part must take the channels that come in"),
    ("(ic3oc4k1 | ic4oc4k1)", {}, "each part must take the channels that come in"),
    ("ic3oc4k3x3", {"channels": 4}, "got channels=4, needed=3"),
    ("ic3oc4k3x3 -> ic4oc4k1", {}, "the same number of dimensions"),
    ("se(4)", {}, "a gate must know its channels"),
    ("bn", {}, "a batch norm must know its channels"),
    ("bn", {"channels": 4}, "a batch norm must know its number of dimensions"),
    ("ic3oc4k3x3", {"spatial_dims": 1}, "the same number of dimensions"),
]


@pytest.mark.parametrize("text, keywords, message", MISFITS)
def test_build_refuses_misfits(text, keywords, message):
    with pytest.raises(ConvError, match=message) as caught:
        build(parse(text), **keywords)
    assert isinstance(caught.value, ValueError)


# -- as torch.nn's --------------------------------------------------------------------------------
@each_even
def test_is_torchs_in_values_state_and_repr(case: Case):
    theirs, ours = torchs(case.block), build(case.block, dtype=torch.float64)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(fill(theirs).state_dict())
    x = whole_numbers(case.input_shape)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(fill(ours).state_dict())
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_starts_from_torchs_weights(name):
    torch.manual_seed(0)
    theirs = getattr(nn, name)(4, 6, 3, groups=2)
    torch.manual_seed(0)
    ours = getattr(layers, name)(4, 6, 3, groups=2)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor)


@pytest.mark.parametrize("name", NAMES)
def test_constructor_is_torchs(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (layers, nn))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_named_padding_is_torchs(padding, mode, size):
    theirs, ours = (module.Conv2d(3, 4, size, padding=padding, padding_mode=mode).double() for module in (nn, layers))
    ours.load_state_dict(fill(theirs).state_dict())
    x = whole_numbers((2, 3, 7, 8))
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours(x), theirs(x))
    np.testing.assert_array_equal(theirs(x).detach(), reference.run(block_of(ours), theirs.state_dict(), x))


@pytest.mark.parametrize("padding", [1, ((1, 0), (0, 2))])
def test_transposed_takes_an_output_size(padding):
    layer = fill(layers.ConvTranspose2d(3, 4, 3, stride=2, padding=padding).double())
    x = whole_numbers((2, 3, 4, 5))
    least = layer(x)
    for wanted in (least.shape, least.shape[2:], (least.shape[2] + 1, least.shape[3])):
        output = layer(x, output_size=list(wanted))
        assert output.shape[2:] == torch.Size(wanted)[-2:]
        assert torch.equal(output[..., : least.shape[2], :], least)
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=[least.shape[2] + 2, least.shape[3]])


def test_uneven_padding_is_shown():
    assert "padding=((1, 2), (0, 0))" in repr(layers.Conv2d(3, 4, 3, padding=((1, 2), (0, 0))))
    assert "padding=(1, 2)" in repr(layers.Conv2d(3, 4, 3, padding=((1, 1), (2, 2))))


BAD_ARGUMENTS = [
    ("Conv2d", (6, 8, 3), {"groups": 4}, "in_channels must be divisible by groups"),
    ("Conv2d", (6, 9, 3), {"groups": 2}, "out_channels must be divisible by groups"),
    ("Conv2d", (6, 8, 3), {"groups": 0}, "groups must be an integer >= 1"),
    ("Conv2d", (6, 8, 3), {"padding": "full"}, "'same' or 'valid'"),
    ("Conv2d", (6, 8, 3), {"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
    ("Conv2d", (6, 8, 3), {"padding_mode": "wrap"}, "padding_mode must be one of"),
    ("ConvTranspose2d", (6, 8, 3), {"padding_mode": "reflect"}, "pads with zeros only"),
    ("ConvTranspose2d", (6, 8, 3), {"groups": 4}, "must be divisible by groups"),
    ("Conv3d", (6, 8, -3), {}, "kernel_size must be an integer >= 1"),
]


@pytest.mark.parametrize("name, arguments, keywords, message", BAD_ARGUMENTS)
def test_mistakes_are_told_in_torchs_type(name, arguments, keywords, message):
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(nn, name)(*arguments, **keywords)
    with pytest.raises(ConvError, match=message) as ours:
        getattr(layers, name)(*arguments, **keywords)
    assert isinstance(ours.value, theirs.type)


def test_kernel_of_other_dimensions_is_refused():
    with pytest.raises(ConvError, match="Conv1d: kernel_size must be an integer, or 1 of them"):
        layers.Conv1d(3, 4, (3, 3))


# -- every way of torch through a layer -----------------------------------------------------------
@each_case
def test_copies(case: Case):
    layer, x = filled(case), whole_numbers(case.input_shape)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert repr(twin) == repr(layer)
    assert not {id(t) for t in twin.state_dict(keep_vars=True).values()} & {
        id(t) for t in layer.state_dict(keep_vars=True).values()
    }


@each_case
def test_state_dict_reads_back_without_pickle(case: Case, tmp_path):
    layer, x = filled(case), whole_numbers(case.input_shape)
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    other = build(case.block, channels=case.input_shape[1], dtype=torch.float64).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(x), layer(x))


@each_case
def test_exports_to_plain_operators(case: Case):
    layer, x = filled(case).eval(), whole_numbers(case.input_shape)
    program = torch.export.export(layer, (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in called} == {"aten"}
    rounding = 1e-12 if "mask" in str(case.block) else 0.0  # a mask's sigmoid leaves no whole numbers
    torch.testing.assert_close(program.module()(x), layer(x), rtol=rounding, atol=rounding)


@each_case
def test_compiles_whole(case: Case):
    layer, x = filled(case), whole_numbers(case.input_shape)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*BLOCKS, "uneven", "reflect uneven 3d", "transposed uneven"])
def test_trains_and_maps(name):
    """A step of training moves every weight; vmap is a loop."""
    case = BUILT[name]
    layer, x = filled(case), whole_numbers(case.input_shape)
    output = layer(x)
    if list(layer.parameters()):
        output.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    stacked = torch.stack([x, -x, x.flip(-1)])
    mapped = torch.func.vmap(lambda x: torch.func.functional_call(layer, dict(layer.state_dict()), (x,)))(stacked)
    torch.testing.assert_close(mapped, torch.stack([layer(x) for x in stacked]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["summed", "shuffled groups", "permuted groups", "gate", "uneven", "transposed uneven"]
)
def test_half_precision_and_channels_last(name):
    case = BUILT[name]
    layer, x = filled(case), whole_numbers(case.input_shape)
    wanted = layer(x).detach()
    last = layer.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, wanted, rtol=1e-12, atol=1e-12)
    low = layer.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


def test_every_layer_is_listed():
    public = {name for name, value in vars(layers).items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert public == set(layers.__all__)
