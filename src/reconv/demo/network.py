"""A VGG-like network for 28×28 images: ten convolutions of 64, 128 and 256 channels, batch norm, two of them 5×5."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digits_vgg.safetensors")

# (channels, kernel size) of each convolution; "pool" halves the map
PLAN: tuple[tuple[int, int] | str, ...] = (
    (64, 3), (64, 5), "pool",
    (128, 3), (128, 3), (128, 5), (128, 3), "pool",
    (256, 3), (256, 3), (256, 3), (256, 3),
)  # fmt: skip


class DigitsVGG(nn.Module):
    """Classifies (N, 1, 28, 28) images, in [0, 1], into ten digits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for step in PLAN:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            width, size = step
            conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def digits_vgg(trained: bool = True) -> DigitsVGG:
    """The demo network in evaluation mode, with the shipped weights unless `trained` is False."""
    model = DigitsVGG()
    if trained:  # stored in half precision; integer counters stay integers
        state = load_file(WEIGHTS)
        model.load_state_dict({k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()})
    return model.eval()
