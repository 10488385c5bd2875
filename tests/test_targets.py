"""Timing is interleaved, remembered by all that changes it, and done in the layout that was asked for."""

from __future__ import annotations

import sqlite3
import warnings
from dataclasses import replace

import pytest
import torch
from fakes import FakeTarget, grid
from torch import nn

from reconv.errors import ConvError
from reconv.spec import parse
from reconv.targets import (
    LatencyCache,
    Problem,
    Timing,
    get_target,
    interleave,
    laid_out,
    layout_of,
    layouts_of,
    machine,
    time_blocks,
    time_networks,
    to_layout,
)
from reconv.targets.cache import default_path


@pytest.mark.parametrize(
    "samples, median, spread",
    [
        ([4.0], 4.0, 0.0),
        ([1.0, 3.0], 2.0, 1.0),
        ([5.0, 1.0, 2.0, 4.0, 3.0], 3.0, 2.0),
        ([1.0, 1.0, 1.0, 99.0], 1.0, 24.5),
    ],
)
def test_timing_is_median_and_interquartile_range(samples, median, spread):
    assert Timing.of(samples) == Timing(median, spread, len(samples))


def test_timing_of_nothing_is_refused():
    with pytest.raises(ConvError, match="at least one sample"):
        Timing.of([])


@pytest.mark.parametrize("seconds, rounds", [(0.0, 3), (1e9, 4)])
def test_runners_take_turns(seconds, rounds):
    order: list[int] = []
    timings = interleave([lambda: order.append(0), lambda: order.append(1)], seconds, least=3, most=4)
    assert order == [0, 0, 1, 1, *[0, 1] * rounds]
    assert [t.rounds for t in timings] == [rounds, rounds]


def test_targets_by_name():
    engine = get_target("torch")
    assert get_target(engine) is engine
    assert machine() in engine.fingerprint()
    assert get_target("torch-compile:2").name == "torch.compile:2"
    for wrong in ("onnx", "torch:", "torch:0", "torch:two"):
        with pytest.raises(ConvError, match=f"target must be one of torch, .*; got target={wrong}") as caught:
            get_target(wrong)
        assert isinstance(caught.value, ValueError)


def test_a_target_measures_with_its_own_threads_and_gives_them_back():
    class Counting(nn.Module):
        def forward(self, x):
            seen.add(torch.get_num_threads())
            return x

    before, seen = torch.get_num_threads(), set()
    get_target("torch:1").measure([(Counting(), (torch.zeros(1),))], 0.0)
    assert seen == {1}
    assert torch.get_num_threads() == before
    assert get_target("torch:1").fingerprint() != get_target("torch:2").fingerprint()


def test_a_call_lasts_until_its_device_is_done(monkeypatch):
    """On a device that only takes work into a queue, as a GPU does."""
    happened: list[object] = []

    class Queueing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, device="meta"))

        def forward(self, x):
            happened.append("called")
            return x

    monkeypatch.setattr(torch.accelerator, "synchronize", happened.append)
    (timing,) = get_target("torch").measure([(Queueing(), (torch.zeros(1),))], 0.0)
    assert happened == ["called", torch.device("meta")] * (2 + timing.rounds)


def test_the_number_of_threads_is_part_of_the_fingerprint():
    before = torch.get_num_threads()
    prints = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        prints.add(get_target("torch").fingerprint())
    torch.set_num_threads(before)
    assert len(prints) == 2


def test_torch_times_without_gradients_on_the_very_inputs():
    seen: list[bool] = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            seen.append(torch.is_inference_mode_enabled() and not self.training)
            return super().forward(x)

    model = Watched(1, 2, 3).train()
    (timing,) = time_networks(get_target("torch"), [model], (torch.zeros(1, 1, 5, 5),), seconds=0.0)
    assert timing.median_ms > 0
    assert len(seen) == 2 + timing.rounds
    assert all(seen)
    assert model.training


# the cache ---------------------------------------------------------------------------------------

CPU, F32 = torch.device("cpu"), torch.float32
PROBLEM = Problem(parse("ic3oc4k3x3p1"), (1, 3, 9, 7), F32, CPU)
OTHERS = {
    "block": Problem(parse("ic3oc4k3x3"), (1, 3, 9, 7), F32, CPU),
    "shape": Problem(parse("ic3oc4k3x3p1"), (1, 3, 9, 8), F32, CPU),
    "dtype": Problem(parse("ic3oc4k3x3p1"), (1, 3, 9, 7), torch.float64, CPU),
    "layout": Problem(parse("ic3oc4k3x3p1"), (1, 3, 9, 7), F32, CPU, "channels_last"),
}


def test_what_was_measured_is_known_the_next_time(tmp_path):
    target, path = FakeTarget(), tmp_path / "deep" / "latency.sqlite"
    first = LatencyCache(path)
    measured = time_blocks(target, [PROBLEM, OTHERS["shape"], PROBLEM], first)
    first.close()
    assert target.seen == [2]  # the same one is measured once
    assert measured[0] == measured[2] != measured[1]
    again = LatencyCache(path)
    assert time_blocks(target, [PROBLEM, OTHERS["shape"]], again) == measured[:2]
    assert target.seen == [2]
    again.close()


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_problem_is_measured_anew(tmp_path, other):
    target, cache = FakeTarget(), LatencyCache(tmp_path / "latency.sqlite")
    time_blocks(target, [PROBLEM], cache)
    time_blocks(target, [PROBLEM, other], cache)
    time_blocks(FakeTarget(grouped=2.0, seen=target.seen), [PROBLEM], cache)  # another engine
    assert target.seen == [1, 1, 1]
    cache.close()


def test_a_graphics_card_is_part_of_what_is_remembered(monkeypatch):
    keys = set()
    for card in ("A", "B"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: card)
        keys.add(replace(PROBLEM, device=torch.device("cuda:0")).key(FakeTarget()))
    assert len(keys) == 2


def test_latencies_of_every_kind_of_block_are_found_and_random_numbers_left_alone():
    blocks = ["ic4oc4k3p1", "ic4oc2k1x1 -> shuffle(2)", "(ic4oc2k3x3p1 + ic4oc2k1x1)", "permute(4) -> ic4oc2k1x1",
              "shuffle(2)", "se(2)"]  # fmt: skip
    problems = [Problem(parse(text), (1, 4, 5) if text == blocks[0] else (1, 4, 5, 6), F32, CPU) for text in blocks]
    before = torch.get_rng_state()
    assert all(t.median_ms > 0 for t in time_blocks(get_target("torch"), problems))
    assert torch.equal(torch.get_rng_state(), before)


def _table(path, columns="key TEXT PRIMARY KEY, median_ms REAL, spread_ms REAL, rounds INTEGER", rows=()):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"CREATE TABLE latency ({columns})")
        for row in rows:
            connection.execute("INSERT INTO latency VALUES (?, ?, ?, ?)", row)
    connection.close()


def _cut_short(path):
    _table(path, rows=[(f"key {i} " * 20, 1.0, 0.0, 5) for i in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(len(whole) // 2 - 4096))


def _not_to_be_written(path):
    _table(path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON latency BEGIN SELECT RAISE(FAIL, 'readonly'); END")
    connection.close()


HARMED = {
    "a file where the folder should be": lambda path: path.parent.write_text(""),
    "a folder where the file should be": lambda path: path.mkdir(parents=True),
    "no database": lambda path: (path.parent.mkdir(), path.write_bytes(b"no database at all " * 99)),
    "cut short": _cut_short,
    "another table": lambda path: _table(path, "key TEXT"),
    "columns of another version": lambda path: _table(path, "key TEXT, median REAL, spread REAL, low REAL"),
    "more columns": lambda path: _table(path, "key TEXT, median_ms REAL, spread_ms REAL, rounds INTEGER, low_ms REAL"),
    "not to be written": _not_to_be_written,
}


@pytest.mark.parametrize("harm", HARMED.values(), ids=HARMED)
def test_a_cache_that_cannot_be_used_is_said_once_and_work_goes_on(tmp_path, harm):
    path, target = tmp_path / "folder" / "latency.sqlite", FakeTarget()
    harm(path)

    def work() -> None:
        cache = LatencyCache(path)
        first = time_blocks(target, [PROBLEM], cache)
        assert time_blocks(target, [PROBLEM], cache) == first  # known within one job all the same
        cache.close()

    with pytest.warns(UserWarning, match="cannot be used .*; measuring without it") as said:
        work()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    assert len(said) == 1
    assert len(target.seen) == 2


def test_a_folder_that_cannot_be_written_still_tells_what_it_knows(tmp_path, monkeypatch):
    """Opened as SQLite does there; root may write anywhere."""
    target, path, connect = FakeTarget(), tmp_path / "latency.sqlite", sqlite3.connect
    cache = LatencyCache(path)
    known = time_blocks(target, [PROBLEM], cache)
    cache.close()

    def only_read(at, **settings):
        return connect(f"file:{at}?mode=ro", uri=True, **settings)

    monkeypatch.setattr(sqlite3, "connect", only_read)
    cache = LatencyCache(path)
    assert time_blocks(target, [PROBLEM], cache) == known
    with pytest.warns(UserWarning, match=r"cannot be used \(attempt to write a readonly database\)") as said:
        time_blocks(target, [PROBLEM, *OTHERS.values()], cache)
    assert len(said) == 1
    assert len(time_blocks(target, list(OTHERS.values()), cache)) == len(OTHERS)
    assert target.seen == [1, len(OTHERS)]
    with pytest.warns(UserWarning, match="unable to open database file"):
        LatencyCache(tmp_path / "other.sqlite")  # which would have to be made


@pytest.mark.parametrize("row", [(None, 0.0, 5), ("fast", 0.0, 5), (1.0, None, 5), (1.0, 0.0, "some")])
def test_a_row_that_is_no_timing_is_measured_anew_and_replaced(tmp_path, row):
    target, path = FakeTarget(), tmp_path / "folder" / "latency.sqlite"
    _table(path, rows=[(PROBLEM.key(target), *row)])
    for _ in range(2):
        cache = LatencyCache(path)
        assert time_blocks(target, [PROBLEM], cache) == time_blocks(FakeTarget(), [PROBLEM])
        cache.close()
    assert target.seen == [1]


@pytest.mark.parametrize("name, changed", [
    ("torch", "torch.__version__"), ("torch", "reconv.targets.engine.ours"),
    ("torch", "reconv.targets.engine.native_version"), ("torch", "reconv.targets.engine.machine"),
    ("torch.compile", "torch.__version__"), ("torch.compile", "reconv.targets.engine.ours"),
    ("onnxruntime", "onnxruntime.__version__"), ("onnxruntime", "torch.__version__"),
    ("onnxruntime", "reconv.targets.exported.ours"), ("onnxruntime", "reconv.targets.exported.machine"),
    ("openvino", "openvino.__version__"),
])  # fmt: skip
def test_what_another_version_measured_is_measured_anew(tmp_path, monkeypatch, name, changed):
    """Each engine measured by a fake one, so that only its name for itself counts."""
    engine, fake, path = get_target(f"{name}:1"), FakeTarget(), tmp_path / "latency.sqlite"
    monkeypatch.setattr(type(engine), "measure", lambda self, *given: fake.measure(*given))
    for _ in range(3):
        cache = LatencyCache(path)
        time_blocks(engine, [PROBLEM], cache)
        cache.close()
    assert fake.seen == [1]
    version = "0.0.1" if changed.endswith("__version__") else lambda: "another"
    monkeypatch.setattr(changed, version)
    cache = LatencyCache(path)
    time_blocks(engine, [PROBLEM], cache)
    assert fake.seen == [1, 1]
    cache.close()


def test_the_name_of_the_file_has_the_number_of_its_form(tmp_path, monkeypatch):
    """Another version with another form has a file of its own, and both go on."""
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path))
    (tmp_path / "latency-0.sqlite").write_bytes(b"of long ago")
    (tmp_path / "latency-2.sqlite").write_bytes(b"of times to come")
    target = FakeTarget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            cache = LatencyCache()
            time_blocks(target, [PROBLEM], cache)
            cache.close()
    assert target.seen == [1]
    assert cache.path.name == "latency-1.sqlite"


def test_a_closed_cache_knows_nothing(tmp_path):
    cache = LatencyCache(tmp_path / "latency.sqlite")
    cache.close()
    cache.put("key", Timing(1.0, 0.0, 1))
    assert cache.get("key") is None


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path / "mine"))
    assert default_path().parent == tmp_path / "mine"
    monkeypatch.delenv("RECONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path().is_relative_to(tmp_path)


# layouts -----------------------------------------------------------------------------------------


def test_layouts_of_a_network_and_back():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, shared, nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    tied = nn.Conv2d(3, 3, 3)
    tied.weight = shared.weight
    model.append(nn.Sequential(nn.Conv2d(4, 3, 1), tied))
    x = grid(2, 3, 7, 9)
    expected, flags = model.eval()(x), [p.requires_grad for p in model.parameters()]
    assert layout_of(model) == "contiguous"
    assert to_layout(model, "channels_last") is model
    assert layout_of(model) == "channels_last"
    assert model(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)
    assert model[4][1].weight is model[0].weight is model[1].weight
    assert layouts_of(model) == ("channels_last", "contiguous")
    assert layout_of(to_layout(model, "contiguous")) == "contiguous"
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("shape, changes", [((2, 3, 5), False), ((2, 3, 5, 4), True), ((2, 3, 5, 4, 2), True)])
def test_layout_of_inputs(shape, changes):
    x = grid(*shape)
    last = laid_out(x, "channels_last")
    assert torch.equal(last, x)
    assert last.is_contiguous() is not changes
    assert laid_out(last, "contiguous").is_contiguous()


def test_timing_neither_changes_modes_nor_the_given_inputs():
    class Writes(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.add_(1))

    models, x = [nn.Sequential(Writes(1, 2, 3), nn.Dropout()) for _ in range(2)], torch.zeros(1, 1, 5, 5)
    models[0][1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        time_networks(FakeTarget(), models, (x,))
    assert [m.training for m in models[0]] == [True, False]
    assert float(x.sum()) == 0


def test_a_network_of_one_dimension_has_one_layout():
    assert layouts_of(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(4, 4))) == ("contiguous",)


def test_runners_take_turns_in_bursts():
    order: list[int] = []
    timings = interleave([lambda: order.append(0), lambda: order.append(1)], 0.0, least=2, most=4, burst=3)
    assert order == [0, 0, 1, 1, *[0, 0, 0, 1, 1, 1] * 2]
    assert [t.rounds for t in timings] == [6, 6]


def test_what_is_slow_is_called_once_a_round(monkeypatch):
    monkeypatch.setattr("reconv.targets.timing.BURST_MS", 0.0)
    order: list[int] = []
    interleave([lambda: order.append(0), lambda: order.append(1)], 0.0, least=2, most=4, burst=3)
    assert order == [0, 0, 1, 1, *[0, 1] * 2]
