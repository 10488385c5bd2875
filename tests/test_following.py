"""Batch norms of a rewritten network follow the original's: what did not change moves nothing."""

import pytest
import torch
from torch import nn

from reconv.data import Batch
from reconv.surgery import clone
from reconv.surgery.following import Following, follow, norms_of
from reconv.surgery.norms import statistics_kept


def net(*, shared: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    layers = [nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 6, 1), norm if shared else nn.BatchNorm2d(6),
              nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)]  # fmt: skip
    model = nn.Sequential(*layers).double()
    for _ in range(5):
        model(3 * torch.randn(16, 3, 9, 7, dtype=torch.float64) + 1)
    return model.eval()


def batches(*sizes: int) -> list[Batch]:
    made = torch.Generator().manual_seed(1)
    return [Batch((torch.randn(n, 3, 9, 7, generator=made, dtype=torch.float64),)) for n in sizes]


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for name, b in model.named_buffers() if "running" in name]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (5, 1, 3), (32,)])
def test_a_network_that_did_not_change_keeps_its_statistics(sizes, shared):
    model = net(shared=shared)
    student = clone(model)
    assert follow(student, model, batches(*sizes)) == (2 if shared else 3)
    for now, then in zip(statistics(student), statistics(model), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1,), (5, 3), (32,)])
def test_what_a_norm_takes_back_is_taken_back(sizes):
    """A convolution that gives another mean and another size of each channel: the network is the same."""
    model = net()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    student = clone(model)
    with torch.no_grad():
        scale = torch.linspace(0.3, 4, 6, dtype=torch.float64)
        student[0].weight.mul_(scale[:, None, None, None])
        student[0].bias.mul_(scale).add_(torch.linspace(-2, 2, 6, dtype=torch.float64))
        student[3].bias.add_(5.0)
    follow(student, model, batches(*sizes))
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(student(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_pruned_norm_is_known_by_what_it_holds():
    model, kept = net(), torch.tensor([0, 2, 5])
    student = clone(model)
    with torch.no_grad():
        student[0] = nn.Conv2d(3, 3, 3).double()
        student[0].weight.copy_(model[0].weight[kept])
        student[0].bias.copy_(model[0].bias[kept] + 1)
        student[1] = nn.BatchNorm2d(3).double()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(student[1], name).copy_(getattr(model[1], name)[kept])
        student[3] = nn.Conv2d(3, 6, 1).double()
        student.eval()
    follow(student, model, batches(9))
    torch.testing.assert_close(student[1].running_mean, model[1].running_mean[kept] + 1)
    torch.testing.assert_close(student[1].running_var, model[1].running_var[kept])


def test_a_norm_that_the_original_lacks_takes_the_statistics_of_what_it_meets():
    model, (batch,) = net(), batches(12)
    student = clone(model)
    student[2] = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6).double())
    assert follow(student.eval(), model, [batch]) == 4
    x = model[:3](*batch.inputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(student[2][1].running_mean, x.mean(1))
    torch.testing.assert_close(student[2][1].running_var, x.var(1))


def test_only_the_students_statistics_change_and_none_after_an_error():
    model = net()
    model[1].train()
    student = clone(model)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    modes, given, original = [m.training for m in student.modules()], statistics(student), statistics(model)
    weights = [p.clone() for p in student.parameters()]
    with pytest.raises(RuntimeError):
        follow(student, model, [*batches(4), Batch((torch.zeros(1, 5, 9, 7, dtype=torch.float64),))])
    assert all(map(torch.equal, statistics(student), given))
    follow(student, model, batches(4))
    assert not torch.equal(statistics(student)[0], given[0])
    assert all(map(torch.equal, statistics(model), original))
    assert all(map(torch.equal, student.parameters(), weights))
    assert [m.training for m in student.modules()] == modes == [m.training for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in (*student.modules(), *model.modules()))


def test_only_the_named_norms_follow():
    model, (batch,) = net(), batches(8)
    student = clone(model)
    with torch.no_grad():
        student[0].bias.add_(1.0)
    given, following = statistics(student), Following(model)
    with torch.no_grad(), statistics_kept([norms_of(student)["1"]]):
        with following.listening(["1"]):
            model(*batch.inputs)
        with following.leading(student, ["1"]):
            answer = student(*batch.inputs)
        torch.testing.assert_close(answer, model(*batch.inputs))
        torch.testing.assert_close(student[1].running_mean, model[1].running_mean + 1)
    assert all(map(torch.equal, statistics(student), given))
