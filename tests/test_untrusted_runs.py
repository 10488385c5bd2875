"""Run folders that someone else wrote: no code that they name runs, and nothing leads out of them."""

import json
import sys
from pathlib import Path

import pytest
from harmful import DEEP

from reconv.errors import ConvError
from reconv.planning.plan import Plan
from reconv.rewriting.store import load, read_config, read_run, save_run
from reconv.surgery.fingerprint import structure_hash


def run(folder: Path, ref: str = "reconv.networks:lenet5") -> Path:
    from reconv.networks import lenet5

    model = lenet5()
    save_run(folder, model=model, plan=Plan((), (), {"ref": ref, "hash": structure_hash(model)}), config={})
    return folder


def named(ref: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["model"] = {"ref": ref}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def linked(name: str):
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def edits(**changed: object):
    edit = {"site": "", "rule": "bottleneck", "block": "ic3oc4k3x3", "error": 0, "latency_ms": 0} | changed

    def change(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(plan | {"edits": [edit]}))

    return change


RUNS = {
    "code by a path": (named("net.py:make"), "trust_code"),
    "code above": (named("../net.py:make"), "trust_code"),
    "code anywhere": (named("{folder}/net.py:make"), "trust_code"),
    "an installed module": (named("antigravity:geohash"), "trust_code"),
    "a module of ours": (named("reconv.cli:app"), "trust_code"),
    "what ours imports": (named("reconv.networks.convert:import_module"), "load: |model: |reference: "),
    "an attribute of ours": (named("reconv.networks:lenet5.__globals__"), "load: |model: |reference: "),
    "a hub": (named("timm:hf-hub:someone/something"), "reference: "),
    "a folder of timm's": (named("timm:local-dir:{folder}"), "reference: "),
    "code of transformers": (named("transformers:{folder}/hub"), "transformers"),
    "a file of the system": (named("/etc/passwd"), "reference: "),
    "a device": (named("/dev/zero.pt2"), "must exist"),
    "itself": (named("{folder}/run"), "begin with itself"),
    "no text": (named(["net.py:make"]), "names no network"),
    "weights elsewhere": (linked("model.safetensors"), "must lie in the run folder"),
    "a plan elsewhere": (linked("plan.json"), "must lie in the run folder"),
    "settings elsewhere": (linked("config.json"), "must lie in the run folder"),
    "deep settings": (lambda f: (f / "config.json").write_text(DEEP), "nested too deeply"),
    "a deep plan": (lambda f: (f / "plan.json").write_text(DEEP), "nested too deeply"),
    "a layer of terabytes": (edits(site="0", block="ic100000oc100000k31x31"), "must be those of the weights"),
    "a layer in a layer": (edits(site="0", block="(" * 50_000), "Plan: "),
    "a site that is code": (edits(site="__class__"), "must be a module of the network"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_made_for_harm_is_refused(tmp_path, monkeypatch, name):
    change, message = RUNS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("open('ran', 'w')\n")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"architectures": ["os"], "auto_map": {"AutoModel": "net.make"}}')
    folder = run(tmp_path / "run")
    change(folder)
    config = folder / "config.json"
    if not config.is_symlink():
        config.write_text(config.read_text().replace("{folder}", str(tmp_path)))
    before = set(sys.modules)
    with pytest.raises(ConvError, match=message):
        load(folder)
    assert not (tmp_path / "ran").exists()
    assert not {"antigravity", "net"} & (set(sys.modules) - before)


def test_a_run_folder_writes_and_reads_in_itself_alone(tmp_path, monkeypatch):
    """What the operating system is asked to open while it is read, and read again as report."""
    folder, seen = run(tmp_path / "run"), set()
    sys.addaudithook(lambda event, args: event == "open" and recording and seen.add(str(args[0])))
    recording, searched = True, list(sys.path)
    load(folder)
    assert sys.path == searched
    read_run_or_config(folder)
    recording = False
    inside = {path for path in seen if path.startswith(str(tmp_path))}
    assert inside
    assert all(Path(path).parent == folder for path in inside)


def read_run_or_config(folder: Path) -> None:
    assert read_config(folder)["model"]["ref"] == "reconv.networks:lenet5"
    assert read_run(folder).plan.edits == ()
