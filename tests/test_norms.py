"""Re-estimated statistics are those of the data, and nothing else of a network changes."""

import pytest
import torch
from torch import nn

from reconv.data import Batch
from reconv.surgery.norms import reestimate, settle


def batches(*sizes, channels=3, space=(5, 4), seed=0):
    made = torch.Generator().manual_seed(seed)
    return [Batch((torch.randint(-9, 9, (n, channels, *space), generator=made).double(),)) for n in sizes]


def pooled(found):
    x = torch.cat([b.inputs[0] for b in found]).transpose(0, 1).flatten(1)
    return x.mean(1), x.var(1)


@pytest.mark.parametrize(
    "norm,space",
    [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (5, 4)), (nn.BatchNorm3d, (3, 2, 2))],
)
@pytest.mark.parametrize("sizes", [(9,), (4, 5), (3, 1, 6, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_all_batches_together(norm, space, sizes, momentum):
    model = norm(3, momentum=momentum).double().eval()
    found = batches(*sizes, space=space)
    used = [b for b in found if b.inputs[0].numel() > 3]  # one value per channel has no variance
    assert reestimate(model, found) == 1
    torch.testing.assert_close(model.running_mean, pooled(used)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.running_var, pooled(used)[1], rtol=0, atol=1e-12)
    assert model.num_batches_tracked == len(used)
    assert model.momentum == momentum


def net():
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(6, 4, 1),
              nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)]  # fmt: skip
    torch.manual_seed(0)
    return nn.Sequential(*layers).double().eval()


def test_a_single_batch_in_training_and_evaluation_is_the_same():
    model, (batch,) = net(), batches(8)
    assert reestimate(model, [batch]) == 2
    for norm in (model[1], model[5]):
        norm.running_var.mul_(1 - 1 / (8 * 3 * 2))  # training divides by n, not by n - 1
    evaluated = model(*batch.inputs)
    model.train()
    model[3].eval()
    torch.testing.assert_close(model(*batch.inputs), evaluated)


def test_only_statistics_change():
    model = net()
    model[0].train()
    model[5].train()
    modes = [m.training for m in model.modules()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    reestimate(model, batches(4, 4))
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {f"{i}.{kind}" for i in (1, 5) for kind in ("running_mean", "running_var", "num_batches_tracked")}
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", [Batch((torch.zeros(2, 5, 5, 4).double(),)), Batch((torch.zeros(2, 3, 5, 4),))])
def test_an_error_leaves_all_as_it_was(bad):
    model = net().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        reestimate(model, [*batches(4), bad])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("found", [[], batches(1, 1, space=(1, 1))])
def test_without_a_variance_the_old_statistics_stay(found):
    model = nn.BatchNorm2d(3).double()
    model.running_mean.fill_(2.0)
    assert reestimate(model, found) == 0
    assert model.running_mean.tolist() == [2.0] * 3
    assert model.num_batches_tracked == 0


def test_a_norm_that_is_used_twice_sees_both():
    norm, (batch,) = nn.BatchNorm2d(3).double(), batches(6)
    reestimate(nn.Sequential(norm, nn.Identity(), norm), [batch])
    mean, var = pooled([batch])
    second = (batch.inputs[0] - mean.view(3, 1, 1)) / (var.view(3, 1, 1) * 119 / 120 + norm.eps).sqrt()
    expected = pooled([batch, Batch((second,))])
    torch.testing.assert_close(norm.running_mean, expected[0])
    torch.testing.assert_close(norm.running_var, expected[1])


class NormAndDrop(nn.BatchNorm2d):
    """Does more than to normalise, as some of timm's do."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Dropout(1.0)

    def forward(self, x):
        return self.drop(super().forward(x))


def test_what_stands_inside_of_a_norm_stays_in_evaluation():
    model = nn.Sequential(NormAndDrop(3), nn.BatchNorm2d(3)).double()
    reestimate(model, batches(6))
    assert model[1].running_var.min() > 0.5  # not all dropped


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_settled_norms_compute_what_they_did_with_the_statistics_of_the_data(dtype, near):
    torch.manual_seed(4)
    inner = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.BatchNorm2d(3), inner, nn.BatchNorm2d(4)).eval()
    for norm in (inner[1], inner[3]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = model.to(dtype)
    outside = [tensor.clone() for i in (0, 2) for tensor in model[i].state_dict().values()]
    found = [Batch((2 + 3 * torch.randn(n, 3, 7, 9, dtype=dtype),)) for n in (4, 3, 5)]
    x = torch.cat([batch.inputs[0] for batch in found])
    with torch.no_grad():
        expected = model(x)
        assert settle(model, ["1"], found) == 2
        assert float((model(x) - expected).norm() / expected.norm()) <= near
        between = inner[0](model[0](x))
        assert torch.allclose(inner[1].running_mean, between.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(inner[1].running_var, between.var((0, 2, 3)), rtol=1e-5)
        before = inner(model[0](x))
        assert float((inner.train()(model[0](x)) - before).norm() / before.norm()) <= 1e-2  # where training starts
    now = [tensor for i in (0, 2) for tensor in model[i].state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(outside, now, strict=True))
    assert settle(model, [], found) == 0
