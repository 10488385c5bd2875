"""A recovery goes on from its checkpoint as if never interrupted, or says why it cannot."""

import resource

import pytest
import torch
from learning import FAST, FORMS, LABELLED, SEEN, state, teacher, worse
from recovering import same

from reconv.errors import ConvError
from reconv.rewriting.checkpoint import FILE, read_checkpoint
from reconv.rewriting.recovery import recover

pytestmark = pytest.mark.usefixtures("one_thread")  # the networks are too small for more


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


def test_a_missing_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConvError, match="must be writable"):
        recover(worse(teacher()), teacher(), SEEN, **FAST, checkpoint=tmp_path / "file" / "checkpoint")
