"""Every form of data that a user may give comes in as the same batches, or is refused with its reason."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from reconv.data import Batch, Feed
from reconv.errors import ConvError

N = 7
X = torch.arange(N * 3 * 5 * 4, dtype=torch.float64).reshape(N, 3, 5, 4)
X2 = -X[:, :2]
Y = torch.arange(N) % 3
ONE, TWO = X[:1], (X[:1], X2[:1])


class Walker:
    """Walks like a Dataset without being one; `make` gives an item."""

    def __init__(self, make, size=N):
        self.make, self.size = make, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.make(index)


class Pairs(Walker, Dataset):
    pass


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X.split(3), Y.split(3), strict=True))


class Fresh:
    """Re-iterable; gives other batches on each pass."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([X[i : i + 1] + self.passes for i in range(N)])


def gathered(feed: Feed, batch_size: int = 3) -> Batch:
    batches = list(feed.batches(batch_size))
    inputs = tuple(torch.cat(column) for column in zip(*(b.inputs for b in batches), strict=True))
    targets = [b.targets for b in batches if b.targets is not None]
    return Batch(inputs, torch.cat(targets) if targets else None)


FORMS = {
    "tensor": (X, ONE, False),
    "several items": (Pairs(lambda i: (X[i], X2[i])), TWO, False),
    "several items with targets": (Pairs(lambda i: ((X[i], X2[i]), Y[i])), TWO, True),
    "several items as lists": (Pairs(lambda i: [[X[i], X2[i]], int(Y[i])]), TWO, True),
    "dataset": (TensorDataset(X, Y), ONE, True),
    "dataset without targets": (TensorDataset(X), ONE, False),
    "dataset of numpy": (Pairs(lambda i: (X[i].numpy(), np.int64(Y[i]))), ONE, True),
    "walks like a dataset": (Walker(lambda i: (X[i], int(Y[i]))), ONE, True),
    "dataset with targets that are no tensor": (Pairs(lambda i: (X[i], {"boxes": []})), ONE, False),
    "list of batches": ([X[:2], X[2:]], ONE, False),
    "list of pairs": ([(X[:2], Y[:2]), (X[2:], Y[2:])], ONE, True),
    "tuple of lists": (([X[:2], Y[:2]], [X[2:], Y[2:]]), ONE, True),
    "list of several": ([(X[:2], X2[:2]), (X[2:], X2[2:])], TWO, False),
    "list of several with targets": ([((X, X2), Y)], TWO, True),
    "list of batches read before": (list(Feed.of(TensorDataset(X, Y), ONE).batches(2)), ONE, True),
    "loader": (DataLoader(TensorDataset(X, Y), 4), ONE, True),
    "loader of several": (DataLoader(Pairs(lambda i: ((X[i], X2[i]), Y[i])), 4), TWO, True),
    "loader of a stream": (DataLoader(Stream(), batch_size=None), ONE, True),
    "stream": (Stream(), ONE, True),
    "with an empty batch": ([X[:0], X], ONE, False),
}


@pytest.mark.parametrize("data,examples,labelled", FORMS.values(), ids=FORMS)
def test_forms(data, examples, labelled):
    feed = Feed.of(data, examples)
    for _ in range(2):  # it can be read again
        read = gathered(feed)
        assert [x.tolist() for x in read.inputs] == [x.tolist() for x in ((X,) if examples is ONE else (X, X2))]
        assert (read.targets is not None) == labelled
        assert not labelled or read.targets.tolist() == Y.tolist()


def test_plain_numbers_of_the_example_inputs_go_with_every_batch():
    feed = Feed.of(TensorDataset(X, Y), (X[:1], 16000))
    assert [(len(b), b.inputs[1], len(b.targets)) for b in feed.batches(4)] == [(4, 16000, 4), (3, 16000, 3)]
    again = Feed.of(feed.head(5), (X[:1], 16000))
    assert [(len(b.inputs), len(b), len(b.rows(slice(2)))) for b in again.batches()] == [(2, 5, 2)]


def test_ragged_targets_are_left_out():
    (batch,) = Feed.of(Pairs(lambda i: (X[i], [0.0] * i)), ONE).batches()
    assert batch.targets is None


@pytest.mark.parametrize(
    "data,inputs",
    [(X, 1), (TensorDataset(X, Y), 1), ([(X, Y)], 1), ([((X, X2), Y)], 2), (Pairs(lambda i: ((X[i], X2[i]), 0)), 2)],
)
def test_examples_are_taken_from_the_data_where_none_are_given(data, inputs):
    feed = Feed.of(data)
    assert [tuple(x.shape) for x in feed.examples] == [(1, 3, 5, 4), (1, 2, 5, 4)][:inputs]
    assert torch.equal(gathered(feed).inputs[0], X)


@pytest.mark.parametrize("batch_size,sizes", [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])])
def test_samples_are_put_into_batches(batch_size, sizes):
    feed = Feed.of(TensorDataset(X, Y), ONE)
    assert [len(b) for b in feed.batches(batch_size)] == sizes
    assert feed.count(batch_size) == len(sizes)


@pytest.mark.parametrize("data,sizes", [([X[:2], X[2:]], [2, 5]), (DataLoader(X, 4), [4, 3]), (Stream(), [3, 3, 1])])
def test_batches_stay_as_they_were_made(data, sizes):
    feed = Feed.of(data, ONE)
    assert [len(b) for b in feed.batches(3, torch.Generator().manual_seed(0))] == sizes
    assert feed.count(3) == len(sizes)


def test_shuffle_follows_its_generator():
    feed = Feed.of(TensorDataset(X, Y), ONE)
    passes = [next(feed.batches(7, torch.Generator().manual_seed(seed))).inputs[0] for seed in (1, 1, 2)]
    assert torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[2])
    assert sorted(passes[2][:, 0, 0, 0].tolist()) == X[:, 0, 0, 0].tolist()


def first_values(feed: Feed) -> list[float]:
    return gathered(feed).inputs[0][:, 0, 0, 0].tolist()


SPLIT = {
    "tensor": lambda: X,
    "dataset": lambda: TensorDataset(X, Y),
    "list": lambda: list(X.split(1)),
    "list of few": lambda: [X[:5], X[5:]],
    "one batch": lambda: [X],
    "stream": lambda: Stream(),
    "loader": lambda: DataLoader(X, 2),
    "shuffling loader": lambda: DataLoader(TensorDataset(X, Y), 2, shuffle=True),
    "loader with its own generator": lambda: DataLoader(X, 2, shuffle=True, generator=torch.Generator()),
    "loader of single samples": lambda: DataLoader(X, 1, shuffle=True),
}


@pytest.mark.parametrize("holdout", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("make", SPLIT.values(), ids=SPLIT)
def test_split_gives_every_sample_to_one_side(make, holdout):
    train, held = Feed.of(make(), ONE).split(holdout, seed=3)
    for _ in range(2):
        ours, theirs = first_values(train), first_values(held)
        assert ours
        assert theirs
        assert sorted(ours + theirs) == X[:, 0, 0, 0].tolist()
    again = Feed.of(make(), ONE).split(holdout, seed=3)[1]
    assert sorted(first_values(again)) == sorted(theirs)


def test_split_depends_on_the_seed():
    sides = {tuple(first_values(Feed.of(X, ONE).split(0.4, seed)[1])) for seed in range(9)}
    assert len(sides) > 3


def test_split_of_a_loader_that_repeats_samples():
    sampler = WeightedRandomSampler([1.0] * N, 20, replacement=True)
    train, held = Feed.of(DataLoader(X, 4, sampler=sampler), ONE).split(0.3)
    for _ in range(5):
        assert not set(first_values(train)) & set(first_values(held))


def test_split_leaves_the_users_random_numbers_alone():
    before = torch.get_rng_state()
    feed = Feed.of(DataLoader(X, 2, shuffle=True), ONE)
    feed.split(0.3)
    feed.head(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_that_change_between_passes_cannot_be_held_out():
    _, held = Feed.of(Fresh(), ONE).split(0.3)
    list(held.batches())
    with pytest.raises(ConvError, match="the same, in the same order"):
        list(held.batches())


@pytest.mark.parametrize("samples,sizes", [(1, [1]), (4, [3, 1]), (7, [3, 3, 1]), (99, [3, 3, 1])])
@pytest.mark.parametrize("data", [TensorDataset(X, Y), list(zip(X.split(3), Y.split(3), strict=True))])
def test_head_has_at_most_so_many_samples(data, samples, sizes):
    head = Feed.of(data, ONE).head(samples, seed=1, batch_size=3)
    assert [len(b) for b in head] == sizes
    assert all(len(b.targets) == len(b) for b in head)


def test_head_of_a_dataset_is_drawn_from_all_of_it():
    seen = {v for seed in range(20) for v in Feed.of(X, ONE).head(2, seed)[0].inputs[0][:, 0, 0, 0].tolist()}
    assert seen == set(X[:, 0, 0, 0].tolist())


def spoilt(value: float) -> Tensor:
    x = X.clone()
    x[-1, 0, 0, 0] = value
    return x


REFUSED = {
    "one-shot iterator": (iter([X]), ONE, TypeError, "more than one pass"),
    "generator": ((x for x in [X]), ONE, TypeError, "more than one pass"),
    "number": (3, ONE, TypeError, "must be batches or samples"),
    "text": ("data/", ONE, TypeError, "must be batches or samples"),
    "mapping": ({"x": X}, ONE, TypeError, "must be batches or samples"),
    "list of text": (["a.png"], ONE, TypeError, "inputs must be tensors; got input=str"),
    "scalar": (torch.zeros(()), ONE, ValueError, "must be \\(N"),
    "empty tensor": (X[:0], ONE, ValueError, "at least one sample"),
    "empty list": ([], ONE, ValueError, "at least one sample"),
    "empty batch": ([X[:0]], ONE, ValueError, "at least one sample"),
    "NaN": (spoilt(float("nan")), ONE, ValueError, "must be finite"),
    "infinity": ([X, spoilt(float("inf"))], ONE, ValueError, "must be finite"),
    "rank": (X[:, 0], ONE, ValueError, "rank and channels"),
    "images and labels": ((X, Y), ONE, ValueError, "TensorDataset"),
    "channels": (X[:, :2], ONE, ValueError, "rank and channels"),
    "dtype": (X.float(), ONE, TypeError, "dtype of example_inputs"),
    "too many members": ([(X, X2, Y)], ONE, ValueError, "inputs or \\(inputs, targets\\)"),
    "too few inputs": ([X], TWO, ValueError, "inputs or \\(inputs, targets\\)"),
    "targets of another length": ([(X, Y[:3])], ONE, ValueError, "same length"),
    "inputs of another length": ([(X, X2[:3])], TWO, ValueError, "same length"),
    "samples of different sizes": (Pairs(lambda i: X[i, :, : i + 1]), ONE, ValueError, "same shape"),
}


@pytest.mark.parametrize("data,examples,builtin,message", REFUSED.values(), ids=REFUSED)
def test_refusals(data, examples, builtin, message):
    with pytest.raises(ConvError, match=message) as caught:
        list(Feed.of(data, examples).batches())
    assert isinstance(caught.value, builtin)


@pytest.mark.parametrize("data", [X[:1], [X[:1]], DataLoader(X[:1])])
def test_a_single_sample_cannot_be_split(data):
    with pytest.raises(ConvError, match="two samples"):
        Feed.of(data, ONE).split()


@pytest.mark.parametrize("holdout", [0.0, 1.0, -1.0, float("nan")])
def test_holdout_is_a_part(holdout):
    with pytest.raises(ConvError, match="between 0 and 1"):
        Feed.of(X, ONE).split(holdout)


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (1, 3, 1, 2)])
def test_spatial_sizes_may_differ(shape):
    (batch,) = Feed.of([torch.zeros(shape, dtype=X.dtype)], ONE).batches()
    assert batch.inputs[0].shape == shape


def test_digest_tells_inputs_apart():
    known = {Batch((x,)).digest() for x in (X, X + 1, X[:3], X.float(), X.reshape(N, 5, 3, 4))}
    assert len(known) == 5
    assert Batch((X.clone(),), Y).digest() in known
