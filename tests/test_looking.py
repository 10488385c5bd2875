"""What a run's networks give is compared layer by layer, and what they see is measured, as the report says it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reported import DATA, FOLD, INPUT, SMALLER, Checked, net, plan
from torch import Tensor, nn

from reconv.data import Feed
from reconv.planning.plan import Plan
from reconv.reporting.page import page
from reconv.rewriting.apply import apply
from reconv.rewriting.looking import look, scores_alone
from reconv.spec import parse


def test_a_folded_layer_is_compared_with_the_batch_norm_behind_it():
    model = net().double()
    model[1].running_mean += 0.5
    student = apply(model, plan(edits=(FOLD,)), INPUT.double())
    seen = look(model, student, plan(edits=(FOLD,)), (INPUT.double(),), None, ["0", "3"])
    assert not seen.missing
    assert list(seen.apart) == ["0", "3"]
    assert max(seen.apart.values()) < 1e-12
    assert seen.source == "the example inputs"


def test_how_far_layers_are_apart_and_what_they_give():
    model, student = net(), net()
    with torch.no_grad():
        student[3].weight.zero_()
        student[3].bias.copy_(model[3].bias)
    seen = look(model, student, plan(edits=(SMALLER,)), (INPUT,), Feed.of(DATA[:5]), ["0", "3"])
    apart = dict(seen.apart)
    with torch.no_grad():
        then, now = model[:4](DATA[:5]), student[:4](DATA[:5])
    assert apart["0"] == 0
    assert apart["3"] == pytest.approx(float((now - then).norm() / then.norm()), rel=1e-4)
    assert seen.count == 5
    first, view = seen.views
    assert (first.name, view.name) == ("0", "3")
    for channel, was, became in view.maps:
        sample = [i for i in range(5) if np.array_equal(seen.image, DATA[i].numpy())]
        np.testing.assert_allclose(was, then[sample[0], channel].numpy(), atol=1e-5)
        np.testing.assert_allclose(became, now[sample[0], channel].numpy(), atol=1e-5)
    assert view.before is not None
    assert view.after is not None
    assert view.before.heat.shape == (9, 7)
    assert view.after.heat.max() == 0  # nothing of the input counts any more


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_it_looks_in_any_number_of_dimensions(dims):
    conv = getattr(nn, f"Conv{dims}d")
    model = nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, 4, 3, stride=2))
    data = torch.rand((4, 2, *(9, 7, 5)[:dims]))
    seen = look(model, model, Plan(), (data[:1],), Feed.of(data), ["0", "2"])
    assert not seen.missing
    found = Checked(page(None, None, Plan(), {}, seen=seen))
    assert len(found.images) == 8
    assert f"theoretical {'×'.join('5' * dims)}" in found.text


def test_a_network_that_is_one_layer_and_scripted_parts():
    seen = look(nn.Conv1d(2, 3, 3), nn.Conv1d(2, 3, 3), Plan(), (torch.rand(1, 2, 9),), None, [""])
    assert list(seen.apart) == [""]
    assert "the network itself" in page(None, None, Plan(), {}, seen=seen)
    mixed = nn.Sequential(torch.jit.script(nn.Conv1d(2, 3, 3)), nn.Conv1d(3, 2, 3))
    seen = look(mixed, mixed, Plan(), (torch.rand(1, 2, 9),), None, ["0", "1"])
    assert not seen.missing
    assert list(seen.apart) == ["1"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self.a(x) * scale, self.b(y)


def test_a_network_of_several_inputs_is_seen_from_its_first():
    inputs = (torch.rand(1, 3, 9, 7), torch.rand(1, 2, 6, 6), 2.0)
    data = [((torch.rand(4, 3, 9, 7), torch.rand(4, 2, 6, 6)), torch.zeros(4)) for _ in range(3)]
    model = Two()
    seen = look(model, model, Plan(), inputs, Feed.of(data, inputs), ["a", "b"])
    assert not seen.missing
    assert seen.image.shape == (3, 9, 7)
    a, b = seen.views
    assert a.before is not None
    assert b.before is None  # it sees nothing of the first input
    assert len(b.maps) == 4
    assert len(Checked(page(None, None, Plan(), {}, seen=seen)).images) == 2 + 2 + 2


class Failing(nn.Module):
    """Takes the batch that it was made for, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise RuntimeError("one sample is <too> few")
        return self.conv(x)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(5, 3), nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.embedding(x).mT)


@pytest.mark.parametrize(
    "model, data, part, reason",
    [
        (Failing(), DATA, "layers", "one sample is <too> few"),
        (Text(), torch.zeros(3, 9, dtype=torch.int64), "receptive fields", "first input must be floating"),
        (nn.Sequential(nn.Linear(7, 2)), DATA, "layers", "no layer of both networks gives the same shape"),
    ],
    ids=["fails", "words", "no convolution"],
)
def test_what_cannot_be_had_is_noted_with_its_reason(model, data, part, reason):
    seen = look(model, model, Plan(), (data[:2],), Feed.of(data), ["conv"])
    assert reason in seen.missing[part]
    assert reason.replace("<", "&lt;").split("&")[0] in page(None, None, Plan(), {}, seen=seen)


def test_looking_changes_neither_network_nor_random_numbers():
    model = net().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.get_rng_state()
    look(model, model, plan(), (INPUT,), Feed.of(DATA), ["0", "3"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


def numbers(model: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in model.parameters()))


def test_scores_of_layers_alone():
    model = net()
    scores, missing = scores_alone(model, plan(), (INPUT,), None, numbers)
    fewer = 12 * 8 * 25 - (6 * 8 * 5 + 12 * 6 * 5)
    assert scores == {"3": numbers(model) - fewer}  # an exact edit scores what the network did
    assert missing == {}
    wrong = plan(edits=(replace(SMALLER, block=parse("ic8oc5k1x1")),))
    scores, missing = scores_alone(model, wrong, (INPUT,), None, lambda m: 1.0)
    assert scores == {}
    assert list(missing) == ["score of 3"]
