"""A student learns what its teacher gives and is never worse than it was, whatever the form of data and outputs."""

import math

import pytest
import torch
from learning import FAST, FORMS, LABELLED, SEEN, Net, apart, state, teacher, worse
from recovering import same
from torch import nn

from reconv.data import Batch, Feed
from reconv.errors import ConvError
from reconv.rewriting.average import Average
from reconv.rewriting.checkpoint import read_checkpoint
from reconv.rewriting.recovery import recover
from reconv.surgery.clone import clone
from reconv.surgery.norms import reestimate

pytestmark = pytest.mark.usefixtures("one_thread")  # the networks are too small for more


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_it_gets_nearer_to_the_teacher(data):
    net = teacher()
    student = worse(net)
    better = recover(student, net, data, **FAST)
    assert apart(better, net) < 0.8 * apart(student, net)


def test_everything_given_is_left_alone():
    net = teacher().train()
    student = worse(net)
    student.body[0].train()
    student.head.weight.requires_grad_(False)
    modes = [[m.training for m in n.modules()] for n in (net, student)]
    states, numbers = [state(net), state(student)], torch.get_rng_state()
    better = recover(student, net, LABELLED, **FAST)
    assert same(states[0], state(net))
    assert same(states[1], state(student))
    assert torch.equal(numbers, torch.get_rng_state())
    assert [[m.training for m in n.modules()] for n in (net, student)] == modes
    assert [m.training for m in better.modules()] == modes[1]
    assert [p.requires_grad for p in better.parameters()] == [p.requires_grad for p in student.parameters()]
    assert torch.equal(better.head.weight, student.head.weight)  # frozen by the user
    assert not any(m._forward_hooks for n in (net, student, better) for m in n.modules())
    assert all(p.grad is None for n in (net, student, better) for p in n.parameters())


def test_a_network_that_is_frozen_as_a_whole_is_trained():
    net = teacher()
    student = worse(net).requires_grad_(False)
    with torch.no_grad():
        better = recover(student, net, SEEN, **FAST)
    assert apart(better, net) < apart(student, net)
    assert not any(p.requires_grad for p in better.parameters())


def test_no_epochs_give_a_copy():
    student = worse(teacher())
    copied = recover(student, teacher(), SEEN, epochs=0)
    assert copied is not student
    assert same(state(copied), state(student))


def test_an_exact_student_stays_as_it_is():
    net = teacher()
    entries = []
    assert same(state(recover(net, net, SEEN, **FAST, log=entries.append)), state(net))
    assert [(e["epoch"], e["distance"]) for e in entries] == [(0, 0.0)]


def test_stale_statistics_are_re_estimated_first():
    net, entries = teacher(), []
    reestimate(net, [Batch((SEEN,))])
    student = clone(net)
    student.body[1].running_mean.add_(1.0)
    recover(student, net, SEEN, **{**FAST, "lr": 1e-9}, log=entries.append)
    assert entries[1]["distance"] < 0.5 * entries[0]["distance"]


@pytest.mark.parametrize("lr", [30.0, 1e9])
@pytest.mark.parametrize("evaluate", [None, lambda m: -apart(m, teacher())])
def test_never_worse_than_it_was(lr, evaluate):
    student = worse(teacher())
    kept = recover(student, teacher(), SEEN, **{**FAST, "lr": lr}, evaluate=evaluate)
    assert apart(kept, teacher()) <= apart(student, teacher())
    assert evaluate is None or same(state(kept), state(student))


def test_the_best_epoch_by_evaluate_is_returned():
    values = iter([0.3, 0.2, 0.9, 0.9, math.nan])
    states, entries = [], []

    def evaluate(module):
        assert not any(m.training for m in module.modules())
        states.append((state(module), apart(module, teacher())))
        return next(values)

    kept = recover(worse(teacher()), teacher(), SEEN, **FAST, evaluate=evaluate, log=entries.append)
    nearer = min((2, 3), key=lambda epoch: entries[epoch]["distance"])  # of two that evaluate the same
    assert same(state(kept), states[nearer][0])
    assert [e["value"] for e in entries] == [0.3, 0.2, 0.9, 0.9, -math.inf]


@pytest.mark.parametrize("patience,last", [(1, 2), (2, 3), (None, 6)])
def test_it_stops_when_nothing_is_gained(patience, last):
    values = iter([0, 1, *[0] * 9])
    entries = []
    recover(worse(teacher()), teacher(), SEEN, **{**FAST, "epochs": 10}, patience=patience,
            evaluate=lambda m: next(values), log=entries.append)  # fmt: skip
    assert [e["epoch"] for e in entries] == list(range(last + 1))


def test_a_loss_that_is_no_number_stops_and_says_so():
    student = worse(teacher())
    entries, runs = [], []

    def spoil(module, args, output):
        runs.append(1)
        return output * math.nan if len(runs) > 20 else output

    student.head.register_forward_hook(spoil)
    recover(student, teacher(), SEEN, **FAST, log=entries.append)
    assert entries[-1]["event"] == "stopped"
    assert "not finite" in entries[-1]["reason"]


def test_bfloat16_computes_coarsely_and_keeps_weights_and_judge_as_they_were():
    net, seen, entries = teacher(), [], []
    student, plain = worse(net), []
    recover(student, net, SEEN, **FAST, log=plain.append)
    student.body[0].register_forward_hook(lambda m, args, y: seen.append(y.dtype))
    better = recover(student, net, SEEN, **FAST, precision="bfloat16", log=entries.append)
    assert {t.dtype for t in better.state_dict().values()} == {torch.float32, torch.int64}
    assert entries[-1]["distance"] < 0.8 * entries[0]["distance"]
    assert seen.count(torch.bfloat16) == 4 * 5  # each step; what is judged is not coarse
    assert torch.float32 in seen
    assert entries[0]["distance"] == plain[0]["distance"]
    assert entries[1]["loss"] == pytest.approx(plain[1]["loss"], rel=0.05)
    assert entries[1]["loss"] != plain[1]["loss"]


def test_the_average_of_the_weights_is_judged_and_returned(tmp_path):
    """What is trained goes its way as if there were none."""
    student, kept = worse(teacher()), {}
    for ema in (0.0, 0.9):
        judged = []

        def evaluate(module, judged=judged):
            judged.append(state(module))
            return len(judged)

        best = recover(student, teacher(), SEEN, **FAST, ema=ema, evaluate=evaluate, checkpoint=tmp_path)
        assert same(state(best), judged[-1])
        kept[ema] = read_checkpoint(tmp_path, {})
    assert same(kept[0.0]["student"], kept[0.9]["student"])
    assert not same(kept[0.9]["student"], kept[0.9]["best_tensors"])
    averaged = [kept[0.9]["best_tensors"][name] for name, _ in student.named_parameters()]
    assert all(map(torch.equal, averaged, kept[0.9]["average"]))


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_the_average_is_that_of_its_formula(decay):
    weight, expected = torch.tensor([1.0], dtype=torch.float64), 1.0
    average = Average([weight], decay)
    for step in range(1, 60):
        weight.fill_(step * step)
        average.add(step)
        now = min(decay, (1 + step) / (10 + step))
        expected = now * expected + (1 - now) * step * step
    assert average.tensors[0].item() == pytest.approx(expected, rel=1e-12)
    with average.shown():
        assert weight.item() == average.tensors[0].item()
    assert weight.item() == 59 * 59


OUTPUTS = {
    "dict": lambda y: {"scores": y, "class": y.argmax(1)},
    "tuple": lambda y: (y, [y[:, :1]]),
    "whole batch": lambda y: (y, y.mean()),
}


@pytest.mark.parametrize("shape", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_any_structure(shape):
    net = teacher(shape=shape)
    entries = []
    recover(worse(net), net, LABELLED, **FAST, log=entries.append)
    assert entries[-1]["distance"] < 0.8 * entries[0]["distance"]


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv1d(1, 3, 3), nn.Conv1d(2, 3, 5, padding=1)

    def forward(self, a, b):
        return self.left(a) + self.right(b)


def test_several_inputs():
    torch.manual_seed(0)
    net, made = Twin(), torch.Generator().manual_seed(2)
    student = clone(net)
    nn.init.normal_(student.left.weight, generator=made)
    data = [(torch.randn(6, 1, 11, generator=made), torch.randn(6, 2, 11, generator=made)) for _ in range(9)]
    entries = []
    recover(student, net, data, **FAST, example_inputs=data[0], log=entries.append)
    assert entries[-1]["distance"] < entries[0]["distance"]


def test_another_feed_may_judge():
    entries = []
    held = Feed.of(torch.randn(5, 2, 9, 7), SEEN[:1])
    recover(worse(teacher()), teacher(), SEEN[:8], **{**FAST, "holdout": held}, log=entries.append)
    assert entries[0]["distance"] == pytest.approx(apart(worse(teacher()), teacher(), held.source.items), rel=1e-5)


class Scribbler(nn.Module):
    """Writes into what it is given; takes a number besides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, rate):
        return self.norm(self.conv(x.mul_(rate).relu_()))


def test_the_users_data_are_not_written_into():
    torch.manual_seed(0)
    net = Scribbler().eval()
    student = clone(net)
    nn.init.normal_(student.conv.weight)
    data, before = list(SEEN.split(9)), SEEN.clone()
    better = recover(student, net, data, **FAST, example_inputs=(SEEN[:1], 0.5))
    assert torch.equal(SEEN, before)
    assert (better(SEEN.clone(), 0.5) - net(SEEN.clone(), 0.5)).norm() < (
        student(SEEN.clone(), 0.5) - net(SEEN.clone(), 0.5)).norm()  # fmt: skip


class WithAux(Net):
    """Gives more in training, as some classifiers do."""

    def forward(self, x):
        y = super().forward(x)
        return (y, y) if self.training else y


def test_what_only_training_gives_is_not_asked_for():
    torch.manual_seed(0)
    net = WithAux().eval()
    assert apart(recover(worse(net).train(), net, SEEN, **FAST).eval(), net) < apart(worse(net), net)


def bad(index, value):
    x = SEEN.clone()
    x.view(-1)[index] = value
    return x


class Padded(Net):
    def __init__(self):
        super().__init__()
        self.body[0].padding = (2, 2)


REFUSED = {
    "NaN": (Net, {"data": bad(-1, math.nan)}, "must be finite"),
    "empty": (Net, {"data": SEEN[:0]}, "at least one sample|two samples"),
    "bytes": (
        Net,
        {"data": SEEN.to(torch.uint8)},
        "must run on the data; got dtype=torch.uint8, weights=torch.float32",
    ),
    "doubles": (Net, {"data": SEEN.double()}, r"got dtype=torch.float64, .*Convert the data to torch\.float32\."),
    "bytes, unlike the example": (
        Net,
        {"data": SEEN.to(torch.uint8), "example_inputs": SEEN[:1]},
        "the dtype of example_inputs; got dtype=torch.uint8, example_inputs=torch.float32",
    ),
    "too few dimensions": (Net, {"data": SEEN[:, 0]}, "must run on the data; got dtype=torch.float32, weights=torch.f"),
    "one": (Net, {"data": SEEN[:1]}, "two samples to hold one out; got samples=1"),
    "one-shot": (Net, {"data": iter([SEEN])}, "more than one pass"),
    "other structure": (lambda: Net(lambda y: (y,)), {}, "same floating tensors"),
    "other shape": (lambda: Net(lambda y: y[:, :2]), {}, "same floating tensors"),
    "no module of that name": (Net, {"match": ["body.9"]}, "must name modules of both"),
    "inside of the student only": (Net, {"match": ["body.4.0"]}, "The model has none"),
    "other inner shape": (Padded, {"match": ["body.0"]}, "same shapes"),
    "epochs": (Net, {"epochs": -1}, "epochs must be"),
    "batch size": (Net, {"batch_size": 0}, "batch_size must be positive"),
    "holdout": (Net, {"holdout": 1.5}, "between 0 and 1"),
    "evaluate": (Net, {"evaluate": lambda m: "good"}, "must return a number"),
    "precision": (Net, {"precision": "int8"}, "one of float32, bfloat16, float16; got precision='int8'"),
    "half precision on a CPU": (Net, {"precision": "float16"}, "float16 needs a GPU.*Use bfloat16"),
    "average that forgets nothing": (Net, {"ema": 1.0}, "ema must be at least 0 and less than 1; got ema=1.0"),
    "negative average": (Net, {"ema": -0.1}, "ema must be"),
    "average that is no number": (Net, {"ema": math.nan}, "ema must be"),
}


@pytest.mark.parametrize("make,changes,message", REFUSED.values(), ids=REFUSED)
def test_refusals(make, changes, message):
    torch.manual_seed(0)
    net, student = Net().eval(), worse(make().eval())
    with pytest.raises(ConvError, match=message):
        recover(student, net, **{"data": SEEN, **FAST, **changes})
