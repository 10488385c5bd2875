"""Files that earlier versions wrote are read, and give what they gave then."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reconv.errors import ConvError
from reconv.planning.plan import Plan
from reconv.planning.remembered import Remembered
from reconv.rewriting.checkpoint import read_checkpoint, write_checkpoint
from reconv.rewriting.store import load, read_run
from reconv.rewriting.weights import fit
from reconv.targets.cache import LatencyCache
from reconv.targets.timing import Timing

HOME = Path(__file__).parent / "compat"
sys.path.insert(0, str(HOME))
import write  # noqa: E402

VERSIONS = sorted(path.name for path in HOME.iterdir() if path.is_dir() and path.name[0].isdigit())
each_version = pytest.mark.parametrize("version", VERSIONS)
CLOSE = 1e-6


@torch.no_grad()
def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and float((got - expected).abs().max()) <= CLOSE * float(expected.abs().max())


@pytest.fixture
def folder(version, tmp_path) -> Path:
    """A copy, since nothing of them may change."""
    return Path(shutil.copytree(HOME / version, tmp_path / version))


def test_there_are_files_of_the_first_version():
    assert "0.1.0" in VERSIONS


@each_version
def test_a_run_folder_gives_the_same_network(folder):
    network = load(folder / "run", write.base().double())
    assert same(network(write.inputs()), load_file(folder / "expected.safetensors")["run"])
    run = read_run(folder / "run")
    assert (run.error, run.plan.met) == (0.25, False)
    assert run.after.total.params < run.before.total.params


@each_version
@pytest.mark.parametrize("name", write.LAYERS)
def test_a_state_dict_gives_the_same_layer(folder, name):
    held = load_file(folder / "layers.safetensors")
    layer, shape = write.LAYERS[name][0]().double().eval(), write.LAYERS[name][1]
    fit(layer, {key.partition("/")[2]: value for key, value in held.items() if key.startswith(f"{name}/")}, name)
    assert same(layer(write.random_of(shape, write.SEED)), load_file(folder / "expected.safetensors")[name])


@each_version
def test_a_plan_says_the_same(folder):
    plan = Plan.load(folder / "run" / "plan.json")
    assert plan == write.plan()
    assert plan.pinned
    assert plan.explain("3")


@each_version
def test_caches_are_known(folder, monkeypatch):
    monkeypatch.setenv("RECONV_CACHE", str(folder / "cache"))
    cache = LatencyCache()
    assert cache.get("ic3oc4k3x3 | torch") == Timing(1.5, 0.25, 7)
    cache.close()
    assert Remembered("job").get("3", "bottleneck") == [0.5, "it is slower"]


@each_version
def test_a_recovery_goes_on(folder):
    epochs: list[int] = []
    network = write.recovered(folder / "recovery", epochs, resume=True)
    assert epochs[0] == 2, "it began anew"
    got, expected = network(write.lessons()[:2]), load_file(folder / "expected.safetensors")["recovered"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)  # Adam's steps differ where instruction sets do


# what is written to: how it is read
NEWER = {
    "run/plan.json": lambda folder: load(folder / "run", write.base().double()),
    "run/config.json": lambda folder: load(folder / "run", write.base().double()),
    "run/summary.json": lambda folder: read_run(folder / "run"),
}


@each_version
@pytest.mark.parametrize("file", NEWER)
def test_a_newer_format_says_so(folder, file):
    held = json.loads((folder / file).read_text())
    assert held["format"] == 1
    (folder / file).write_text(json.dumps(held | {"format": 2}))
    with pytest.raises(ConvError, match=r"format.* must be 1; got format=2\. Upgrade reconv"):
        NEWER[file](folder)


def test_a_newer_checkpoint_says_so(tmp_path):
    write_checkpoint(tmp_path, {"settings": {}})
    assert read_checkpoint(tmp_path, {})["format"] == 1
    write_checkpoint(tmp_path, {"settings": {}, "format": 2})
    with pytest.raises(ConvError, match=r"must be 1; got .*format=2\. Upgrade reconv"):
        read_checkpoint(tmp_path, {})
