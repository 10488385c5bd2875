"""`feature_maps`: what it gives is what the layers give, and the picture shows it."""

from __future__ import annotations

import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import reconv
from reconv.demo.digits import digits
from reconv.demo.network import digits_vgg
from reconv.drawing.maps import LABEL, MARGIN, TILE, Row, png
from reconv.errors import ConvError
from reconv.surgery.features import feature_maps, strongest


class Shared(nn.Module):
    """One convolution twice, one by its function, and what follows writes into their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.weight = nn.Parameter(torch.ones(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu_()
        x = self.conv(x).mul_(0)
        return F.conv2d(x + 1, self.weight)


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# -- the tensors ----------------------------------------------------------------------------------
def test_they_are_what_the_layers_give():
    model, x = digits_vgg(), digits()[1].tensors[0][:2]
    maps = feature_maps(model, x)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    seen: dict[str, Tensor] = {}
    for name, module in convolutions.items():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.clone()}))
    with torch.no_grad():
        model(x)
    assert list(maps) == list(convolutions)
    assert len(maps) == 10
    for name, output in seen.items():
        assert torch.equal(maps[name], output)
        assert maps.calls[name].output_shape == tuple(output.shape)


def test_every_call_of_a_shared_one_and_functional_ones():
    model, x = Shared(), image(1, 3, 6, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = feature_maps(model.train(), x)
    with torch.no_grad():
        first = model.conv(x)
        second = model.conv(first.relu())
    assert list(maps) == ["conv", "conv#2", "conv2d"]
    assert torch.equal(maps["conv"], first)
    assert torch.equal(maps["conv#2"], second)
    assert torch.equal(maps["conv2d"], torch.full((1, 2, 6, 5), 3.0))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert repr(maps) == "conv    (1, 3, 6, 5)\nconv#2  (1, 3, 6, 5)\nconv2d  (1, 2, 6, 5)"


def test_a_deformable_layer_shows_its_offsets_and_itself():
    net, x = nn.Sequential(reconv.nn.DeformConv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)), image(1, 3, 6, 5)
    maps = feature_maps(net, x)
    with torch.no_grad():
        wanted = net[0](x)
    assert list(maps) == ["0.offset_conv", "0"]
    assert torch.equal(maps["0"], wanted)
    assert maps.calls["0"].kind == "deformable"


SITES = [
    ("*", ["conv", "conv#2", "conv2d"]),
    ("conv", ["conv", "conv#2"]),
    ("*2d", ["conv2d"]),
    ("conv2d, no", ["conv2d"]),
    (["conv2d", "conv"], ["conv", "conv#2", "conv2d"]),
]


@pytest.mark.parametrize("sites, names", SITES)
def test_sites(sites, names):
    assert list(feature_maps(Shared(), image(1, 3, 6, 5), sites)) == names


def test_the_input_is_left_alone():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 1, 1)), -image(1, 1, 4, 4)
    maps = feature_maps(model, x)
    assert (x < 0).any()
    assert torch.equal(maps["1"], model[1].bias.detach().expand(1, 1, 4, 4))


# -- the picture ----------------------------------------------------------------------------------
def picture(data: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(data)).convert("L"))


def test_strongest_are_those_that_vary():
    maps = torch.stack([torch.full((2, 2), 9.0), torch.eye(2), 3 * torch.eye(2), -2 * torch.eye(2)])
    assert strongest(maps) == [2, 3, 1, 0]


def test_a_tile_is_its_map():
    """Black where it is least, white where it is largest, a square of pixels for each value."""
    values = np.array([[0.0, 1.0], [0.5, 0.25]])
    page = picture(png([Row("conv", ("note",), (("7", values),))], "Net"))
    side, left = TILE // 2, MARGIN + LABEL
    top = next(y for y in range(page.shape[0]) if page[y, left + 1] == 0)
    tile = page[top : top + TILE, left : left + TILE]
    assert tile.shape == (TILE, TILE)
    for (i, j), grey in {(0, 0): 0, (0, 1): 255, (1, 0): 128, (1, 1): 64}.items():
        assert abs(int(tile[i * side, j * side]) - grey) < 5
        assert len(np.unique(tile[i * side : (i + 1) * side, j * side : (j + 1) * side])) == 1


NETS = {
    "2d, colour": (nn.Sequential(nn.Conv2d(3, 12, 3, stride=2), nn.Conv2d(12, 4, 1)), (2, 3, 37, 51)),
    "2d, one channel": (nn.Sequential(nn.Conv2d(1, 5, 3)), (1, 1, 9, 9)),
    "2d, one position": (nn.Sequential(nn.Conv2d(5, 7, 3)), (1, 5, 3, 3)),
    "2d, one row": (nn.Sequential(nn.Conv2d(2, 3, (1, 3), groups=1)), (1, 2, 1, 300)),
    "1d": (nn.Sequential(nn.Conv1d(2, 5, 3), nn.Conv1d(5, 3, 60, dilation=2)), (1, 2, 121)),
    "1d, one position": (nn.Sequential(nn.Conv1d(2, 5, 9)), (1, 2, 9)),
    "3d": (nn.Sequential(nn.Conv3d(3, 5, 3), nn.ConvTranspose3d(5, 2, 2, stride=2)), (1, 3, 5, 6, 7)),
    "no image": (nn.Sequential(nn.Conv2d(3, 4, 3)), (0, 3, 9, 9)),
    "the network itself": (nn.Conv2d(3, 4, 3), (1, 3, 9, 9)),
    "half": (nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16(), (1, 3, 9, 9)),
}  # fmt: skip


@pytest.mark.parametrize("net, shape", NETS.values(), ids=NETS.keys())
def test_every_kind_is_drawn(net, shape, tmp_path):
    maps = feature_maps(net, image(*shape).to(next(net.parameters()).dtype))
    maps.save(tmp_path / "maps.png", channels=3)
    small = Image.open(tmp_path / "maps.png")
    small.load()
    maps.save(str(tmp_path / "more.PNG"))
    large = Image.open(tmp_path / "more.PNG")
    assert large.width >= small.width
    assert large.height == small.height
    assert picture(maps._repr_png_()).shape == (large.height, large.width)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0])
def test_what_is_no_number_or_all_the_same_is_drawn_too(value):
    page = picture(png([Row("conv", (), (("0", np.full((4, 4), value)),))], "Net"))
    assert page[MARGIN + 44 + 40, MARGIN + LABEL + 40] == 128


def test_a_long_name_stays_out_of_the_tiles():
    tile = (("", np.ones((4, 4))),)
    pages = [picture(png([Row(name, (), tile)], "Net")) for name in ("w" * 9, "w" * 300)]
    assert pages[0].shape == pages[1].shape
    assert (pages[1][:, MARGIN + LABEL - 11 : MARGIN + LABEL - 1] > 200).all()


# -- errors ---------------------------------------------------------------------------------------
MISTAKES = [
    (Shared(), image(1, 3, 6, 5), {"sites": "layer*"}, ValueError, "match at least one .* has conv, conv2d"),
    (nn.Linear(3, 3), image(1, 3), {}, ValueError, "The network has none"),
    (Shared(), image(1, 4, 6, 5), {}, ConvError, "the network must accept example_inputs"),
    (Shared(), "cat.png", {}, TypeError, "example_inputs must be a tensor"),
    ("resnet18", image(1, 3, 6, 5), {}, TypeError, "model must be a torch.nn.Module"),
    (Shared(), torch.full((1, 3, 6, 5), torch.nan), {}, ValueError, "example_inputs must be finite"),
]


@pytest.mark.parametrize("model, x, arguments, kind, message", MISTAKES)
def test_mistakes_are_told(model, x, arguments, kind, message):
    with pytest.raises(ConvError, match=message) as caught:
        feature_maps(model, x, **arguments)
    assert isinstance(caught.value, kind)


@pytest.mark.parametrize("path, channels, message", [
    ("maps.jpg", 3, "the path must end in .png; got path=maps.jpg"),
    ("maps.png", 0, "channels must be an integer >= 1; got channels=0"),
    ("maps.png", 2.5, "channels must be an integer >= 1"),
])  # fmt: skip
def test_mistakes_of_the_picture(path, channels, message):
    with pytest.raises(ConvError, match=message) as caught:
        feature_maps(Shared(), image(1, 3, 6, 5)).save(path, channels)
    assert isinstance(caught.value, ValueError)


def test_without_pillow_it_says_what_to_install(monkeypatch, tmp_path):
    maps = reconv.feature_maps(Shared(), image(1, 3, 6, 5))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConvError, match=r"pip install 'reconv\[pictures\]'") as caught:
        maps.save(tmp_path / "maps.png")
    assert isinstance(caught.value, ImportError)
    assert not list(tmp_path.iterdir())
