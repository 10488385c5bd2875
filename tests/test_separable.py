"""separable_conv1d … 3d: against the two convolutions that they are, and their errors."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from cases import whole_numbers
from torch import Tensor
from torch.nn import functional as F

from reconv.errors import ConvError
from reconv.ops import functional, reference
from reconv.spec import parse

NAMES = {1: "separable_conv1d", 2: "separable_conv2d", 3: "separable_conv3d"}
SIZES = (9, 7, 8)
DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
SETTINGS = [
    ("", {}),
    ("p1", {"padding": 1}),
    ("p1", {"padding": "same"}),
    ("s2p0:1d2", {"stride": 2, "padding": ((0, 1),), "dilation": 2}),
]


def operands(dims: int, multiplier: int) -> dict[str, Tensor]:
    return {
        "input": whole_numbers((2, 3, *SIZES[:dims]), 1),
        "depthwise_weight": whole_numbers((3 * multiplier, 1, *[3] * dims), 2),
        "pointwise_weight": whole_numbers((5, 3 * multiplier, *[1] * dims), 3),
        "bias": whole_numbers((5,), 4),
    }


@DIMS
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("text, settings", SETTINGS, ids=str)
def test_equals_the_reference_exactly(text, settings, multiplier, dims):
    tensors, inner = operands(dims, multiplier), 3 * multiplier
    size, ones = "x".join("3" * dims), "x".join("1" * dims)
    block = parse(f"ic3oc{inner}k{size}{text}g3nb -> ic{inner}oc5k{ones}")
    state = {"0.weight": tensors["depthwise_weight"], "1.weight": tensors["pointwise_weight"],
             "1.bias": tensors["bias"]}  # fmt: skip
    compute = getattr(functional, NAMES[dims])
    output = compute(**tensors, **settings)
    np.testing.assert_array_equal(output, reference.run(block, state, tensors["input"]), strict=True)
    x, *rest = tensors.values()
    assert torch.equal(compute(x[0], *rest, **settings), output[0])
    assert compute(x[:0], *rest, **settings).shape == output[:0].shape
    without = compute(x, *rest[:2], **settings)
    assert torch.equal(without + rest[2].view(-1, *[1] * dims), output)


@DIMS
def test_derivatives_and_transforms(dims):
    shapes = (1, 2, *(5, 4, 3)[:dims]), (2, 1, *[2] * dims), (2, 2, *[1] * dims), (2,)
    tensors = [whole_numbers(shape, seed).requires_grad_() for seed, shape in enumerate(shapes)]
    compute = getattr(functional, NAMES[dims])
    assert torch.autograd.gradcheck(compute, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, tensors, fast_mode=True)
    x, *rest = [tensor.detach() for tensor in tensors]
    stacked = torch.stack([x, -x, 2 * x])
    mapped = torch.func.vmap(lambda x: compute(x, *rest))(stacked)
    assert torch.equal(mapped, torch.stack([compute(x, *rest) for x in stacked]))
    torch.compiler.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, *rest, padding=1), compute(x, *rest, padding=1))


@DIMS
def test_signature(dims):
    function = getattr(functional, NAMES[dims])
    assert list(inspect.signature(function).parameters) == [
        "input", "depthwise_weight", "pointwise_weight", "bias", "stride", "padding", "dilation",
    ]  # fmt: skip
    assert function.__name__ == NAMES[dims]
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


X, D, P = t(1, 4, 5, 5), t(8, 1, 3, 3), t(6, 8, 1, 1)
MISTAKES = {  # arguments, keywords, what the message says
    "no tensor": ((X, D, [[1.0]]), {}, "pointwise_weight must be a tensor; got pointwise_weight=list"),
    "input of 2 axes": ((t(5, 5), D, P), {}, r"input must be \(N, C_in, \*spatial\)"),
    "no channels": ((t(1, 0, 5, 5), D, P), {}, "depthwise_weight must be"),
    "no multiple": ((t(1, 3, 5, 5), D, P), {}, r"depthwise_weight must be \(a multiple of C_in, 1, and 2 spatial axes"),
    "depthwise, dense": ((X, t(8, 4, 3, 3), P), {}, "depthwise_weight must be"),
    "depthwise, 3 axes": ((X, t(8, 1, 3), P), {}, "depthwise_weight must be"),
    "pointwise, channels": ((X, D, t(6, 4, 1, 1)), {}, r"pointwise_weight must be \(C_out, 8, 1, 1\)"),
    "pointwise, wide": ((X, D, t(6, 8, 3, 3)), {}, "pointwise_weight must be"),
    "pointwise, 2 axes": ((X, D, t(6, 8)), {}, "pointwise_weight must be"),
    "bias": ((X, D, P, t(8)), {}, r"bias must be \(C_out,\), here \(6,\)"),
    "stride": ((X, D, P), {"stride": 0}, "stride must be an integer >= 1"),
    "dilation": ((X, D, P), {"dilation": 3}, "as large as the dilated kernel"),
    "padding": ((X, D, P), {"padding": -1}, "padding must be an integer >= 0"),
    "same with stride": ((X, D, P), {"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
    "unlike dtypes": ((X, D.double(), P), {}, "same dtype"),
    "unlike dtypes, later": ((X, D, P.double()), {}, "same dtype"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, keywords, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(arguments, keywords, message):
    with pytest.raises(ConvError, match=message) as caught:
        functional.separable_conv2d(*arguments, **keywords)
    assert isinstance(caught.value, (RuntimeError, TypeError, ValueError))
    assert str(caught.value).startswith("separable_conv2d: ")


@pytest.mark.parametrize("stride", [0, -1, (1, 1, 1)])
def test_mistakes_are_of_torchs_type(stride):
    with pytest.raises(Exception) as theirs:  # which one, is what is compared
        F.conv2d(X, D, stride=stride, groups=4)
    with pytest.raises(type(theirs.value)):
        functional.separable_conv2d(X, D, P, stride=stride)
