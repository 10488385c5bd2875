"""Files that someone else wrote: nothing of them runs, nothing leads out of its folder, and a small one stays small."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from harmful import DEEP, FILES, Bomb, network

from reconv.commands.data import load_data
from reconv.commands.options import _read_yaml
from reconv.errors import ConvError
from reconv.models import load_weights, resolve
from reconv.planning.plan import Plan
from reconv.planning.remembered import Remembered
from reconv.rewriting.checkpoint import read_checkpoint

READERS = {
    ".pt": lambda p: load_weights(network(), p),
    ".safetensors": lambda p: load_weights(network(), p),
    ".pt2": lambda p: resolve(str(p)),
    ".onnx": lambda p: resolve(str(p)),
    ".npz": lambda p: load_data(str(p)),
    ".png": lambda p: load_data(str(p.parent), (1, 1, 6, 8)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_file_made_for_harm_is_refused(tmp_path, name):
    write, message = FILES[name]
    path = tmp_path / "given" / name
    path.parent.mkdir()
    write(path)
    with pytest.raises(ConvError, match=message):
        READERS[path.suffix](path)
    assert not (path.parent / "ran").exists()


HEAVY = ("zeros.pt", "lying.pt", "overlapping.pt", "bytes.pt", "beyond.pt", "legacy.pt", "offsets.safetensors",
         "shape.safetensors",         "repeated.pt2", "claimed.onnx", "zeros.npz", "header.npz")  # fmt: skip


def test_no_file_takes_more_memory_than_it_has_bytes(tmp_path):
    for name in HEAVY:
        FILES[name][0](tmp_path / name)
    names = [str(tmp_path / name) for name in HEAVY]
    done = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**8, "MiB more than before"


@pytest.mark.parametrize("held", [DEEP, "[]", '{"settings": 3}', "\0"])
def test_what_else_is_read_is_refused_or_forgotten(tmp_path, monkeypatch, held):
    monkeypatch.setenv("RECONV_CACHE", str(tmp_path))
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "job.json").write_text(held)
    assert Remembered("job").get("anything") is None
    (tmp_path / "plan.json").write_text(held)
    with pytest.raises(ConvError, match="Plan: "):
        Plan.load(tmp_path / "plan.json")
    (tmp_path / "recovery.pt").write_text(held)
    with pytest.raises(ConvError, match="must be readable"):
        read_checkpoint(tmp_path, {})


@pytest.mark.parametrize(
    "state", [Bomb, lambda folder: {"settings": 3}, lambda folder: [1], lambda folder: {"settings": Bomb(folder)}]
)
def test_a_checkpoint_made_for_harm_is_refused(tmp_path, state):
    torch.save(state(tmp_path), tmp_path / "recovery.pt")
    with pytest.raises(ConvError, match="must be readable"):
        read_checkpoint(tmp_path, {})
    assert not (tmp_path / "ran").exists()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS = {
    "code": "budget: !!python/object/apply:os.system ['touch ran']",
    "a module": "budget: !!python/module:antigravity",
    "laughs": LAUGHS + "budget: *i\n",
    "laughs in names": LAUGHS + "budget: {latency: *i}\n",
    "merges": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nbudget: {<<: [*b, *b]}",
    "depth": "budget: " + DEEP,
    "lists of lists": "budget: {latency: [[[1]]]}",
    "size": "# " + "x" * 2**18,
    "depth in lines": "budget: " + "- " * 50_000 + "1",
    "no text": "\0",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_made_for_harm_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIGS[name])
    with pytest.raises(ConvError, match="config: "):
        _read_yaml(tmp_path / "c.yaml", ["budget"])
    assert not (tmp_path / "ran").exists()
    assert yaml.safe_load("a: 1") == {"a": 1}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    begin = peak_mib()
    for each in sys.argv[1:]:
        try:
            READERS[Path(each).suffix](Path(each))
        except ConvError:
            continue
        sys.exit(f"{each} was read")
    print(peak_mib() - begin)
