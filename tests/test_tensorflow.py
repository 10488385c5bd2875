"""tf.nn's conventions against an independent implementation (JAX) and by hand, and their errors."""

from __future__ import annotations

import inspect
from functools import partial

import jax
import numpy as np
import pytest
import torch
from cases import whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reconv
from reconv import tensorflow as tf
from reconv.tensorflow.arguments import same_pads

LAST = {1: "NWC", 2: "NHWC", 3: "NDHWC"}
FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}
KERNEL = {1: "WIO", 2: "HWIO", 3: "DHWIO"}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


# -- the independent implementation ---------------------------------------------------------------
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # each is run once


def lax(x, w, strides, padding, dilations, data_format: str, groups: int):
    """JAX's convolution, with its own SAME, on arrays; padding is a word or spatial pairs."""
    dims = w.ndim - 2
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilations, feature_group_count=groups,
        dimension_numbers=(data_format, KERNEL[dims], data_format),
    )  # fmt: skip


def lax_of(x: Tensor, w: Tensor, *settings):
    return quick(lambda x, w: lax(x, w, *settings))(x.numpy(), w.numpy())


def lax_shape(shape, w: Tensor, *settings) -> tuple[int, ...]:
    return jax.eval_shape(lambda x: lax(x, w.numpy(), *settings), jax.ShapeDtypeStruct(shape, np.float64)).shape


def lax_gradient(y: Tensor, w: Tensor, shape, *settings):
    """What tf.nn's transposed convolutions are: the gradient of a convolution to its input, of this shape."""
    x = jax.ShapeDtypeStruct(shape, np.float64)

    def gradient(y, w):
        return jax.linear_transpose(lambda x: lax(x, w, *settings), x)(y)[0]

    return quick(gradient)(y.numpy(), w.numpy())


# -- random calls ---------------------------------------------------------------------------------
class Drawn:
    """The settings of a convolution, and one of TensorFlow's spellings of each."""

    def __init__(self, draw: st.DrawFn, dims: int, one_of_stride_and_dilation: bool = False) -> None:
        def each(low: int, high: int) -> tuple[int, ...]:
            return draw(st.tuples(*[st.integers(low, high)] * dims))

        self.draw, self.dims = draw, dims
        self.last = draw(st.booleans())
        self.format = (LAST if self.last else FIRST)[dims]
        self.kernel, self.strides, self.dilations = each(1, 4), each(1, 3), each(1, 3)
        if one_of_stride_and_dilation and draw(st.booleans()):
            self.strides = (1,) * dims
        elif one_of_stride_and_dilation:
            self.dilations = (1,) * dims
        self.padding = draw(st.sampled_from(["SAME", "VALID", "same", "explicit"]))
        if self.padding == "explicit":
            self.padding = [list(pair) for pair in zip(each(0, 3), each(0, 3), strict=True)]
        self.seed = draw(st.integers(0, 1000))

    def lengths(self) -> tuple[int, ...]:
        """Of an input, as large as the dilated kernel at least where SAME does not see to it."""
        spans = [(k - 1) * d + 1 if self.padding in ("VALID", "explicit") or isinstance(self.padding, list) else 1
                 for k, d in zip(self.kernel, self.dilations, strict=True)]  # fmt: skip
        return tuple(span + self.draw(st.integers(0, 6)) for span in spans)

    def whole(self, batch, channels, inner) -> tuple:
        return (batch, *inner, channels) if self.last else (batch, channels, *inner)

    def spelled(self, values: tuple[int, ...]):
        forms = [values, list(values), list(self.whole(1, 1, values))]
        forms += [values[0], [values[0]]] if len(set(values)) == 1 else []
        return self.draw(st.sampled_from(forms))

    def keywords(self) -> dict[str, object]:
        padding = self.padding
        if isinstance(padding, list):
            padding = list(self.whole([0, 0], [0, 0], padding))
        return {
            "strides": self.spelled(self.strides), "padding": padding, "dilations": self.spelled(self.dilations),
            "data_format": None if self.last and self.draw(st.booleans()) else self.format,
        }  # fmt: skip

    def of_jax(self) -> tuple:
        padding = self.padding.upper() if isinstance(self.padding, str) else self.padding
        return self.strides, padding, self.dilations, self.format


def equal(output: Tensor, wanted) -> None:
    np.testing.assert_array_equal(output.numpy(), np.asarray(wanted), strict=True)


@given(st.data(), st.sampled_from([1, 2, 3]))
@settings(max_examples=100)
def test_convolutions_are_those_of_jax(data, dims):
    call = Drawn(data.draw, dims)
    groups, per_group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    outputs = groups * data.draw(st.integers(1, 2))
    x = whole_numbers(call.whole(data.draw(st.integers(1, 2)), groups * per_group, call.lengths()), call.seed)
    w = whole_numbers((*call.kernel, per_group, outputs), call.seed + 1)
    output = getattr(tf, f"conv{dims}d")(x, w, **call.keywords())
    equal(output, lax_of(x, w, *call.of_jax(), groups))


@given(st.data())
@settings(max_examples=60)
def test_depthwise_and_separable_are_those_of_jax(data):
    call = Drawn(data.draw, 2, one_of_stride_and_dilation=True)
    channels, multiplier = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    x = whole_numbers(call.whole(2, channels, call.lengths()), call.seed)
    w = whole_numbers((*call.kernel, channels, multiplier), call.seed + 1)
    mix = whole_numbers((1, 1, channels * multiplier, 3), call.seed + 2)
    depthwise = lax_of(x, w.reshape(*call.kernel, 1, channels * multiplier), *call.of_jax(), channels)
    equal(tf.depthwise_conv2d(x, w, **call.keywords()), depthwise)
    letters = call.format.lower()
    wanted = np.einsum(f"{letters},co->{letters.replace('c', 'o')}", depthwise, mix[0, 0].numpy())
    equal(tf.separable_conv2d(x, w, mix, **call.keywords()), wanted)


@given(st.data(), st.sampled_from([1, 2, 3]))
@settings(max_examples=100)
def test_transposed_convolutions_are_the_gradients_of_jaxs(data, dims):
    """The output's shape is drawn first: every one that a stride allows comes up."""
    call = Drawn(data.draw, dims)
    groups, per_group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    channels = groups * data.draw(st.integers(1, 2))
    shape = call.whole(2, groups * per_group, call.lengths())
    w = whole_numbers((*call.kernel, per_group, channels), call.seed)
    arguments = (*call.of_jax(), groups)
    y = whole_numbers(lax_shape(shape, w, *arguments), call.seed + 1)
    function, keywords = getattr(tf, f"conv{dims}d_transpose"), call.keywords()
    wanted = lax_gradient(y, w, shape, *arguments)
    inner = shape[1:-1] if call.last else shape[2:]
    forms = [shape, list(shape), torch.Size(shape), torch.tensor(shape), np.array(shape), *([inner] * (groups == 1))]
    equal(function(y, w, data.draw(st.sampled_from(forms)), **keywords), wanted)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_is_lax_conv_transpose_at_its_own_shape(dims, padding, stride):
    y, w = whole_numbers((2, *(4, 3, 2)[:dims], 3)), whole_numbers((*(3, 4, 2)[:dims], 5, 3))
    wanted = jax.lax.conv_transpose(
        y.numpy(), w.numpy(), (stride,) * dims, padding, dimension_numbers=(LAST[dims], KERNEL[dims], LAST[dims]),
        transpose_kernel=True,
    )  # fmt: skip
    equal(getattr(tf, f"conv{dims}d_transpose")(y, w, wanted.shape, stride, padding), wanted)


# -- by hand --------------------------------------------------------------------------------------
SAME = [  # positions, extent of the kernel, stride: padded before and after
    (5, 1, 1, (0, 0)), (5, 2, 1, (0, 1)), (5, 3, 1, (1, 1)), (5, 4, 1, (1, 2)), (1, 5, 1, (2, 2)),
    (5, 3, 2, (1, 1)), (6, 3, 2, (0, 1)), (6, 2, 2, (0, 0)), (5, 2, 2, (0, 1)), (6, 5, 2, (1, 2)), (7, 5, 2, (2, 2)),
    (7, 1, 3, (0, 0)), (7, 2, 3, (0, 1)), (2, 1, 5, (0, 0)), (10, 4, 3, (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("length, extent, stride, pads", SAME)
def test_same_by_hand(length, extent, stride, pads):
    assert same_pads(length, extent, stride) == pads


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


SMALL = {  # kernel 1 10 100; what 1 2 3 4 becomes
    "valid": ({"padding": "VALID"}, [321, 432]),
    "same": ({"padding": "SAME"}, [210, 321, 432, 43]),
    "same, stride 2": ({"padding": "SAME", "strides": 2}, [321, 43]),  # 1 2 3 4 0
    "same, stride 3": ({"padding": "SAME", "strides": 3}, [210, 43]),  # 0 1 2 3 4 0
    "same, rate 2": ({"padding": "SAME", "dilations": 2}, [310, 420, 31, 42]),  # 0 0 1 2 3 4 0 0
    "explicit": ({"padding": [[0, 0], [2, 1], [0, 0]]}, [100, 210, 321, 432, 43]),
}


@pytest.mark.parametrize("keywords, wanted", SMALL.values(), ids=SMALL.keys())
def test_convolution_by_hand(keywords, wanted):
    output = tf.conv1d(row(1, 2, 3, 4), row(1, 10, 100).view(3, 1, 1), **keywords)
    assert output.flatten().tolist() == wanted


SMALL_TRANSPOSED = {  # kernel 1 10 100; what 1 2 becomes
    "valid": (2, "VALID", 5, [1, 10, 102, 20, 200]),
    "valid, one more": (2, "VALID", 6, [1, 10, 102, 20, 200, 0]),
    "same, odd": (2, "SAME", 3, [10, 102, 20]),
    "same, even": (2, "SAME", 4, [1, 10, 102, 20]),
    "stride above kernel": (4, "SAME", 8, [1, 10, 100, 0, 2, 20, 200, 0]),
    "explicit": (1, [[0, 0], [1, 0], [0, 0]], 3, [12, 120, 200]),
}


@pytest.mark.parametrize("stride, padding, length, wanted", SMALL_TRANSPOSED.values(), ids=SMALL_TRANSPOSED.keys())
def test_transposed_by_hand(stride, padding, length, wanted):
    w = row(1, 10, 100).view(3, 1, 1)
    for shape in ([length], [1, length, 1], torch.tensor([1, length, 1])):
        assert tf.conv1d_transpose(row(1, 2), w, shape, stride, padding).flatten().tolist() == wanted


def test_groups_and_multiplier_by_hand():
    x = torch.tensor([[[[1.0, 10.0]]]])  # one position, two channels
    assert tf.conv2d(x, torch.tensor([[[[2.0, 3.0]]]]), 1, "SAME").flatten().tolist() == [2, 30]
    assert tf.depthwise_conv2d(x, torch.tensor([[[[2.0, 3], [4, 5]]]]), 1, "SAME").flatten().tolist() == [2, 3, 40, 50]


# -- spellings ------------------------------------------------------------------------------------
X, W = whole_numbers((2, 7, 6, 4)), whole_numbers((3, 2, 4, 5), 1)
SPELLINGS = [
    {"strides": 2, "dilations": 1}, {"strides": [2], "dilations": None}, {"strides": (2, 2)},
    {"strides": [1, 2, 2, 1], "dilations": [1, 1, 1, 1]}, {"stride": 2}, {"strides": 2, "rate": [1, 1]},
    {"strides": np.array([2, 2])}, {"strides": np.int64(2)}, {"strides": torch.tensor([2, 2]), "name": "conv"},
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("padding", ["SAME", "same", [[0, 0], [1, 1], [0, 0], [0, 0]]])
def test_spellings_are_one(spelling, padding):
    wanted = tf.conv2d(X, W, [1, 2, 2, 1], "SAME")
    assert torch.equal(tf.conv2d(X, W, padding=padding, **spelling), wanted)
    moved = padding if isinstance(padding, str) else [[0, 0], [0, 0], [1, 1], [0, 0]]
    axes = spelling.get("strides")
    strides = {"strides": [1, 1, 2, 2]} if isinstance(axes, list) and len(axes) == 4 else {}
    output = tf.conv2d(X.movedim(-1, 1), W, padding=moved, data_format="NCHW", **spelling | strides)
    assert torch.equal(output.movedim(1, -1), wanted)


def test_names_of_tensorflow_1():
    assert torch.equal(tf.conv2d(value=X, filter=W, padding="SAME"), tf.conv2d(X, W, 1, "SAME"))
    wanted = tf.conv1d(X[:, 0], W[0], 1, "VALID")
    for data_format in ("NHWC", "NWC", None):
        assert torch.equal(tf.conv1d(value=X[:, 0], filters=W[0], stride=1, padding="VALID",
                                     data_format=data_format), wanted)  # fmt: skip
    assert torch.equal(tf.conv1d(X[:, 0].mT, W[0], 1, "VALID", "NCHW"), wanted.mT)
    assert torch.equal(tf.depthwise_conv2d(X, filters=W, strides=[1, 1, 1, 1], rate=[2, 2], padding="VALID"),
                       tf.depthwise_conv2d(X, W, 1, "VALID", dilations=2))  # fmt: skip
    back = tf.conv2d_transpose(value=X, filter=W.mT, output_shape=(7, 6), strides=1)
    assert torch.equal(back, tf.conv2d_transpose(X, W.mT, (2, 7, 6, 5), 1, "SAME"))


TENSORFLOW_ORDER = {
    "conv": ["input", "filters", "strides", "padding", "data_format", "dilations", "name"],
    "conv_transpose": ["input", "filters", "output_shape", "strides", "padding", "data_format", "dilations", "name"],
    "depthwise_conv": ["input", "filter", "strides", "padding", "data_format", "dilations", "name"],
    "separable_conv": ["input", "depthwise_filter", "pointwise_filter", "strides", "padding", "data_format",
                       "dilations", "name"],
}  # fmt: skip
FUNCTIONS = {
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "conv1d_transpose": "conv_transpose",
    "conv2d_transpose": "conv_transpose", "conv3d_transpose": "conv_transpose",
    "depthwise_conv2d": "depthwise_conv", "separable_conv2d": "separable_conv",
}  # fmt: skip


@pytest.mark.parametrize("name, kind", FUNCTIONS.items())
def test_order_is_tensorflows(name, kind):
    parameters = inspect.signature(getattr(tf, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == TENSORFLOW_ORDER[kind]
    assert getattr(tf, name).__name__ == name
    assert reconv.tensorflow is tf


# -- shapes, dtypes, layouts ----------------------------------------------------------------------
def call_of(name: str, dtype: torch.dtype = torch.float64, batch: tuple[int, ...] = (2,)):
    """A call of each function with odd sizes: the function, its tensors, its other arguments."""
    dims = int(name[name.index("d") - 1]) if name[0] == "c" else 2
    x = whole_numbers((*batch, *(5, 6, 4)[:dims], 4)).to(dtype)
    kernel = (3, 2, 3)[:dims]
    shapes = {
        "conv": [(*kernel, 2, 6)], "conv_transpose": [(*kernel, 3, 4)], "depthwise_conv": [(*kernel, 4, 2)],
        "separable_conv": [(*kernel, 4, 2), (1, 1, 8, 3)],
    }[FUNCTIONS[name]]  # fmt: skip
    weights = [whole_numbers(shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    keywords: dict[str, object] = {"strides": 2, "padding": "SAME"}
    if FUNCTIONS[name] == "conv_transpose":
        keywords["output_shape"] = [2 * n - 1 for n in x.shape[-dims - 1 : -1]]
    return getattr(tf, name), [x, *weights], keywords


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes(name, dtype):
    function, tensors, keywords = call_of(name)
    output = function(*[tensor.to(dtype) for tensor in tensors], **keywords)
    assert output.dtype == dtype
    torch.testing.assert_close(output, function(*tensors, **keywords).to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "transpose" not in name])
def test_several_axes_of_batch_and_none_in_it(name):
    function, (x, *weights), keywords = call_of(name, batch=(2, 3))
    wanted = torch.stack([function(part, *weights, **keywords) for part in x])
    assert torch.equal(function(x, *weights, **keywords), wanted)
    first = function(x.movedim(-1, 2), *weights, **keywords, data_format={3: "NCW", 4: "NCHW", 5: "NCDHW"}[x.ndim - 1])
    assert torch.equal(first.movedim(2, -1), wanted)
    assert function(x[:0], *weights, **keywords).shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "1d" not in name])
def test_channels_last_stays_so_in_memory(name):
    function, tensors, keywords = call_of(name, torch.float32)
    output = function(*tensors, **keywords)
    assert output.stride(-1) == 1
    assert output.is_contiguous() or "transpose" in name  # of which SAME cuts off a view


# -- derivatives and transforms -------------------------------------------------------------------
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
def test_gradients(name):
    function, tensors, keywords = call_of(name, batch=(1,))
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *t: function(*t, **keywords), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t, **keywords), tensors, fast_mode=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_those_of_jax(dims):
    """Of the loss Σ y², for which every output counts otherwise."""
    function, (x, w), keywords = call_of(f"conv{dims}d")

    def loss(x, w):
        return (lax(x, w, (2,) * dims, "SAME", (1,) * dims, LAST[dims], 2) ** 2).sum()

    wanted = quick(jax.grad(loss, (0, 1)))(x.numpy(), w.numpy())
    tensors = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    function(*tensors, **keywords).square().sum().backward()
    for tensor, gradient in zip(tensors, wanted, strict=True):
        equal(tensor.grad, gradient)


@each_function
def test_vmap_is_a_loop(name):
    function, (x, *weights), keywords = call_of(name)
    stacked = torch.stack([x, x.flip(1), -x])
    output = torch.func.vmap(lambda x: function(x, *weights, **keywords))(stacked)
    assert torch.equal(output, torch.stack([function(x, *weights, **keywords) for x in stacked]))


@each_function
def test_traces_whole(name):
    function, tensors, keywords = call_of(name)
    torch.compiler.reset()
    compiled = torch.compile(lambda tensors: function(*tensors, **keywords), fullgraph=True, backend="eager")
    assert torch.equal(compiled(tensors), function(*tensors, **keywords))


@pytest.mark.parametrize("stride", [1, 2])
def test_traces_with_any_length(stride):
    def compute(x, w, back):
        up = tf.conv1d_transpose(x, back, [stride * x.shape[1]], stride, "SAME")
        return tf.conv1d(x, w, stride, "SAME", dilations=2), up

    torch.compiler.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    for length in (5, 8, 12):
        tensors = whole_numbers((2, length, 4), length), whole_numbers((3, 4, 5)), whole_numbers((3, 5, 4))
        torch._dynamo.mark_dynamic(tensors[0], 1)
        for output, wanted in zip(compiled(*tensors), compute(*tensors), strict=True):
            assert torch.equal(output, wanted)


@each_function
def test_autocast(name):
    function, tensors, keywords = call_of(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = function(tensors[0], *[weight.bfloat16() for weight in tensors[1:]], **keywords)
    assert output.dtype == torch.bfloat16
