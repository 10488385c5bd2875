"""What the networks see: digits, crops of photos, and digits as solids. A sample to test on is never trained on."""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reconv.demo.digits import digits as split_digits

TRAIN, TEST = 0, 1  # the sides of a split
LEFT = 0.7  # of each photo's width is to train on, the rest to test on

# -- photos ------------------------------------------------------------------------------------------------
# of those that scikit-image ships, the ones with something to see everywhere; a class is one of them
PHOTOS = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
SIDE = 32
SIDES = (32, 96)  # of the square that a crop shows, in pixels of the photo


@functools.cache
def photo(name: str) -> Tensor:
    """(3, height, width) in [0, 1]."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the photos come with scikit-image: pip install -r benchmarks/compress/requirements.txt")
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / name) as image:
        rows = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return rows.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def part(image: Tensor, side: int) -> Tensor:
    """What of a photo belongs to a side of the split."""
    border = int(image.shape[2] * LEFT)
    return image[:, :, :border] if side == TRAIN else image[:, :, border:]


def crops(side: int, count: int, generator: torch.Generator) -> TensorDataset:
    """Squares of random size and place, turned by quarters and lit: (count, 3, 32, 32) and the photo's number."""
    cut, labels = [], torch.arange(count) % len(PHOTOS)
    for label in labels.tolist():
        image = part(photo(PHOTOS[label]), side)
        extent = int(torch.randint(SIDES[0], SIDES[1] + 1, (), generator=generator))
        top, left = (int(torch.randint(0, room - extent + 1, (), generator=generator)) for room in image.shape[1:])
        quarters = int(torch.randint(0, 4, (), generator=generator))
        square = image[:, top : top + extent, left : left + extent].rot90(quarters, (1, 2))
        cut.append(F.interpolate(square[None], (SIDE, SIDE), mode="bilinear", antialias=True))
    return TensorDataset(lit(torch.cat(cut), generator), labels)


def lit(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each with a contrast, a brightness, colours and a noise of its own."""
    size = (len(images), 1, 1, 1)
    contrast = 0.7 + 0.6 * torch.rand(size, generator=generator)
    shift, colours = (0.2 * torch.randn(len(images), n, 1, 1, generator=generator) for n in (1, 3))
    noise = 0.15 * torch.randn(images.shape, generator=generator)
    return 4 * contrast * (images - 0.5) + shift + colours + noise


@functools.cache
def both_sides() -> tuple[TensorDataset, TensorDataset]:
    return split_digits()


# -- solids ------------------------------------------------------------------------------------------------
EDGE, HALF_THICKNESS = 16, 0.25  # voxels; of the solid, where the whole is 2 thick
TURN = math.radians(50)


def solids(side: int, count: int, generator: torch.Generator) -> TensorDataset:
    """Digits as solids, turned about all three axes, with noise: (count, 1, 16, 16, 16) and the digit."""
    images, labels = both_sides()[side].tensors
    chosen = torch.randperm(len(images), generator=generator).repeat(-(-count // len(images)))[:count]
    volumes = torch.cat([solid(images[some], generator) for some in chosen.split(250)])
    return TensorDataset(volumes, labels[chosen])


def solid(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image made as thick as HALF_THICKNESS says, and looked at from somewhere."""
    n, (height, width) = len(images), images.shape[2:]
    depth = torch.linspace(-1, 1, height).abs() <= HALF_THICKNESS
    block = images[:, :, None] * depth.view(1, 1, height, 1, 1)
    angles = (torch.rand(n, 3, generator=generator) * 2 - 1) * TURN
    theta = torch.zeros(n, 3, 4)
    theta[:, :, :3] = rotations(angles) * (1 + 0.15 * torch.randn(n, 1, 1, generator=generator))
    grid = F.affine_grid(theta, [n, 1, EDGE, EDGE, EDGE], align_corners=False)
    seen = F.grid_sample(block.expand(n, 1, height, height, width), grid, align_corners=False)
    return 2 * seen + 0.5 * torch.randn(seen.shape, generator=generator)


def rotations(angles: Tensor) -> Tensor:
    """(n, 3) angles about the three axes, one after the other, as (n, 3, 3) matrices."""
    whole = torch.eye(3).expand(len(angles), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, first, first], turn[:, second, second] = cos, cos
        turn[:, first, second], turn[:, second, first] = -sin, sin
        whole = whole @ turn
    return whole


# -- digits ------------------------------------------------------------------------------------------------
def digits(side: int, count: int, generator: torch.Generator) -> TensorDataset:
    """The demo's digits: (count, 1, 28, 28) in [0, 1], at most as many as there are."""
    images, labels = both_sides()[side].tensors
    chosen = torch.randperm(len(images), generator=generator)[:count]
    return TensorDataset(images[chosen], labels[chosen])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
