"""What a student is taught by: modules that match, answers that are remembered, losses of both."""

import pytest
import torch
from learning import FAST, FORMS, SEEN, teacher, worse
from recovering import Shaken
from torch import nn

from reconv.data import Batch, Feed
from reconv.rewriting.losses import Whole, distillation_loss, label_loss
from reconv.rewriting.recovery import recover
from reconv.rewriting.teacher import Answer, Teacher, named_sites

pytestmark = pytest.mark.usefixtures("one_thread")  # the networks are too small for more

FEW = Batch((SEEN[:2],))


def test_rewritten_modules_are_matched():
    assert named_sites(worse(teacher()), teacher(), None, FEW) == ("body.4",)
    assert named_sites(teacher(), teacher(), None, FEW) == ()


def test_a_folded_batch_norm_is_matched_after_the_norm():
    folded = teacher()
    folded.body[0], folded.body[1] = nn.Sequential(folded.body[0]), nn.Identity()
    assert named_sites(folded, teacher(), None, FEW) == ("body.1",)


def test_modules_of_another_shape_are_not_matched():
    other = worse(teacher())
    other.body[0], other.body[1] = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1)), nn.BatchNorm2d(5)
    other.body[4][0] = nn.Conv2d(5, 1, 3, stride=2)
    assert named_sites(other, teacher(), None, FEW) == ("body.4",)


def test_a_teacher_remembers_what_it_answered():
    net = teacher()
    asked = []
    net.register_forward_pre_hook(lambda m, args: asked.append(len(args[0])))
    known = Teacher(net, ["body.4"])
    known.remember(Feed.of(SEEN, SEEN[:1]), 8)
    before = len(asked)
    answer = known(Batch((SEEN[[3, 1, 40]],)))
    assert len(asked) == before
    torch.testing.assert_close(answer.outputs[0], net(SEEN[[3, 1, 40]]))
    torch.testing.assert_close(answer.inner[0], net.body(SEEN[[3, 1, 40]]))
    known(Batch((SEEN[[3, 1]] + 1,)))
    assert asked[-1] == 2


@pytest.mark.parametrize("memory, kept", [(2**20, torch.float32), (8_000, torch.bfloat16), (5_000, None)])
def test_a_teacher_remembers_as_well_as_fits(memory, kept, monkeypatch):
    monkeypatch.setattr("reconv.rewriting.teacher.MEMORY", memory)
    net = teacher().to(memory_format=torch.channels_last)
    known = Teacher(net, ["body.4"])
    known.remember(Feed.of(SEEN, SEEN[:1]), 8)
    assert {t.dtype for row in known.known.values() for t in row.inner} == ({kept} - {None})
    answer, live = known(Batch((SEEN[2:9],))), Teacher(net, ["body.4"])(Batch((SEEN[2:9],)))
    exact = {"rtol": 1e-5, "atol": 1e-6}
    close = {"rtol": 2**-8, "atol": 0.0} if kept is torch.bfloat16 else exact
    torch.testing.assert_close(answer.outputs, live.outputs, **exact)
    torch.testing.assert_close(answer.inner, live.inner, **close)
    assert answer.inner[0].stride() == live.inner[0].stride()  # other strides make the comparison slow


@pytest.mark.parametrize("data", [Shaken(), FORMS["loader"]])
def test_a_teacher_answers_anew_what_changes(data):
    known = Teacher(teacher(), [])
    known.remember(Feed.of(data, SEEN[:1]), 8)
    assert not known.known
    recover(worse(teacher()), teacher(), data, **FAST)


@pytest.mark.parametrize(
    "scale,expected", [([1.0], 0.0), ([0.5], 0.25), ([-1.0], 4.0), ([1.0, 0.5], 0.125), ([0.0, -1.0], 2.5)]
)
def test_distillation_loss(scale, expected):
    target = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert distillation_loss([target * s for s in scale], [target] * len(scale)).item() == expected


def test_distillation_loss_has_the_gradient_of_its_formula():
    ours = torch.tensor([[3.0, -1.0], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    theirs = torch.tensor([[1.0, 4.0], [-2.0, 0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distillation_loss([x, x * x, 2 * x], [theirs, 0 * theirs, theirs]), ours)


def test_distillation_loss_is_flat_where_both_agree():
    ours = torch.ones(3, requires_grad=True)
    distillation_loss([ours], [torch.ones(3)]).backward()
    assert ours.grad.tolist() == [0.0, 0.0, 0.0]


def test_distillation_loss_where_the_teacher_is_silent():
    assert distillation_loss([torch.tensor([1.0, 2.0])], [torch.zeros(2)]).item() == 5.0


SCORES = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    "targets,used",
    [
        (torch.tensor([0, 1, 2]), True),
        (torch.tensor([0, 1, 0]), True),
        (torch.tensor([0, 1, 2], dtype=torch.uint8), True),
        (None, False),
        (torch.tensor([1, 2, 2]), False),  # other classes
        (torch.tensor([0, 1, 3]), False),  # too many
        (torch.tensor([0, 1, -1]), False),
        (torch.tensor([0.0, 1.0, 2.0]), False),
        (torch.tensor([[0], [1], [2]]), False),
    ],
)
def test_labels_are_used_where_they_are_class_indices(targets, used):
    flat = [SCORES[:, :, None]]
    assert (label_loss([SCORES], targets, Whole.of(Answer([SCORES], []), targets)) is not None) == used
    assert label_loss(flat, targets, Whole.of(Answer(flat, []), targets)) is None
