"""The laws of convolution that the field teaches, each as a small test, in 1, 2 and 3 dimensions; all exact."""

from __future__ import annotations

from functools import reduce
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from cases import whole_numbers
from scipy import signal
from torch import Tensor
from torch.nn import functional as F

from reconv import functional
from reconv.layers import build
from reconv.spec import Chain, ConvSpec, macs, output_shape, params, parse, receptive_field

SIZES = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}  # of the maps
in_each_dimension = pytest.mark.parametrize("dims", [1, 2, 3])


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **settings: object) -> Tensor:
    return getattr(functional, f"conv{weight.ndim - 2}d")(x, weight, bias, **settings)


def conv_transpose(x: Tensor, weight: Tensor, **settings: object) -> Tensor:
    return getattr(functional, f"conv_transpose{weight.ndim - 2}d")(x, weight, **settings)


def kernel(*channels: int, size: int, dims: int, seed: int = 1) -> Tensor:
    return whole_numbers((*channels, *[size] * dims), seed)


# -- what each kind costs -------------------------------------------------------------------------
WEIGHTS = [
    ("ic64oc64k3x3nb", 36_864),
    ("ic64oc64k3x3g8nb", 4_608),
    ("ic64oc64k3x3g64nb", 576),
    ("ic64oc64k3nb", 12_288),
    ("ic64oc64k3g8nb", 1_536),
    ("ic64oc64k3x3x3nb", 110_592),
    ("ic64oc64k3x3x3g8nb", 13_824),
    ("ic16oc32k3x3nb", 4_608),
    ("ic16oc16k3x3g16nb", 144),
    ("ic16oc32k1x1nb", 512),
    ("ic16oc16k3x3g16nb -> ic16oc32k1x1nb", 656),  # 144 + 512
    ("ic16oc16k3g16nb -> ic16oc32k1nb", 560),  # 48 + 512, against 1,536
    ("ic16oc16k3x3x3g16nb -> ic16oc32k1x1x1nb", 944),  # 432 + 512, against 13,824
    ("ic1oc1k5x5nb", 25),
    ("ic1oc1k3x3nb -> ic1oc1k3x3nb", 18),  # 2 · 9
    ("ic1oc1k7x7nb", 49),
    ("ic1oc1k3x3nb -> ic1oc1k3x3nb -> ic1oc1k3x3nb", 27),  # 3 · 9
    ("ic256oc256k3x3nb", 589_824),
    ("ic256oc64k1x1nb -> ic64oc64k3x3nb -> ic64oc256k1x1nb", 69_632),  # a bottleneck: 16,384 + 36,864 + 16,384
    ("ic8oc8k7x1nb -> ic8oc8k1x7nb", 896),  # asymmetric: 2 · 7 against 49 for each of 64 pairs
]


@pytest.mark.parametrize("text, weights", WEIGHTS)
def test_number_of_weights(text, weights):
    block = parse(text)
    assert params(block) == weights
    assert sum(p.numel() for p in build(block).parameters()) == weights


@in_each_dimension
@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_groups_divide_weights_and_work(dims, groups):
    dense = ConvSpec(in_channels=16, out_channels=32, kernel_size=(3,) * dims, bias=False)
    grouped, shape = dense.replace(groups=groups), (2, 16, *SIZES[dims])
    assert groups * params(grouped) == params(dense)
    assert groups * macs(grouped, shape) == macs(dense, shape)
    assert output_shape(grouped, shape) == output_shape(dense, shape)


@in_each_dimension
def test_separable_costs_one_by_outputs_plus_one_by_taps(dims):
    """(depthwise + pointwise) / dense = 1 / out_channels + 1 / taps."""
    out, taps = 32, 3**dims
    dense = ConvSpec(in_channels=16, out_channels=out, kernel_size=(3,) * dims, padding=1, bias=False)
    block = Chain(dense.replace(out_channels=16, groups=16), dense.replace(kernel_size=(1,) * dims, padding=0))
    shape = (1, 16, *SIZES[dims])
    assert params(block) * out * taps == params(dense) * (out + taps)
    assert macs(block, shape) * out * taps == macs(dense, shape) * (out + taps)


# -- groups and channels --------------------------------------------------------------------------
@in_each_dimension
def test_summing_channels_and_convolving_commute(dims):
    x, w = whole_numbers((2, 5, *SIZES[dims])), kernel(1, 1, size=3, dims=dims)
    each = conv(x, w.expand(5, *w.shape[1:]), groups=5)
    assert torch.equal(each.sum(1, keepdim=True), conv(x.sum(1, keepdim=True), w))
    assert torch.equal(each.sum(1, keepdim=True), conv(x, w.expand(1, 5, *w.shape[2:])))


@in_each_dimension
def test_grouped_is_dense_with_zeros_between_groups(dims):
    x, w = whole_numbers((2, 6, *SIZES[dims])), kernel(4, 3, size=2, dims=dims)
    dense = torch.zeros(4, 6, *w.shape[2:]).double()
    dense[:2, :3], dense[2:, 3:] = w[:2], w[2:]
    assert torch.equal(conv(x, w, groups=2), conv(x, dense))


@in_each_dimension
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_then_pointwise_is_the_dense_kernel_they_compose_to(dims, multiplier):
    x = whole_numbers((2, 4, *SIZES[dims]))
    depth = kernel(4 * multiplier, 1, size=3, dims=dims)
    point = whole_numbers((6, 4 * multiplier, *[1] * dims), seed=2)
    dense = torch.einsum("ocm,cm...->oc...", point.view(6, 4, multiplier), depth.view(4, multiplier, *depth.shape[2:]))
    assert torch.equal(conv(conv(x, depth, groups=4), point), conv(x, dense))
    if multiplier == 1:
        assert torch.equal(dense, point * depth.transpose(0, 1))


@in_each_dimension
def test_pointwise_is_a_linear_layer_over_channels(dims):
    x, w, bias = whole_numbers((2, 5, *SIZES[dims])), whole_numbers((7, 5), seed=1), whole_numbers((7,), seed=2)
    linear = F.linear(x.movedim(1, -1), w, bias).movedim(-1, 1)
    assert torch.equal(conv(x, w.view(7, 5, *[1] * dims), bias), linear)


def test_only_a_shuffle_lets_groups_meet():
    """Which of 4 input channels the first output channel sees after two convolutions in 2 groups."""
    ones, x = torch.ones(4, 2, 1).double(), torch.eye(4).double().view(4, 4, 1)
    once = conv(x, ones, groups=2)
    assert conv(once, ones, groups=2)[:, 0, 0].tolist() == [2, 2, 0, 0]
    assert conv(functional.channel_shuffle(once, 2), ones, groups=2)[:, 0, 0].tolist() == [1, 1, 1, 1]


# -- a convolution is a dense layer with shared weights -------------------------------------------
def matrix_of(shape: tuple[int, ...], compute) -> Tensor:
    """The matrix of a linear map of (C, *spatial): its columns are the images of the unit vectors."""
    return compute(torch.eye(prod(shape)).double().view(-1, *shape)).flatten(1).T


@in_each_dimension
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2, "groups": 2}])
def test_convolution_is_a_weight_shared_dense_layer(dims, settings):
    size = tuple(n // 2 + 1 for n in SIZES[dims])
    taps = 3**dims
    w = torch.arange(1, 1 + 4 * 2 * taps).double().view(4, 2, *[3] * dims)[:, : 2 // settings.get("groups", 1)]
    x = whole_numbers((3, 2, *size))
    matrix = matrix_of((2, *size), lambda x: conv(x, w, **settings))
    output = conv(x, w, **settings)
    assert torch.equal(F.linear(x.flatten(1), matrix), output.flatten(1))
    assert set(matrix[matrix != 0].tolist()) <= set(w.flatten().tolist())
    assert matrix.numel() > w.numel()


def test_its_matrix_by_hand():
    """Row p holds the kernel from column stride · p − padding on."""
    w = torch.tensor([[[2.0, 3.0, 5.0]]]).double()
    banded = [[2, 3, 5, 0, 0], [0, 2, 3, 5, 0], [0, 0, 2, 3, 5]]
    assert matrix_of((1, 5), lambda x: conv(x, w)).tolist() == banded
    strided = [[3, 5, 0, 0, 0], [0, 2, 3, 5, 0], [0, 0, 0, 2, 3]]
    assert matrix_of((1, 5), lambda x: conv(x, w, stride=2, padding=1)).tolist() == strided
    dilated = [[2, 0, 3, 0, 5]]
    assert matrix_of((1, 5), lambda x: conv(x, w, dilation=2)).tolist() == dilated


@in_each_dimension
def test_each_weight_stands_once_for_each_output_position(dims):
    size = SIZES[dims]
    w = torch.arange(1, 1 + 2 * 3 * 2**dims).double().view(2, 3, *[2] * dims)
    values, counts = matrix_of((3, *size), lambda x: conv(x, w)).unique(return_counts=True)
    assert torch.equal(values[1:], w.flatten())
    assert set(counts[1:].tolist()) == {prod(n - 1 for n in size)}


@in_each_dimension
def test_the_whole_map_as_kernel_is_the_dense_layer_itself(dims):
    x, w = whole_numbers((2, 3, *SIZES[dims])), whole_numbers((5, 3, *SIZES[dims]), seed=1)
    assert torch.equal(conv(x, w).flatten(1), F.linear(x.flatten(1), w.flatten(1)))


@in_each_dimension
def test_shifting_and_convolving_commute(dims):
    x, w = whole_numbers((2, 3, *SIZES[dims])), kernel(4, 3, size=3, dims=dims)
    shifted = conv(x.roll(1, -1), w)[..., 1:]
    assert torch.equal(shifted, conv(x, w)[..., :-1])


# -- stacks ---------------------------------------------------------------------------------------
STACKS = [(2, 5), (3, 7), (4, 9)]


@in_each_dimension
@pytest.mark.parametrize("count, size", STACKS)
def test_stacked_threes_see_as_far_as_one_large_kernel(dims, count, size):
    three = ConvSpec(in_channels=1, out_channels=1, kernel_size=(3,) * dims, bias=False)
    stack, large = Chain(*[three] * count), three.replace(kernel_size=(size,) * dims)
    assert receptive_field(stack) == receptive_field(large) == (size,) * dims
    assert params(stack) == count * 3**dims
    assert params(large) == size**dims
    layer = build(stack).double().requires_grad_(False)
    for weight in layer.parameters():
        weight.fill_(1)
    impulse = F.pad(torch.ones(1, 1, *[1] * dims).double(), [size - 1] * 2 * dims)
    assert layer(impulse).shape == (1, 1, *[size] * dims)
    assert (layer(impulse) > 0).all()


@in_each_dimension
def test_two_convolutions_are_one_by_the_convolved_kernel(dims):
    x = whole_numbers((2, 3, *SIZES[dims]))
    first, second = kernel(4, 3, size=2, dims=dims), kernel(5, 4, size=3, dims=dims, seed=2)
    composed = conv(first.transpose(0, 1), second.flip(*range(2, dims + 2)), padding=2).transpose(0, 1)
    assert torch.equal(conv(conv(x, first), second), conv(x, composed))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_product_of_vectors_is_one_convolution_an_axis(dims):
    x, vectors = whole_numbers((2, 1, *SIZES[dims])), [whole_numbers((3,), seed=axis) for axis in range(dims)]
    full = reduce(torch.multiply, [v.view(*[-1 if a == axis else 1 for a in range(dims)])
                                   for axis, v in enumerate(vectors)])  # fmt: skip
    y = x
    for axis, vector in enumerate(vectors):
        y = conv(y, vector.view(1, 1, *[-1 if a == axis else 1 for a in range(dims)]))
    assert torch.equal(y, conv(x, full[None, None]))


@in_each_dimension
def test_summed_branches_are_one_kernel(dims):
    """A 1×1 next to a 3×3 is its centre; an identity is a 1×1 of the unit matrix."""
    x, large = whole_numbers((2, 4, *SIZES[dims])), kernel(4, 4, size=3, dims=dims)
    small = kernel(4, 4, size=1, dims=dims, seed=2)
    identity = torch.eye(4).double().view(small.shape)
    one = large + F.pad(small + identity, [1] * 2 * dims)
    assert torch.equal(conv(x, large, padding=1) + conv(x, small) + x, conv(x, one, padding=1))


# -- stride, dilation, transposition, direction ---------------------------------------------------
@in_each_dimension
def test_a_stride_leaves_outputs_out(dims):
    x, w = whole_numbers((2, 3, *SIZES[dims])), kernel(4, 3, size=3, dims=dims)
    thinned = conv(x, w, padding=1)[(..., *[slice(None, None, 3)] * dims)]
    assert torch.equal(conv(x, w, stride=3, padding=1), thinned)


@in_each_dimension
@pytest.mark.parametrize("dilation", [2, 3])
def test_dilation_is_a_kernel_with_zeros_between(dims, dilation):
    x, w = whole_numbers((2, 3, *[n + 3 for n in SIZES[dims]])), kernel(4, 3, size=3, dims=dims)
    spread = torch.zeros(4, 3, *[2 * dilation + 1] * dims).double()
    spread[(..., *[slice(None, None, dilation)] * dims)] = w
    assert torch.equal(conv(x, w, dilation=dilation), conv(x, spread))


ADJOINT = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": 3, "groups": 2},
    {"dilation": 2, "padding": 2},
    {"stride": 2, "dilation": 2, "padding": ((1, 0), (0, 2), (1, 1)), "groups": 2},
]


@in_each_dimension
@pytest.mark.parametrize("settings", ADJOINT)
def test_transposed_is_the_adjoint(dims, settings):
    """⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩ with the same weight: its matrix is the transposed one."""
    settings = {key: v[:dims] if isinstance(v, tuple) else v for key, v in settings.items()}
    w = kernel(4, 6 // settings.get("groups", 1), size=3, dims=dims)
    x = whole_numbers((2, 6, *SIZES[dims]), seed=2)
    y = whole_numbers(tuple(conv(x, w, **settings).shape), seed=3)
    spec = ConvSpec(in_channels=4, out_channels=6, kernel_size=(3,) * dims, transposed=True, **settings)
    reached = output_shape(spec, tuple(y.shape))[2:]
    rest = [wanted - got for wanted, got in zip(x.shape[2:], reached, strict=True)]  # which the stride never reads
    back = conv_transpose(y, w, **settings, output_padding=rest)
    assert back.shape == x.shape
    assert (conv(x, w, **settings) * y).sum() == (x * back).sum()


@in_each_dimension
def test_transposed_is_a_convolution_of_the_map_with_zeros_between(dims):
    """Stride s: s − 1 zeros between neighbours, the kernel turned round, its channels swapped, padding k − 1."""
    x, w = whole_numbers((2, 3, *SIZES[dims])), kernel(3, 4, size=3, dims=dims)
    spread = torch.zeros(2, 3, *[2 * n - 1 for n in SIZES[dims]]).double()
    spread[(..., *[slice(None, None, 2)] * dims)] = x
    turned = w.flip(*range(2, dims + 2)).transpose(0, 1)
    assert torch.equal(conv_transpose(x, w, stride=2), conv(spread, turned, padding=2))


@in_each_dimension
@pytest.mark.parametrize("mode, padding", [("valid", 0), ("full", 2)])
def test_it_is_a_correlation_and_with_the_flipped_kernel_a_convolution(dims, mode, padding):
    x, w = whole_numbers((1, 1, *SIZES[dims])), kernel(1, 1, size=3, dims=dims)
    correlated = signal.correlate(x[0, 0], w[0, 0], mode, method="direct")
    convolved = signal.convolve(x[0, 0], w[0, 0], mode, method="direct")
    np.testing.assert_array_equal(conv(x, w, padding=padding)[0, 0], correlated)
    np.testing.assert_array_equal(conv(x, w.flip(*range(2, dims + 2)), padding=padding)[0, 0], convolved)


@in_each_dimension
def test_padding_is_a_larger_map_with_zeros_around(dims):
    """(1, 2): 1234 -> 0123400."""
    x, w = whole_numbers((2, 3, *SIZES[dims])), kernel(4, 3, size=3, dims=dims)
    assert torch.equal(conv(x, w, padding=((1, 2),) * dims), conv(F.pad(x, [1, 2] * dims), w))
    assert conv(x, w, padding="same").shape[2:] == x.shape[2:]


# -- sums ------------------------------------------------------------------------------------------
@in_each_dimension
def test_it_is_linear(dims):
    """In the map and in the kernel; with a bias it is affine."""
    x, other = (whole_numbers((2, 3, *SIZES[dims]), seed) for seed in (1, 2))
    w, v = (kernel(4, 3, size=3, dims=dims, seed=seed) for seed in (3, 4))
    assert torch.equal(conv(2 * x - other, w), 2 * conv(x, w) - conv(other, w))
    assert torch.equal(conv(x, w + 3 * v), conv(x, w) + 3 * conv(x, v))
    bias = whole_numbers((4,), seed=5)
    assert torch.equal(conv(x, w, bias), conv(x, w) + bias.view(1, 4, *[1] * dims))


@in_each_dimension
def test_a_kernel_is_the_sum_of_its_points(dims):
    """A 3×3 convolution is nine 1×1 convolutions of the shifted map, added."""
    x, w = whole_numbers((2, 3, *SIZES[dims])), kernel(4, 3, size=3, dims=dims)
    total = sum(
        conv(x[(..., *[slice(k, n - 2 + k) for k, n in zip(point, SIZES[dims], strict=True)])],
             w[(..., *point)].view(4, 3, *[1] * dims))
        for point in product(range(3), repeat=dims)
    )  # fmt: skip
    assert torch.equal(conv(x, w), total)
