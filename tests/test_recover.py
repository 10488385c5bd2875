"""A student learns what its teacher gives, is never worse than it was, and survives interruptions."""

import math
import resource

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from reconv.data import Batch, Feed
from reconv.errors import ConvError
from reconv.rewriting.average import Average
from reconv.rewriting.checkpoint import FILE, read_checkpoint
from reconv.rewriting.losses import Whole, distillation_loss, label_loss
from reconv.rewriting.recovery import recover
from reconv.rewriting.teacher import Answer, Teacher, named_sites
from reconv.surgery.clone import clone
from reconv.surgery.norms import reestimate

N = 41
SEEN = torch.randn(N, 2, 9, 7, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Convolutions, a batch norm, dropout; `shape` makes the output."""

    def __init__(self, shape=lambda y: y):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Conv2d(6, 4, 3, stride=2),
        )  # fmt: skip
        self.head = nn.Linear(4, 3)
        self.shape = shape

    def forward(self, x):
        return self.shape(self.head(self.body(x).mean((2, 3))))


pytestmark = pytest.mark.usefixtures("one_thread")  # the networks are too small for more


def teacher(**changes):
    torch.manual_seed(0)
    net = Net(**changes).eval()
    nn.init.uniform_(net.body[1].running_mean, -0.3, 0.3)
    return net


def worse(net):
    """A student: the second convolution goes through one channel only, as a low rank would."""
    student = clone(net)
    old = student.body[4]
    student.body[4] = nn.Sequential(nn.Conv2d(6, 1, 3, stride=2), nn.Conv2d(1, 4, 1)).eval()
    with torch.no_grad():
        student.body[4][0].weight.copy_(old.weight.mean(0, keepdim=True))
        student.body[4][1].bias.copy_(old.bias)
    return student


def state(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def apart(student, net, x=SEEN):
    return float((student(x) - net(x)).norm() / net(x).norm())


FAST = {"epochs": 4, "batch_size": 8, "lr": 3e-3, "holdout": 0.2}
LABELLED = TensorDataset(SEEN, teacher()(SEEN).argmax(1))
FORMS = {
    "tensor": SEEN,
    "labels": LABELLED,
    "labels of other classes": TensorDataset(SEEN, 2 - LABELLED.tensors[1]),
    "list": list(SEEN.split(7)),
    "single samples": list(SEEN.split(1)),
    "loader": DataLoader(LABELLED, 7, shuffle=True),
}


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


@pytest.mark.parametrize("seed", [0, 5])
def test_the_same_seed_gives_the_same_weights(seed):
    first, second = (recover(worse(teacher()), teacher(), LABELLED, **FAST, seed=seed) for _ in range(2))
    assert same(state(first), state(second))


@pytest.mark.parametrize("data", [LABELLED, FORMS["list"], FORMS["loader"]], ids=["dataset", "list", "loader"])
@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("interrupt", [RuntimeError, KeyboardInterrupt])
def test_resumed_is_as_if_never_interrupted(tmp_path, data, stop, interrupt):
    whole = recover(worse(teacher()), teacher(), data, **FAST)

    def log(entry):
        if entry["epoch"] == stop:
            raise interrupt

    with pytest.raises(interrupt):
        recover(worse(teacher()), teacher(), data, **FAST, checkpoint=tmp_path, log=log)
    entries = []
    resumed = recover(worse(teacher()), teacher(), data, **FAST, checkpoint=tmp_path, resume=True, log=entries.append)
    assert entries[0]["epoch"] == stop + 1
    assert same(state(resumed), state(whole))


def test_ctrl_c_in_the_middle_of_an_epoch_keeps_the_last_checkpoint(tmp_path):
    def progress(what, done, total):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path, progress=progress)
    resumed = recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path, resume=True)
    assert same(state(resumed), state(recover(worse(teacher()), teacher(), SEEN, **FAST)))
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_resume_without_a_checkpoint_begins(tmp_path):
    resumed = recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path / "new", resume=True)
    assert same(state(resumed), state(recover(worse(teacher()), teacher(), SEEN, **FAST)))


def test_a_full_disk_is_told_and_the_earlier_checkpoint_stands(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def log(entry):
        if entry["epoch"] == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(ConvError, match=str(tmp_path)) as caught:
            recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path, log=log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value, OSError)
    assert [f.name for f in tmp_path.iterdir()] == [FILE]
    assert read_checkpoint(tmp_path, {})["done"] == 1


@pytest.mark.parametrize("spoil", [lambda f: f.write_bytes(f.read_bytes()[:99]), lambda f: f.write_text("hello")])
def test_a_checkpoint_that_is_no_checkpoint(tmp_path, spoil):
    recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path)
    spoil(tmp_path / FILE)
    with pytest.raises(ConvError, match="must be readable"):
        recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path, resume=True)


class Code:
    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


def test_code_in_a_checkpoint_is_refused_not_run(tmp_path):
    torch.save({"settings": Code()}, tmp_path / FILE)
    with pytest.raises(ConvError, match="must be readable"):
        recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path, resume=True)
    assert not Code.ran


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"ema": 0.5},
        {"epochs": 5},
        {"seed": 1},
        {"batch_size": 9},
        {"lr": 1e-3},
        {"match": ["head"]},
    ],
)
def test_resume_with_other_settings(tmp_path, change):
    recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path)
    with pytest.raises(ConvError, match="must keep the settings"):
        recover(worse(teacher()), teacher(), SEEN, **{**FAST, **change}, checkpoint=tmp_path, resume=True)


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


def test_a_missing_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConvError, match="must be writable"):
        recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path / "file" / "checkpoint")


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


class Shaken(torch.utils.data.Dataset):
    """Another picture each time."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return SEEN[index] + torch.rand(())


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
