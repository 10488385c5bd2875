"""What MODEL, --weights, --data and --evaluate name."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import let_torchvision_import
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from reconv.commands import data as data_module
from reconv.commands.data import load_data
from reconv.data import Feed
from reconv.errors import ConvError
from reconv.models import load_weights, resolve
from reconv.rewriting.references import Reference, load_callable

SOURCE = """
import torch
from torch import nn
from neighbour import WIDTH

def make():
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH))

class Holder:
    make = staticmethod(make)

def not_a_model():
    return 3

def broken():
    raise RuntimeError("out of\\nluck")

def wants(width):
    return nn.Conv2d(3, width, 3)

def leaves():
    raise SystemExit(0)

def score(model):
    return 0.5

number = 3
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A folder with net.py, a package of the same, and a file that does not run."""
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "wrong.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "package_of_nets").mkdir()
    (tmp_path / "package_of_nets" / "__init__.py").write_text("")
    (tmp_path / "package_of_nets" / "one.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("neighbour", "package_of_nets", "package_of_nets.one"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "ref, kind",
    [("net.py:make", nn.Sequential), ("./net.py:Holder.make", nn.Sequential),
     ("package_of_nets.one:make", nn.Sequential), ("torch.nn:Identity", nn.Identity), ("timm:resnet10t", nn.Module)],
)  # fmt: skip
def test_a_model_is_named_by_module_file_or_timm(source, ref, kind):
    let_torchvision_import()
    model = resolve(ref)
    assert isinstance(model, kind)
    assert not model.training


@pytest.mark.parametrize(
    "ref, message",
    [("net.py", "MODEL must be package.module:callable, file.py:callable, timm:, torchvision: .*, or a run folder"),
     ("", "MODEL must be"), (":make", "MODEL must be"), ("net.py:", "MODEL must be"), ("a b:c", "MODEL must be"),
     ("timm:hf-hub:a/b", "MODEL must be"), ("timm:local-dir:/x", "MODEL must be"),
     (".", "MODEL must be"), ("timm:resnet10", "timm must know.*Nearest: resnet10t, "),
     ("nowhere.py:make", "file must exist.*'nowhere.py'"), ("net.py:nothing", "net.py must have.*It has .*make"),
     ("net.py:mak", "Nearest: make"),
     ("tim:resnet18", "No module named .tim.*Nearest: timm"), ("torchvision:resnet19", "Nearest: .*resnet18"),
     ("torchvision:hub:a", "MODEL must be"), ("transformers:resnot", "transformers must know.*Nearest: resnet, regnet"),
     ("transformers:ab:c", "MODEL must be"), ("nowhere.pt2", "pt2: the file must exist"),
     ("nowhere.onnx", "onnx: the file must exist"),
     ("net.py:number", "can be called.*type=int"), ("net.py:not_a_model", "must return a torch.nn.Mod.*returned=int"),
     ("net.py:broken", r"RuntimeError: out of luck' \(net.py:17\)"), ("net.py:leaves", "SystemExit: 0"),
     ("wrong.py:make", r"ModuleNotFoundError: No module named 'nothing_of_that_name'.*\(wrong.py:1\)"),
     ("no_such_module_here:make", "No module named 'no_such_module_here'\".$"),
     ("net.py:wants", r"missing 1 required positional argument: 'width'\".$")],
)  # fmt: skip
def test_what_names_no_model_is_said(source, ref, message):
    let_torchvision_import()
    with pytest.raises(ConvError, match=message):
        resolve(ref)


@pytest.mark.parametrize(
    "error, advice",
    [(ModuleNotFoundError("No module named 'timm'", name="timm"), "pip install timm"),
     (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "must run first"),
     (RuntimeError("operator torchvision::nms does not exist"), "must run first")],
)  # fmt: skip
def test_what_keeps_timm_from_its_import_is_said(monkeypatch, error, advice):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ConvError, match=advice):
        resolve("timm:resnet10t")


def test_what_is_installed_comes_before_what_lies_around(source):
    (source / "colorsys.py").write_text("def rgb_to_hsv():\n    return None\n")
    sys.modules.pop("colorsys", None)
    assert load_callable("colorsys:rgb_to_hsv")(1, 1, 1) == (0.0, 0.0, 1)


def test_a_reference_reads_without_running_anything():
    assert Reference.parse("C:/nets/net.py:make") == Reference("file", "C:/nets/net.py", "make")
    assert not Reference.parse("timm:resnet18").runs_foreign_code
    assert not Reference.parse("reconv.networks:resnet18").runs_foreign_code
    assert Reference.parse("reconv.networks.resnet:os.system").runs_foreign_code
    with pytest.raises(ValueError, match="must be package"):
        Reference.parse("reconv.networks")


# weights -----------------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def constant_state() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 3) for name, tensor in network().state_dict().items()}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in constant_state().items()}


GOOD = {
    "w.safetensors": constant_state(),
    "plain.pt": constant_state(),
    "ordered.pth": network().state_dict() | constant_state(),
    "wrapped.pt": {"state_dict": constant_state(), "epoch": 3, "lr": 0.1},
    "model.ckpt": {"model": constant_state(), "optimizer": {"step": [1, 2]}},
    "parallel.pt": prefixed("module."),
    "compiled.pt": prefixed("_orig_mod."),
    "both.pt": {"state_dict": prefixed("module._orig_mod.")},
    "half.safetensors": {k: v.half() if v.is_floating_point() else v for k, v in constant_state().items()},
    "without_counter.pt": {k: v for k, v in constant_state().items() if "num_batches" not in k},
}


@pytest.mark.parametrize("name, held", GOOD.items(), ids=GOOD)
def test_weights_in_their_usual_forms(tmp_path, name, held):
    save_file(held, tmp_path / name) if name.endswith("safetensors") else torch.save(held, tmp_path / name)
    model = network()
    load_weights(model, tmp_path / name)
    for key, tensor in model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert "num_batches" in key or bool((tensor == 3).all()), key


def test_a_network_whose_own_names_begin_with_module_keeps_them(tmp_path):
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    torch.save({k: torch.ones_like(v) for k, v in model.state_dict().items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert bool((model.module.weight == 1).all())


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def pickled(path: Path, held: object) -> None:
    path.write_bytes(pickle.dumps(held))


BAD = {
    "code.pt": (lambda p: torch.save({"a": Bomb(p.with_name("ran"))}, p), "tensors only, no code"),
    "raw_pickle.pt": (lambda p: pickled(p, Bomb(p.with_name("ran"))), "tensors only, no code"),
    "whole_model.pt": (lambda p: torch.save(network(), p), "tensors only, no code"),
    "missing.pt": (lambda p: None, "must exist"),
    "missing.safetensors": (lambda p: None, "must exist"),
    "text.pt": (lambda p: p.write_text("hello there"), "weights: the file must"),
    "empty.pt": (lambda p: p.write_text(""), "weights: the file must"),
    "cut.pt": (lambda p: (torch.save(constant_state(), p), p.write_bytes(p.read_bytes()[:-300])), "whole checkpoint"),
    "cut.safetensors": (lambda p: (save_file(constant_state(), p), p.write_bytes(p.read_bytes()[:-3])), "whole"),
    "list.pt": (lambda p: torch.save([torch.ones(2)], p), "state dict.*type=list"),
    "weights.npy": (lambda p: p.write_text(""), "must be .safetensors or one of"),
    "shape.pt": (lambda p: torch.save(constant_state() | {"0.bias": torch.ones(5)}, p), r"0.bias is 5, not 4"),
    "names.pt": (lambda p: torch.save({"conv.weight": torch.ones(2)}, p),
                 r"missing=\[0.bias, 0.weight, 1.bias, 1.running_mean, … 2 more\], unexpected=\[conv.weight\]"),
    "scripted.pt": (lambda p: torch.jit.script(network()).save(str(p)), "weights: the file must"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, case", BAD.items(), ids=BAD)
def test_bad_weights_are_refused_and_never_run(tmp_path, name, case):
    make, message = case
    make(tmp_path / name)
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(ConvError, match=message):
        load_weights(network(), tmp_path / name)
    assert not (tmp_path / "ran").exists()


# data --------------------------------------------------------------------------------------------


def images(folder: Path, files: dict[str, tuple[int, int]], mode: str = "L") -> Path:
    """Pictures of one grey each: 0, 51, 102, … of the given (height, width)."""
    for value, (name, (height, width)) in enumerate(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), 51 * value).convert(mode).save(folder / name)
    return folder


def test_a_flat_folder_gives_images_in_0_to_1(tmp_path):
    data = load_data(str(images(tmp_path, {"b.png": (4, 5), "a.png": (4, 5)}, "RGB")), (1, 1, 4, 5))
    assert len(data) == 2
    assert data[0].shape == (1, 4, 5)
    assert torch.equal(data[1], torch.zeros(1, 4, 5))  # b.png
    assert torch.equal(data[0], torch.full((1, 4, 5), 0.2))


def test_subfolders_are_classes_and_scaling_is_per_channel(tmp_path):
    folder = images(tmp_path, {"cat/1.png": (4, 5), "dog/1.png": (4, 5), "dog/2.PNG": (4, 5)})
    (folder / "notes").mkdir()
    (folder / "cat" / "readme.txt").write_text("")
    data = load_data(str(folder), (1, 3, 4, 5), mean=(0.2, 0, 0), std=(0.5, 1, 1))
    assert [label for _, label in (data[i] for i in range(3))] == [0, 1, 1]
    torch.testing.assert_close(data[2][0][:, 0, 0], torch.tensor([(0.4 - 0.2) / 0.5, 0.4, 0.4]))
    batch = next(Feed.of(data, torch.zeros(1, 3, 4, 5)).batches(3))
    assert batch.inputs[0].shape == (3, 3, 4, 5)
    assert batch.targets.tolist() == [0, 1, 1]


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    "x, expected",
    [(np.full((3, 2, 4), 51, np.uint8), 0.2), (np.full((3, 2, 4), 0.25), 0.25),
     (np.full((3, 2, 4), 0.25, np.float16), 0.25), (np.full((3, 2, 4), 5, np.int64), 5)],
)  # fmt: skip
def test_npz_arrays(tmp_path, x, expected):
    data = load_data(write_npz(tmp_path / "a.npz", x=x, y=np.arange(3)))
    assert len(data) == 3
    assert float(data[0][0].flatten()[0]) == pytest.approx(expected)
    assert int(data[2][1]) == 2
    only_x = load_data(write_npz(tmp_path / "b.npz", x=x))
    assert next(Feed.of(only_x).batches(3)).targets is None


def test_a_callable_gives_a_dataset(source):
    (source / "sets.py").write_text("import torch\ndef train():\n    return torch.ones(4, 3)\n")
    assert load_data("sets.py:train").shape == (4, 3)
    assert load_callable("net.py:score")(None) == 0.5


def damaged(folder: Path) -> Path:
    images(folder, {"a.png": (4, 5)})
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:20])
    return folder


def text_file(path: Path) -> str:
    path.write_text("hello there")
    return str(path)


def object_array(path: Path) -> str:
    return write_npz(path, x=np.array([Bomb(path.with_name("ran"))], dtype=object))


WRONG_DATA = {
    "size": (lambda p: load_data(str(images(p, {"a.png": (4, 5), "b.png": (5, 4)})), (1, 1, 4, 5)),
             r"b.png, size=5x4, input=1x1x4x5"),
    "both": (lambda p: load_data(str(images(p, {"a.png": (4, 5), "c/b.png": (4, 5)})), (1, 1, 4, 5)), "not both"),
    "no images": (lambda p: load_data(str(p), (1, 1, 4, 5)), "must hold images"),
    "unknown size": (lambda p: load_data(str(images(p, {"a.png": (4, 5)}))), "Give --input"),
    "channels": (lambda p: load_data(str(images(p, {"a.png": (4, 5)})), (1, 2, 4, 5)), "C = 1, 3 or 4.*1x2x4x5"),
    "1D network": (lambda p: load_data(str(images(p, {"a.png": (4, 5)})), (1, 1, 4)), "1xCxHxW"),
    "broken image": (lambda p: load_data(str(damaged(p)), (1, 1, 4, 5)), "must be readable.*b.png"),
    "mean": (lambda p: load_data(str(images(p, {"a.png": (4, 5)})), (1, 1, 4, 5), mean=(1, 2))[0], "--mean must have"),
    "std": (lambda p: load_data(str(images(p, {"a.png": (4, 5)})), (1, 1, 4, 5), std=(0,)), "--std must be positive"),
    "mean of a callable": (lambda p: load_data("sets:train", mean=(0.5,)), "Normalise in the callable"),
    "form": (lambda p: load_data("timm:resnet18"), "must be a folder of images, a .npz file, or module:callable"),
    "no such folder": (lambda p: load_data(str(p / "nowhere")), "must be a folder of images"),
    "no such npz": (lambda p: load_data(str(p / "a.npz")), "must be a whole .npz"),
    "no npz": (lambda p: load_data(text_file(p / "a.npz")), "whole .npz"),
    "pickle": (lambda p: load_data(object_array(p / "a.npz")), "whole .npz of plain arrays"),
    "no x": (lambda p: load_data(write_npz(p / "a.npz", z=np.ones(3))), "must hold numbers: x"),
    "text": (lambda p: load_data(write_npz(p / "a.npz", x=np.array(["a"]))), "must hold numbers: x"),
    "lengths": (lambda p: load_data(write_npz(p / "a.npz", x=np.ones((3, 2)), y=np.ones(2))), "same length"),
}  # fmt: skip


@pytest.mark.parametrize("load, message", WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data_is_said(tmp_path, load, message):
    with pytest.raises(ConvError, match=message):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_image_that_breaks_off_is_named_when_it_is_read(tmp_path):
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(noise).save(picture, "PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue()[:-500])
    data = load_data(str(tmp_path), (1, 1, 40, 50))
    with pytest.raises(ConvError, match=r"readable; got file=.*a\.png"):
        data[0]


def test_images_without_pillow_name_it(tmp_path, monkeypatch):
    folder = images(tmp_path, {"a.png": (4, 5)})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        data_module.load_data(str(folder), (1, 1, 4, 5))
