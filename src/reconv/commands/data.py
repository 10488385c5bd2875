"""What --data names: a folder of images, an .npz file, or code that returns a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from reconv.errors import ConvError, conv_error
from reconv.files import check_unpacked
from reconv.rewriting.references import Reference, call, load_callable

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for images of so many channels
FORMS = "a folder of images, a .npz file, or module:callable"


def load_data(
    ref: str, input_shape: Sequence[int] | None = None, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Any:
    """The data that --data names: samples, or whatever a callable returns.

    Images are scaled to [0, 1], whole 8-bit numbers of an .npz likewise; then `mean` is subtracted, divided by `std`.

    Args:    input_shape: (N, C, *spatial) of the network's first input; images must be of this size.
    Raises:  ConvError: when there is nothing such, or an image has another size; it is named.
    """
    path = Path(ref)
    if path.is_dir():
        return image_folder(path, input_shape, _scaling(mean, std))
    if path.suffix == ".npz":
        return _npz(path, _scaling(mean, std))
    if mean or std:
        raise conv_error("data", "--mean and --std are for image folders and .npz files", got={"data": repr(ref)},
                         do="Normalise in the callable.", also=ValueError)  # fmt: skip
    check_data_ref(ref)
    return call(load_callable(ref), ref)


def check_data_ref(ref: str) -> None:
    """Raises a ConvError (a ValueError) unless --data has one of the known forms. Runs nothing."""
    if Path(ref).is_dir() or Path(ref).suffix == ".npz":
        return
    try:
        known = Reference.parse(ref).kind != "timm"
    except ConvError:
        known = False
    if not known:
        raise conv_error("data", f"--data must be {FORMS}", got={"data": repr(ref)}, also=ValueError)


class Scaling:
    """x ↦ (x − mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(list(mean) or [0.0]), torch.tensor(list(std) or [1.0])

    def __call__(self, x: Tensor, channel_axis: int) -> Tensor:
        channels = x.shape[channel_axis]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise conv_error("data", f"--{name} must have one number, or one for each channel",
                                 got={name: len(values), "channels": channels}, also=ValueError)  # fmt: skip
        shape = [-1] + [1] * (x.ndim - channel_axis - 1)
        return (x - self.mean.view(shape)) / self.std.view(shape)


def _scaling(mean: Sequence[float], std: Sequence[float]) -> Scaling:
    if any(value <= 0 for value in std):
        raise conv_error("data", "--std must be positive", got={"std": list(std)}, also=ValueError)
    return Scaling(mean, std)


def _npz(path: Path, scaling: Scaling) -> TensorDataset:
    """Arrays x (N, C, *spatial) and, if there, y (N, …)."""
    try:
        check_unpacked(path)
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: np.asarray(held[name]) for name in ("x", "y") if name in held}  # what is no array is bytes
    except Exception as error:  # whatever a damaged archive brings about
        raise conv_error("data", "the file must be a whole .npz of plain arrays",
                         got={"file": path, "error": repr(str(error))}, also=ValueError) from error  # fmt: skip
    if "x" not in arrays or any(a.dtype.kind not in "buif" for a in arrays.values()):
        raise conv_error("data", "the .npz must hold numbers: x (inputs) and maybe y (targets)", also=ValueError,
                         got={"file": path, **{n: a.dtype for n, a in arrays.items()}})  # fmt: skip
    if len({len(a) if a.ndim else -1 for a in arrays.values()}) != 1 or not arrays["x"].ndim:
        raise conv_error("data", "x and y must have the same length",
                         got={n: a.shape for n, a in arrays.items()}, also=ValueError)  # fmt: skip
    x = _prepared(torch.from_numpy(arrays["x"]), scaling)
    return TensorDataset(x, torch.from_numpy(arrays["y"])) if "y" in arrays else TensorDataset(x)


def _prepared(x: Tensor, scaling: Scaling) -> Tensor:
    """Bytes are images; doubles are NumPy's default, hardly meant; other whole numbers are left as they are."""
    if x.dtype is torch.uint8:
        x = x.float() / 255
    x = x.float() if x.dtype is torch.float64 else x
    return scaling(x, 1) if x.is_floating_point() and x.ndim > 1 else x


class Images(Dataset[Any]):
    """Images of one size, read when they are asked for; with the number of their class, if they have one."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], mode: str, scaling: Scaling) -> None:
        self.files, self.labels, self.mode, self.scaling = files, labels, mode, scaling

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with _opened(self.files[index]) as image:
            pixels = np.asarray(image.convert(self.mode), dtype=np.float32) / 255
        x = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1).contiguous()
        x = self.scaling(x, 0)
        return (x, self.labels[index]) if self.labels else x


def image_folder(folder: Path, input_shape: Sequence[int] | None, scaling: Scaling) -> Images:
    """All images of a folder, or of its subfolders, each of which is then a class, numbered by name."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and _images(p))
    flat = _images(folder)
    if bool(flat) == bool(classes):
        must = "must hold images, or subfolders of images, one for each class" + (", not both" if flat else "")
        raise conv_error("data", f"the folder {must}", got={"folder": folder}, also=ValueError)
    labelled = [(file, label) for label, one in enumerate(classes) for file in _images(one)]
    files, labels = (flat, []) if flat else ([f for f, _ in labelled], [n for _, n in labelled])
    if input_shape is None:
        raise conv_error("data", "the size of the images must be known", got={"folder": folder},
                         do="Give --input 1xCxHxW.", also=ValueError)  # fmt: skip
    if len(input_shape) != 4 or input_shape[1] not in MODES:
        raise conv_error("data", "images are for networks of inputs 1xCxHxW with C = 1, 3 or 4",
                         got={"input": "x".join(map(str, input_shape))}, also=ValueError)  # fmt: skip
    for file in files:
        with _opened(file, whole=False) as image:
            if (image.height, image.width) != tuple(input_shape[2:]):
                raise conv_error("data", "images must have the size of the input", also=ValueError,
                                 got={"file": file, "size": f"{image.height}x{image.width}",
                                      "input": "x".join(map(str, input_shape))},
                                 do="Resize them first.")  # fmt: skip
    return Images(files, labels, MODES[input_shape[1]], scaling)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())


def _opened(file: Path, whole: bool = True) -> Any:
    """The image; its head only (size and mode) unless it is to be read as a whole."""
    try:
        from PIL import Image
    except ImportError as error:
        raise conv_error("data", "images are read by the package Pillow", got={"error": repr(str(error))},
                         do="pip install pillow.", also=ImportError) from error  # fmt: skip
    try:
        image = Image.open(file)
        if whole:
            image.load()
    except Exception as error:  # whatever a damaged image brings about
        raise conv_error("data", "the image must be readable", got={"file": file, "error": repr(str(error))},
                         also=ValueError) from error  # fmt: skip
    return image
