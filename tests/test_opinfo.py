"""PyTorch's own samples and error inputs for the six convolutions: what torch gives is what reconv gives."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from reconv import functional
from reconv.errors import ConvError

SAMPLES = {"conv1d": 10, "conv2d": 30, "conv3d": 20, "conv_transpose1d": 10, "conv_transpose2d": 12,
           "conv_transpose3d": 10}  # fmt: skip
ERRORS = {"conv1d": 10, "conv2d": 10, "conv3d": 10}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128, torch.int64)


@functools.cache
def opinfo(name: str):
    """PyTorch's description of an operator; what it imports takes seconds, so it is asked for only here."""
    with pytest.MonkeyPatch.context() as patch:  # the import locks torch.backends' flags for the whole process
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal.common_methods_invocations import op_db
    (found,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    return found


def tensors_of(values: object) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal to the last bit."""
    kinds = (ours.dtype, ours.requires_grad), (theirs.dtype, theirs.requires_grad)
    return torch.equal(ours, theirs) and kinds[0] == kinds[1]


def samples(name: str, dtype: torch.dtype, grad: bool) -> Iterator[tuple[tuple[object, ...], dict[str, object]]]:
    for sample in opinfo(name).sample_inputs("cpu", dtype, requires_grad=grad):
        yield (sample.input, *sample.args), sample.kwargs


def test_torch_has_no_other_convolutions():
    from torch.testing._internal.common_methods_invocations import op_db

    opinfo("conv2d")
    theirs = {op.name.removeprefix("nn.functional.") for op in op_db if op.name.startswith("nn.functional.conv")}
    assert theirs == set(SAMPLES)
    assert {name for name in SAMPLES if opinfo(name).error_inputs_func} == set(ERRORS)
    assert all(set(DTYPES) == opinfo(name).supported_dtypes("cpu") for name in SAMPLES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_outputs_are_torchs(name, dtype):
    count = 0
    for args, kwargs in samples(name, dtype, grad=False):
        ours, theirs = (getattr(module, name)(*args, **kwargs) for module in (functional, F))
        assert same(ours, theirs), (args, kwargs)
        count += 1
    assert count == SAMPLES[name]


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_gradients_are_torchs(name, dtype):
    count = 0
    for args, kwargs in samples(name, dtype, grad=True):
        leaves = [tensor for tensor in tensors_of((args, kwargs)) if tensor.requires_grad]
        outputs = [getattr(module, name)(*args, **kwargs) for module in (functional, F)]
        assert len(leaves) >= 2
        assert same(*outputs)
        seed = torch.ones_like(outputs[0]) * torch.arange(1, 1 + outputs[0].shape[-1])
        ours, theirs = (torch.autograd.grad(output, leaves, seed.to(dtype)) for output in outputs)
        assert all(map(same, ours, theirs)), (args, kwargs)
        count += 1
    assert count == SAMPLES[name]


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_of_torchs_type(name):
    count = 0
    for case in opinfo(name).error_inputs("cpu"):
        args, kwargs = (case.sample_input.input, *case.sample_input.args), case.sample_input.kwargs
        with pytest.raises(case.error_type):
            getattr(F, name)(*args, **kwargs)
        with pytest.raises(ConvError, match=f"^{name}: ") as caught:
            getattr(functional, name)(*args, **kwargs)
        assert isinstance(caught.value, case.error_type)
        count += 1
    assert count == ERRORS[name]
