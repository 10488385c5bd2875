"""The functional entrances against the plain reference and against torch, and their errors."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from cases import BLOCKS, CONVS, Case, conv_specs, fill, whole_numbers
from hypothesis import assume, given
from torch.nn import functional as F

from reconv.errors import ConvError
from reconv.layers import build
from reconv.ops import functional, reference
from reconv.spec import ConvSpec, output_shape, parse

NAMES = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
DEFORMABLE = ["deform_conv1d", "deform_conv2d", "deform_conv3d"]
SEPARABLE = ["separable_conv1d", "separable_conv2d", "separable_conv3d"]
SPECS = {name: case for name, case in CONVS.items() if case.block.padding_mode == "zeros"}
each_spec = pytest.mark.parametrize("case", SPECS.values(), ids=SPECS.keys())


def operands(spec: ConvSpec, input_shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    tensors = {"input": whole_numbers(input_shape, 1), "weight": whole_numbers(spec.weight_shape, 2)}
    return tensors | ({"bias": whole_numbers((spec.out_channels,), 3)} if spec.bias else {})


def settings(spec: ConvSpec) -> dict[str, object]:
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    return {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups} | extra


def name_of(spec: ConvSpec) -> str:
    return f"conv{'_transpose' * spec.transposed}{spec.spatial_dims}d"


def entrance(spec: ConvSpec):
    return getattr(functional, name_of(spec))


# -- values ---------------------------------------------------------------------------------------
def check_against_reference(spec: ConvSpec, input_shape: tuple[int, ...]) -> None:
    tensors = operands(spec, input_shape)
    output = entrance(spec)(**tensors, **settings(spec))
    np.testing.assert_array_equal(output, reference.run(spec, tensors, tensors["input"]), strict=True)
    assert tuple(output.shape) == output_shape(spec, input_shape)


@each_spec
def test_equals_the_reference_exactly(case: Case):
    check_against_reference(case.block, case.input_shape)


@given(conv_specs())
def test_equals_the_reference_exactly_on_any_spec(spec):
    spec = spec.replace(padding_mode="zeros")
    shape = (2, spec.in_channels, *(7, 6, 8)[: spec.spatial_dims])
    try:
        output_shape(spec, shape)
    except ConvError:
        assume(False)
    check_against_reference(spec, shape)


@each_spec
def test_equals_torch_where_torch_can(case: Case):
    spec, tensors = case.block, operands(case.block, case.input_shape)
    wide = spec.replace(padding=0) if spec.even_padding is None else spec
    plain = settings(wide) | {"padding": wide.even_padding}
    wanted = getattr(F, name_of(spec))(**tensors, **plain)
    assert torch.equal(entrance(spec)(**tensors, **plain), wanted)
    assert torch.equal(entrance(spec)(**tensors, **settings(wide)), wanted)


@each_spec
def test_takes_one_input_without_batch_and_none_at_all(case: Case):
    spec, tensors = case.block, operands(case.block, case.input_shape)
    x, rest = tensors.pop("input"), settings(spec)
    wanted = entrance(spec)(x, **tensors, **rest)
    assert torch.equal(entrance(spec)(x[0], **tensors, **rest), wanted[0])
    assert entrance(spec)(x[:0], **tensors, **rest).shape == wanted[:0].shape


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 2)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_named_padding(padding, size):
    x, w = whole_numbers((2, 3, 8, 7)), whole_numbers((4, 3, *size))
    spec = ConvSpec(in_channels=3, out_channels=4, kernel_size=size, padding=padding, bias=False)
    output = functional.conv2d(x, w, padding=padding)
    np.testing.assert_array_equal(output, reference.run(spec, {"weight": w}, x), strict=True)
    assert torch.equal(functional.conv2d(x, w, padding=spec.padding), output)


FORMS = [
    ((1, 2, 0), (1, 2, 0)),
    ([(1, 1), (2, 2), (0, 0)], (1, 2, 0)),
    (((1, 1), 2, (0, 0)), (1, 2, 0)),
    ([[2, 2]], 2),
    ((1,), 1),
]


@pytest.mark.parametrize("given_as, plain", FORMS)
def test_forms_of_padding(given_as, plain):
    x, w = whole_numbers((1, 2, 5, 4, 6)), whole_numbers((3, 2, 2, 3, 3))
    assert torch.equal(functional.conv3d(x, w, padding=given_as), F.conv3d(x, w, padding=plain))


@pytest.mark.parametrize("transposed", [False, True])
def test_uneven_padding_by_hand(transposed):
    x, w = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[1.0, 10]]])
    entrance_, wanted = {
        False: (functional.conv1d, [[[10, 21, 32, 3, 0]]]),  # 0 1 2 3 0 0
        True: (functional.conv_transpose1d, [[[1, 12, 23]]]),  # 1 12 23 30, the last one cut off
    }[transposed]
    padding = ((0, 1),) if transposed else ((1, 2),)
    assert entrance_(x, w, padding=padding).tolist() == wanted


LAYOUTS = {
    "transposed memory": lambda x: x.mT.contiguous().mT,
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("text", ["ic3oc4k3x3s2p0:1x2:0", "ic3oc4k3x3p1", "ic3oc4k3x3s2p0:1x2:0t"])
def test_layouts(layout, text):
    spec = parse(text)
    tensors = operands(spec, (2, 3, 6, 4))
    tensors["input"] = layout(tensors["input"])
    output = entrance(spec)(**tensors, **settings(spec))
    np.testing.assert_array_equal(output, reference.run(spec, tensors, tensors["input"]))


# -- derivatives and transforms -------------------------------------------------------------------
GRADIENTS = ["uneven", "uneven 1d", "uneven 3d", "groups", "transposed uneven", "transposed uneven 1d"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    spec, shape = CONVS[name]
    tensors = [tensor.requires_grad_() for tensor in operands(spec, (1, *shape[1:])).values()]

    def compute(*tensors):
        return entrance(spec)(*tensors, **settings(spec))

    assert torch.autograd.gradcheck(compute, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, tensors, fast_mode=True)


@pytest.mark.parametrize("name", GRADIENTS)
def test_vmap_is_a_loop(name):
    spec, shape = CONVS[name]
    tensors = operands(spec, shape)
    stacked = torch.stack([tensors["input"], tensors["input"].flip(-1), -tensors["input"]])

    def compute(x):
        return entrance(spec)(**tensors | {"input": x}, **settings(spec))

    assert torch.equal(torch.func.vmap(compute)(stacked), torch.stack([compute(x) for x in stacked]))


@each_spec
def test_traces_whole(case: Case):
    spec, tensors = case.block, operands(case.block, case.input_shape)

    def compute(tensors):
        return entrance(spec)(**tensors, **settings(spec))

    torch.compiler.reset()
    assert torch.equal(torch.compile(compute, fullgraph=True, backend="eager")(tensors), compute(tensors))


def test_traces_with_any_length():
    def compute(x, w):
        pads = ((0, 1), (2, 0))
        return functional.conv_transpose2d(functional.conv2d(x, w, padding=pads), w, padding=pads)

    compiled = torch.compile(compute, fullgraph=True, backend="eager", dynamic=True)
    w = whole_numbers((3, 2, 3, 3))
    for length in (5, 7, 12):
        x = whole_numbers((1, 2, length, length + 1), seed=length)
        assert torch.equal(compiled(x, w), compute(x, w))


# -- signatures -----------------------------------------------------------------------------------
TORCH_ORDER = {
    "conv": ["input", "weight", "bias", "stride", "padding", "dilation", "groups"],
    "conv_transpose": ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"],
}


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_torchs(name):
    function = getattr(functional, name)
    assert list(inspect.signature(function).parameters) == TORCH_ORDER[name[:-2]]
    assert f"{name}(" in getattr(F, name).__doc__
    assert function.__name__ == name
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function


def test_every_entrance_is_listed():
    assert set(functional.__all__) == {*NAMES, *DEFORMABLE, *SEPARABLE, "channel_shuffle"}


# -- errors ---------------------------------------------------------------------------------------
def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


X, W = t(1, 6, 5, 5), t(8, 6, 3, 3)
MISTAKES = {  # name of the entrance, arguments, what the message says
    "input of 2 axes": ("conv2d", (t(5, 5), W), {}, r"input must be \(N, C_in, \*spatial\)"),
    "input of 5 axes": ("conv2d", (t(1, 6, 5, 5, 5), W), {}, r"with 2 spatial axes; got input=\(1, 6, 5, 5, 5\)"),
    "weight of 3 axes": ("conv2d", (X, t(8, 6, 3)), {}, r"weight must be .* 2 spatial axes\)"),
    "weight of 5 axes": ("conv1d", (t(1, 6, 9), t(8, 6, 3, 3, 3)), {}, "and 1 spatial axes"),
    "other channels": ("conv2d", (X, t(8, 5, 3, 3)), {}, r"weight must be .* here \(8, 6, 3, 3\)"),
    "channels by groups": ("conv2d", (X, t(8, 1, 3, 3)), {"groups": 4}, "in_channels must be divisible by groups; "
                           r"got in_channels=6, groups=4\. Use groups 1 or 2\. \[ic6oc8k3x3g4nb\]"),
    "outputs by groups": ("conv2d", (X, t(8, 2, 3, 3)), {"groups": 3}, "out_channels must be divisible by groups"),
    "no groups": ("conv2d", (X, W), {"groups": 0}, "groups must be an integer >= 1"),
    "bias of other length": ("conv2d", (X, W, t(6)), {}, r"bias must be \(C_out,\), here \(8,\); got bias=\(6,\)"),
    "bias of 2 axes": ("conv2d", (X, W, t(8, 1)), {}, r"bias must be \(C_out,\)"),
    "stride 0": ("conv2d", (X, W), {"stride": 0}, "stride must be an integer >= 1"),
    "stride below 0": ("conv2d", (X, W), {"stride": (1, -1)}, "stride must be an integer >= 1"),
    "three strides": ("conv2d", (X, W), {"stride": (1, 1, 1)}, "or 2 of them"),
    "stride 1.5": ("conv2d", (X, W), {"stride": 1.5}, "stride must be an integer >= 1"),
    "dilation 0": ("conv2d", (X, W), {"dilation": 0}, "dilation must be an integer >= 1"),
    "padding below 0": ("conv2d", (X, W), {"padding": -1}, "padding must be an integer >= 0"),
    "padding 0.5": ("conv2d", (X, W), {"padding": 0.5}, "padding must be an integer >= 0"),
    "same with stride": ("conv2d", (X, W), {"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
    "padding of other name": ("conv2d", (X, W), {"padding": "full"}, "'same' or 'valid'"),
    "kernel above input": ("conv2d", (t(1, 6, 5, 2), W), {}, "conv2d: the padded input must be at least as large"),
    "dilated above input": ("conv2d", (X, W), {"dilation": 3}, "as large as the dilated kernel"),
    "unlike dtypes": ("conv2d", (X, W.double()), {}, "same dtype; got input=torch.float32, weight=torch.float64"),
    "unlike bias": ("conv2d", (X, W, t(8, dtype=torch.float64)), {}, "same dtype"),
    "no tensor": ("conv2d", (X, [[1.0]]), {}, "weight must be a tensor; got weight=list"),
    "no input": ("conv2d", (None, W), {}, "input must be a tensor; got input=NoneType"),
    "transposed, other channels": ("conv_transpose2d", (X, t(8, 6, 3, 3)), {}, r"here \(6, 6, 3, 3\)"),
    "transposed, bias": ("conv_transpose2d", (X, t(6, 8, 3, 3), t(6)), {}, r"bias must be \(C_out,\), here \(8,\)"),
    "transposed, groups": ("conv_transpose2d", (X, t(6, 2, 3, 3)), {"groups": 4}, "must be divisible by groups"),
    "transposed, output padding": ("conv_transpose2d", (X, t(6, 8, 3, 3)), {"output_padding": 2, "stride": 2},
                                   "output_padding must be smaller than stride or dilation"),
    "transposed, nothing left": ("conv_transpose2d", (t(1, 6, 2, 2), t(6, 8, 3, 3)), {"padding": 2},
                                 "conv_transpose2d: the padding must leave some of the output"),
    "transposed, same": ("conv_transpose2d", (X, t(6, 8, 3, 3)), {"padding": "same"}, "a transposed one: a number"),
    "transposed, input of 6 axes": ("conv_transpose3d", (t(1, 1, 6, 5, 5, 5), t(6, 8, 3, 3, 3)), {}, "input must be"),
}  # fmt: skip


def error_of(function, arguments, keywords) -> Exception:
    with pytest.raises(Exception) as caught:  # which one, is what is compared
        function(*arguments, **keywords)
    return caught.value


@pytest.mark.parametrize("name, arguments, keywords, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_told_in_torchs_type(name, arguments, keywords, message):
    wanted = type(error_of(getattr(F, name), arguments, keywords))
    with pytest.raises(ConvError, match=message) as caught:
        getattr(functional, name)(*arguments, **keywords)
    assert isinstance(caught.value, wanted)
    assert str(caught.value).startswith(f"{name}: ")


UNEVEN_MISTAKES = [
    ("conv2d", ((0, 1, 2), (0, 0)), "padding must be an integer >= 0"),
    ("conv2d", ((0, 1), (0, 0), (0, 0)), "padding must be an integer >= 0, 2 of them, 2 pairs"),
    ("conv2d", ((0, -1), (0, 0)), "padding must be an integer >= 0"),
    ("conv2d", ((0, "a"), (0, 0)), "padding must be an integer >= 0"),
    ("conv_transpose2d", ((0, -1), (0, 0)), "padding must be an integer >= 0"),
    ("conv_transpose2d", ((1, 6), (0, 0)), "the padding must leave some of the output"),
]


@pytest.mark.parametrize("name, padding, message", UNEVEN_MISTAKES)
def test_mistakes_of_uneven_padding(name, padding, message):
    with pytest.raises(ConvError, match=message):
        getattr(functional, name)(X, t(6, 6, 3, 3), padding=padding)


def test_what_torch_alone_knows_is_told_in_its_words():
    with pytest.raises(ConvError, match=r"conv2d: .*not implemented") as caught:
        functional.conv2d(X.to(torch.float8_e4m3fn), W.to(torch.float8_e4m3fn))
    assert isinstance(caught.value, RuntimeError)


# -- channel shuffle ------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3), (1, 12, 3, 2), (0, 6, 2, 2), (2, 6, 2, 3, 2), (2, 6, 2, 1, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channel_shuffle(shape, groups):
    x = whole_numbers(shape)
    output = functional.channel_shuffle(x, groups)
    np.testing.assert_array_equal(output, reference.run(parse(f"shuffle({groups})"), {}, x), strict=True)
    if x.ndim > 2 and x.numel():
        assert torch.equal(output, F.channel_shuffle(x, groups))
    assert torch.equal(functional.channel_shuffle(output, shape[1] // groups), x)


@pytest.mark.parametrize("shape, groups", [((2, 6, 3), 4), ((2, 6, 3), 0), ((2, 6, 3), -2), ((6,), 2)])
def test_channel_shuffle_refuses(shape, groups):
    with pytest.raises(ConvError, match=r"channel_shuffle: input must be \(N, C, …\)") as caught:
        functional.channel_shuffle(torch.zeros(shape), groups)
    assert isinstance(caught.value, type(error_of(F.channel_shuffle, (torch.zeros(shape), groups), {})))


# -- the reference itself, by its law -------------------------------------------------------------
def test_reference_is_the_law_written_out():
    x, w = whole_numbers((1, 4, 5)).numpy(), whole_numbers((6, 2, 2), seed=1).numpy()
    spec = parse("ic4oc6k2s2p1:0d3g2nb")
    wanted = np.zeros((1, 6, 2))
    for o in range(6):
        for p in range(2):
            for c in range(2):
                for k in range(2):
                    i = 2 * p + 3 * k - 1
                    wanted[0, o, p] += w[o, c, k] * x[0, o // 3 * 2 + c, i] if i >= 0 else 0
    np.testing.assert_array_equal(reference.run(spec, {"weight": w}, x), wanted)


@pytest.mark.parametrize("name", [name for name, case in CONVS.items() if case.block.transposed])
def test_reference_transposed_is_the_adjoint(name):
    """⟨conv(y), x⟩ = ⟨y, convᵀ(x)⟩ for the convolution that has the same numbers, where no output padding is added."""
    spec = CONVS[name].block.replace(bias=False, output_padding=0)
    back = spec.replace(transposed=False, in_channels=spec.out_channels, out_channels=spec.in_channels)
    weight = whole_numbers(spec.weight_shape, 1)
    x = whole_numbers(CONVS[name].input_shape, 2)
    up = reference.run(spec, {"weight": weight}, x)
    y = whole_numbers(up.shape, 3).numpy()
    assert (reference.run(back, {"weight": weight}, y) * x.numpy()).sum() == (y * up).sum()


@pytest.mark.parametrize("name", [name for name in CONVS | BLOCKS if "uneven" not in name and "gate" not in name])
def test_reference_is_free_of_torch_numbers(name):
    """Arrays and tensors, float32 and float64, serve alike."""
    block, shape = (CONVS | BLOCKS)[name]
    tensors = fill(build(block, channels=shape[1]).double()).state_dict()
    arrays = {key: value.float().numpy() for key, value in tensors.items()}
    x = whole_numbers(shape)
    np.testing.assert_array_equal(reference.run(block, arrays, x.float().numpy()), reference.run(block, tensors, x))
