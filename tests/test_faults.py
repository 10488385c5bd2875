"""Disks that are full or may not be written to, several processes on one folder, and what a killed one has left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import recovering
import torch
from planned import IMAGE, network
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.planning import remembered
from reconv.planning.plan import Plan, Refusal
from reconv.rewriting.folder import NEW, READY, alone, together
from reconv.rewriting.logs import logger
from reconv.rewriting.store import load, read_run, save_run
from reconv.targets import Timing
from reconv.targets.cache import LatencyCache

ROOT = Path(__file__).parents[1]
LONG = Plan((), tuple(Refusal(f"site {n}", "separable", "of all the reasons the longest") for n in range(4000)))


def run(folder: Path) -> None:
    save_run(folder, model=nn.Conv2d(1, 1, 1), plan=LONG, config={"seed": 1})


def recover(folder: Path) -> None:
    recovering.run(folder, {"epochs": 1})


def log(folder: Path) -> None:
    tell = logger(folder)
    assert tell is not None
    tell({"epoch": 1, "text": "x" * 100_000})


def maps(folder: Path) -> None:
    reconv.feature_maps(network(), IMAGE).save(folder / "maps.png")


# what writes, and the file that its error names
WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a plan": (lambda f: LONG.save(f / "plan.json"), "plan.json"),
    "a run": (run, ""),
    "a recovery": (recover, ""),
    "a log": (log, "log.jsonl"),
    "a drawing": (lambda f: reconv.draw("ic4oc8k3x3p1", f / "conv.svg"), "conv.svg"),
    "feature maps": (maps, "maps.png"),
    "a .pt2": (lambda f: reconv.export(nn.Conv2d(64, 99, 3), torch.zeros(1, 64, 5, 5), f / "net.pt2"), "net.pt2"),
    "an .onnx": (lambda f: reconv.export(nn.Conv2d(64, 99, 3), torch.zeros(1, 64, 5, 5), f / "net.onnx"), "net.onnx"),
}


def mounted(folder: Path, *options: str) -> bool:
    """Whether this machine lets us."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A disk of one page, which is taken; or a limit on the size of files, where nothing can be mounted."""
    if mounted(folder, "-t", "tmpfs", "-o", "size=8k", "reconv-test"):
        try:
            (folder / "there").write_text("as it was")
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (folder / "there").write_text("as it was")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """A disk that can only be read; or a folder whose mode says so, to whom modes mean something."""
    (folder / "there").write_text("as it was")
    if mounted(folder, "-t", "tmpfs", "-o", "size=64k", "reconv-test"):
        try:
            (folder / "there").write_text("as it was")
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        return
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


DISKS = {"full": (full, "Free some space|Raise the limit"), "closed": (closed, "Choose a place that can be written")}


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_takes_nothing_is_told_and_what_is_there_stands(tmp_path, writer, disk):
    write, name = WRITERS[writer]
    state, advice = DISKS[disk]
    with state(tmp_path):
        with pytest.raises(ConvError, match=advice) as caught:
            write(tmp_path)
        assert isinstance(caught.value, OSError)
        assert str(tmp_path / name) in str(caught.value)
        assert (tmp_path / "there").read_text() == "as it was"
        left = {file.name for file in tmp_path.rglob("*") if file.is_file()} - {"there", "log.jsonl"}
        assert left == set()


def test_a_log_goes_on_behind_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"epo')
    tell = logger(tmp_path)
    assert tell is not None
    tell({"epoch": 3})
    tell({"epoch": 4})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines == ['{"epoch": 1}', '{"epo', '{"epoch": 3}', '{"epoch": 4}']


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    few = Plan((), LONG.refusals[:3])  # they fit into a pipe
    few.save(tmp_path / "pipe")
    assert Plan.from_dict(json.loads(reading.communicate()[0])) == few
    assert (tmp_path / "pipe").is_fifo()


# several at once ---------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from reconv.rewriting.folder import alone
with alone(Path(sys.argv[1]), "rewrite"):
    print("has it", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that has the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, folder], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        try:
            yield process
        finally:
            process.kill()


JOBS: dict[str, Callable[[Path], object]] = {
    "rewrite": lambda f: reconv.rewrite(network(), IMAGE, "macs=0.9", epochs=0, out=f),
    "recover": lambda f: recovering.run(f, {"epochs": 1}),
    "save": lambda f: save_run(f, model=nn.Conv2d(1, 1, 1), plan=Plan(()), config={}),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_second_process_is_told_who_has_the_folder(tmp_path, job):
    with another(tmp_path) as process:
        with pytest.raises(
            ConvError, match=f"{job}: one process at a time.*held by=process {process.pid} on"
        ) as caught:
            JOBS[job](tmp_path)
        assert "Wait for it or stop it, or give another folder" in str(caught.value)
        assert {file.name for file in tmp_path.iterdir()} == {".lock"}
        process.send_signal(signal.SIGKILL)
        process.wait()
        JOBS[job](tmp_path)  # nobody has it now
    assert not (tmp_path / ".lock").exists()


def test_a_second_thread_is_told_and_calls_within_calls_are_not(tmp_path):
    said: list[str] = []

    def second() -> None:
        try:
            run(tmp_path)
        except ConvError as error:
            said.append(str(error))

    with alone(tmp_path, "rewrite"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        run(tmp_path)
    assert f"held by=process {os.getpid()}" in said[0]
    run(tmp_path)


WRITES = """
import sys
from reconv.planning.remembered import Remembered
from reconv.targets import Timing
from reconv.targets.cache import LatencyCache
mine, caches = int(sys.argv[1]), LatencyCache()
for n in range(40):
    caches.put(f"{mine} {n}", Timing(float(n), 0.5, 5))
    caches.put(f"both {n}", Timing(float(n), 0.5, 5))
    notes = Remembered("job")
    notes.put([mine] * 2000, "row")
    notes.save()
    assert notes.known
"""


def test_processes_share_the_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path))
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITES, str(number)]) for number in range(2)]
    seen = set()
    while any(process.poll() is None for process in running):
        if known := remembered.Remembered("job").known:  # read as they write
            (row,) = known.values()
            seen.add((len(row), len(set(row))))
    assert [process.wait() for process in running] == [0, 0]
    assert seen == {(2000, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caches = LatencyCache()
        names = [f"{which} {n}" for which in (0, 1, "both") for n in range(40)]
        assert all(caches.get(name) == Timing(float(name.split()[1]), 0.5, 5) for name in names)
    assert sorted(file.name for file in (tmp_path / "plans").iterdir()) == ["job.json"]


# what a killed process has left ------------------------------------------------------------------


def saved(folder: Path, value: float) -> None:
    model = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.weight, value)
    save_run(folder, model=model, plan=Plan((), reason=f"run {value}"), config={"seed": value}, error=value)


@pytest.mark.parametrize("in_place", range(6))
def test_a_run_is_read_whole_between_the_renames(tmp_path, in_place):
    """As after a kill once so many of its files are in their places."""
    saved(tmp_path / "run", 1.0)
    saved(tmp_path / "other", 2.0)
    files = sorted((tmp_path / "other").iterdir())
    (tmp_path / "run" / READY).mkdir()
    for number, file in enumerate(files):
        file.rename(tmp_path / "run" / ("" if number < in_place else READY) / file.name)
    held = read_run(tmp_path / "run")
    assert (held.plan.reason, held.config["seed"], held.error) == ("run 2.0", 2.0, 2.0)
    assert load(tmp_path / "run", base=nn.Conv2d(1, 1, 1)).weight.item() == 2.0
    saved(tmp_path / "run", 3.0)
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == [f.name for f in files]
    assert read_run(tmp_path / "run").error == 3.0


def test_what_was_not_written_whole_is_not_there(tmp_path):
    def half_written() -> None:
        with together(tmp_path) as new:
            (new / "plan.json").write_text("half")
            raise ZeroDivisionError

    saved(tmp_path, 1.0)
    with pytest.raises(ZeroDivisionError):
        half_written()
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "plan.json").write_text("half")
    (tmp_path / ".plan.json.part-12345678.json").write_text("half")
    assert read_run(tmp_path).error == 1.0
    with alone(tmp_path, "save"):
        assert {f.name for f in tmp_path.iterdir() if f.name.startswith(".")} == {".lock"}


def test_kills_leave_the_old_or_the_new(tmp_path):
    """A few of those that `trust/kills.py` makes by the hundred."""
    done = subprocess.run([sys.executable, ROOT / "trust" / "kills.py", "--kills", "10", "--jobs", "save", "recover",
                           "--out", tmp_path / "kills.json"], capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert sum(row["tried"] for row in rows) >= 8
    assert not any(row["failures"] for row in rows)
