"""Files made for harm, and what is said of each: code, false sizes, ways out of the folder, endless nesting."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

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

FILES = WEIGHTS | MODELS | DATA
