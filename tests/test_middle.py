"""What the middle of an output sees of the input, in theory and by its gradient."""

from __future__ import annotations

import pytest
import torch
from receptive_nets import CASES
from torch import nn

from reconv.costing.middle import effective_fields, theoretical_fields, within
from reconv.surgery.clone import clone

FOLLOWED = ("plain", "uneven", "strides", "skipping", "dilated", "grouped", "same", "residual", "shortcut", "inception")


@pytest.mark.parametrize("shape, kernel", [((2, 9), 3), ((2, 9, 7), (3, 5)), ((2, 5, 7, 6), 3)])
def test_the_field_of_one_convolution_is_its_kernel(shape, kernel):
    dims = len(shape) - 1
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 3, kernel, padding="same")
    x = torch.rand((2, *shape))
    field = effective_fields(conv, (x,), [""])[""]
    weight = conv.weight.detach().sum(0).abs().sum(0)
    assert field.shape == x.shape[2:]
    corner = tuple(slice(n // 2 - k // 2, n // 2 + k // 2 + 1) for n, k in zip(x.shape[2:], weight.shape, strict=True))
    torch.testing.assert_close(field[corner], weight)
    assert int((field > 0).sum()) == weight.numel()


@pytest.mark.parametrize("name", FOLLOWED)
def test_in_theory_the_middle_sees_what_has_a_gradient(name):
    model, shape = clone(CASES[name][0]), CASES[name][1]
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1)
    x = torch.rand((64, *shape[1:]), generator=torch.Generator().manual_seed(0))  # so that each is once the largest
    names = [each for each, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)]
    theory, practice = theoretical_fields(model, (x,), names), effective_fields(model, (x,), names)
    assert theory.keys() == practice.keys() == set(names)
    for each in names:
        window = theory[each]
        assert window is not None
        clipped = tuple((max(0, low), min(size, high)) for (low, high), size in zip(window, x.shape[2:], strict=True))
        assert within(practice[each], 1 - 1e-12) == clipped


def test_in_theory_the_middle_may_see_nothing_that_is_known():
    pooled = nn.Sequential(nn.Conv1d(1, 1, 1), nn.AdaptiveAvgPool1d(1))
    assert theoretical_fields(pooled, (torch.ones(1, 1, 7),), ["0", "1"]) == {"0": ((3, 4),), "1": ((0, 7),)}
    assert theoretical_fields(pooled, (torch.ones(1, 1, 7),), []) == {}


def test_the_field_of_a_network_that_writes_into_its_input():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(1, 1, 1), nn.ReLU(inplace=True))
    x = torch.ones(1, 1, 5)
    assert (effective_fields(model, (x,), ["1"])["1"] > 0).tolist() == [False, False, True, False, False]
    assert torch.equal(x, torch.ones(1, 1, 5))


@pytest.mark.parametrize(
    "field, share, ends",
    [
        ([0, 0, 0], 0.95, ((0, 0),)),
        ([1, 1, 1, 1], 1.0, ((0, 4),)),
        ([1, 1, 1, 1], 0.5, ((1, 3),)),
        ([0, 0, 5, 0], 0.95, ((2, 3),)),
        ([[0, 0, 0], [1, 2, 0]], 0.95, ((1, 2), (0, 2))),
    ],
)
def test_where_most_of_a_field_lies(field, share, ends):
    assert within(torch.tensor(field, dtype=torch.float32), share) == ends
