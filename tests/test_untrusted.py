"""Files that someone else wrote: nothing of them runs, nothing leads out of its folder, and a small one stays small."""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from reconv.commands.data import load_data
from reconv.commands.options import _read_yaml
from reconv.errors import ConvError
from reconv.models import load_weights, resolve
from reconv.planning.plan import Plan
from reconv.planning.remembered import Remembered
from reconv.rewriting.checkpoint import read_checkpoint
from reconv.rewriting.store import load, read_config, read_run, save_run
from reconv.surgery.fingerprint import structure_hash

INPUT = torch.zeros(1, 3, 8, 8)
LARGE = 2**33  # bytes that no test must touch
DEEP = "[" * 200_000


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3))


class Bomb:
    """Unpickling it writes a file named `ran`."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "ran")

    def __reduce__(self):
        return open, (self.path, "w")


# -- what a file may hold, kind by kind ---------------------------------------------------------------------------
def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(network().eval(), (INPUT,)), path)
    return path


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, held: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            archive.writestr(name, data)


def described(path: Path, change) -> None:
    """The .pt2 with what it says of its first weight changed."""
    held = entries(exported(path))
    (name,) = (name for name in held if name.endswith("model_weights_config.json"))
    config = json.loads(held[name])
    held |= change(held, name.rpartition("/")[0], next(iter(config["config"].values()))) or {}
    held[name] = json.dumps(config).encode()
    zipped(path, held)


def pickled_inside(path: Path) -> None:
    def change(held, folder, meta):
        meta["use_pickle"] = True
        memory = io.BytesIO()
        torch.save(Bomb(path.parent), memory)
        return {f"{folder}/{meta['path_name']}": memory.getvalue()}

    described(path, change)


def sized(size: list[int], stride: list[int]):
    def change(held, folder, meta):
        meta["tensor_meta"]["sizes"] = [{"as_int": n} for n in size]
        meta["tensor_meta"]["strides"] = [{"as_int": n} for n in stride]

    return lambda path: described(path, change)


def bomb_of_zeros(path: Path) -> None:
    """A checkpoint whose one record is 64 MiB of zeros, deflated to 64 KiB."""
    torch.save({"0.weight": torch.zeros(4)}, path)
    held = entries(path)
    name = next(name for name in held if name.endswith("data/0"))
    zipped(path, held | {name: bytes(2**26)}, zipfile.ZIP_DEFLATED)


def lying(save):
    """An archive whose directory claims that each of its entries is as large as a zip can say."""

    def write(path: Path) -> None:
        save(path)
        raw = bytearray(path.read_bytes())
        at = raw.find(b"PK\x01\x02")
        while at >= 0:
            raw[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
            at = raw.find(b"PK\x01\x02", at + 4)
        path.write_bytes(raw)

    return write


def overlapping(path: Path) -> None:
    """A thousand entries that are all the same bytes of the file."""
    zipped(path, {"a/data.pkl": bytes(2**20)})
    raw = path.read_bytes()
    at, end = raw.find(b"PK\x01\x02"), raw.find(b"PK\x05\x06")
    times = 1000
    path.write_bytes(raw[:at] + raw[at:end] * times + b"PK\x05\x06\0\0\0\0"
                     + struct.pack("<HHIIH", times, times, (end - at) * times, at, 0))  # fmt: skip


def calling(opcodes: bytes):
    """A checkpoint whose pickle is these opcodes."""

    def write(path: Path) -> None:
        torch.save({"0.weight": torch.zeros(4)}, path)
        held = entries(path)
        name = next(name for name in held if name.endswith("data.pkl"))
        zipped(path, held | {name: b"\x80\x02" + opcodes + b"."})

    return write


def legacy(path: Path) -> None:
    """A tensor of 8 GiB over a storage of 16 bytes, which torch makes larger in its old format."""
    torch.save({"0.weight": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert raw.count(b"K\x04\x85") == 1
    path.write_bytes(raw.replace(b"K\x04\x85", b"J" + struct.pack("<i", LARGE // 4 - 1) + b"\x85"))


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def tensor(shape: list[int], start: int, end: int) -> dict:
    return {"0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}}


def graph(path: Path, weight: TensorProto) -> None:
    made = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight])  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def external(location: str, linked: str | None = None):
    """Weights that lie in another file."""

    def write(path: Path) -> None:
        weight = TensorProto(name="w", data_type=1, dims=[4, 3, 3, 3], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "432")):
            weight.external_data.add(key=key, value=value)
        (path.parent.parent / "secret").write_bytes(bytes(range(256)) * 2)
        if linked:
            (path.parent / linked).symlink_to(path.parent.parent / "secret")
        graph(path, weight)

    return write


def claimed(path: Path) -> None:
    graph(path, TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**31, 3, 3, 3], raw_data=bytes(432)))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def headed(path: Path) -> None:
    """A few bytes under a header of 8 GiB."""
    memory = io.BytesIO()
    np.lib.format.write_array_header_1_0(memory, {"descr": "<f4", "fortran_order": False, "shape": (1, LARGE // 4)})
    zipped(path, {"x.npy": memory.getvalue() + bytes(64)})


def image(head: bytes):
    """A PNG with this first chunk and nothing else."""
    chunk = b"IHDR" + head
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return lambda path: path.write_bytes(raw)


def objects(path: Path) -> None:
    np.savez(path, x=np.array([Bomb(path.parent)], dtype=object))


# name: (how it is written, what is said)
WEIGHTS = {
    "code.pt": (lambda p: torch.save({"a": Bomb(p.parent)}, p), "tensors only, no code"),
    "raw.pt": (lambda p: p.write_bytes(pickle.dumps(Bomb(p.parent))), "tensors only, no code"),
    "zeros.pt": (bomb_of_zeros, "must not be compressed"),
    "lying.pt": (lying(lambda p: torch.save({"0.weight": torch.zeros(4)}, p)), "claim .* bytes, and it has"),
    "overlapping.pt": (overlapping, "claim .* bytes, and it has"),
    "bytes.pt": (calling(b"c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R"), "memory by bytearray"),
    "eval.pt": (calling(b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R"), "tensors only, no code"),
    "beyond.pt": (
        calling(b"}X\x08\x00\x00\x000.weightctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85Rs"),
        "its numbers in the file.*0.weight",
    ),
    "legacy.pt": (legacy, "whole checkpoint"),
    "pipe.pt": (pipe, "must exist"),
    "length.safetensors": (safetensors(b"{}", length=2**62), "whole and safetensors"),
    "short.safetensors": (safetensors(b"{}", length=LARGE), "whole and safetensors"),
    "offsets.safetensors": (safetensors(tensor([LARGE // 4], 0, LARGE), bytes(16)), "whole and safetensors"),
    "shape.safetensors": (safetensors(tensor([LARGE // 4], 0, 16), bytes(16)), "whole and safetensors"),
    "product.safetensors": (safetensors(tensor([2**32, 2**32, 4], 0, 16), bytes(16)), "whole and safetensors"),
    "deep.safetensors": (safetensors(b'{"a":' + DEEP.encode()), "whole and safetensors"),
    "aliases.safetensors": (lambda p: save_file({"a": torch.zeros(2)}, p, {"aliases": DEEP}), "nested too deeply"),
}
MODELS = {
    "code.pt2": (pickled_inside, "pt2: "),
    "zeros.pt2": (lambda p: zipped(p, entries(exported(p)), zipfile.ZIP_DEFLATED), "must not be compressed"),
    "repeated.pt2": (sized([2**20, 2**20], [0, 0]), "claims a tensor of"),
    "outside.pt2": (sized([4, 3, 3, 300], [27, 9, 3, 1]), "pt2: "),
    "deep.pt2": (lambda p: zipped(p, {"a/models/model.json": DEEP.encode()}), "RecursionError"),
    "pipe.pt2": (pipe, "no regular file"),
    "passwd.onnx": (external("/etc/passwd"), "whole ONNX model"),
    "above.onnx": (external("../secret"), "whole ONNX model"),
    "through.onnx": (external("a/../../secret"), "whole ONNX model"),
    "link.onnx": (external("link", "link"), "whole ONNX model"),
    "claimed.onnx": (claimed, "onnx: "),
    "pipe.onnx": (pipe, "must exist"),
}  # fmt: skip
DATA = {
    "code.npz": (objects, "plain arrays"),
    "zeros.npz": (lying(lambda p: np.savez_compressed(p, x=np.zeros((4, 9)))), "unpacks to"),
    "header.npz": (headed, "plain arrays"),
    "bytes.npz": (lambda p: zipped(p, {"x.npy": b"no array"}), "must hold numbers"),
    "head.png": (image(bytes(5)), "must be readable"),
    "wide.png": (image(struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)), "must be readable"),
    "pipe.npz": (pipe, "no regular file"),
}
READERS = {
    ".pt": lambda p: load_weights(network(), p),
    ".safetensors": lambda p: load_weights(network(), p),
    ".pt2": lambda p: resolve(str(p)),
    ".onnx": lambda p: resolve(str(p)),
    ".npz": lambda p: load_data(str(p)),
    ".png": lambda p: load_data(str(p.parent), (1, 1, 6, 8)),
}
FILES = WEIGHTS | MODELS | DATA


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


# -- run folders ----------------------------------------------------------------------------------------------------
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


# -- --config -------------------------------------------------------------------------------------------------------
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
