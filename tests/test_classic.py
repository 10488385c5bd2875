"""The hand-made kernels against SciPy's filters, on a photo."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from samples import photo
from scipy import ndimage

import reconv
from reconv import classic
from reconv.errors import ConvError

MODES = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}  # in SciPy's words
LAYERS = {
    "box": classic.Box, "gaussian": classic.Gaussian, "sobel": classic.Sobel, "scharr": classic.Scharr,
    "laplacian": classic.Laplacian, "sharpen": classic.Sharpen, "emboss": classic.Emboss, "gabor": classic.Gabor,
}  # fmt: skip
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def picture() -> torch.Tensor:
    """A cut of a photo, whole numbers: (1, 3, 61, 83)."""
    return photo("astronaut.png")[None, :, 20:81, 170:253].double()


def each_channel(filtered, mode: str) -> NDArray[np.float64]:
    """What a function of (H, W) makes of each channel; several results of one channel are neighbours."""
    return np.concatenate(
        [np.reshape(filtered(channel, MODES[mode]), (-1, 61, 83)) for channel in picture()[0].numpy()]
    )


def correlated(*kernels):
    return lambda image, mode: [ndimage.correlate(image, np.array(kernel, float), mode=mode) for kernel in kernels]


SCHARR_X = [[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]
EXACT = {
    "box": (classic.Box, {"size": 4}, lambda x, mode: ndimage.uniform_filter(x, 4, mode=mode, origin=-1)),
    "box, high": (classic.Box, {"size": (2, 1)},
                  lambda x, mode: ndimage.uniform_filter1d(x, 2, 0, mode=mode, origin=-1)),
    "box of one": (classic.Box, {"size": 1}, lambda x, mode: x),
    "sobel": (classic.Sobel, {}, lambda x, mode: [ndimage.sobel(x, axis, mode=mode) for axis in (1, 0)]),
    "sobel x": (classic.Sobel, {"axes": "x"}, lambda x, mode: ndimage.sobel(x, 1, mode=mode)),
    "sobel y": (classic.Sobel, {"axes": "y"}, lambda x, mode: ndimage.sobel(x, 0, mode=mode)),
    "scharr": (classic.Scharr, {}, correlated(SCHARR_X, np.transpose(SCHARR_X))),
    "laplacian": (classic.Laplacian, {}, lambda x, mode: ndimage.laplace(x, mode=mode)),
    "laplacian of 8": (classic.Laplacian, {"diagonal": True}, correlated([[1, 1, 1], [1, -8, 1], [1, 1, 1]])),
    "sharpen": (classic.Sharpen, {}, lambda x, mode: x - ndimage.laplace(x, mode=mode)),
    "sharpen twice": (classic.Sharpen, {"amount": 2}, lambda x, mode: x - 2 * ndimage.laplace(x, mode=mode)),
    "sharpen of 8": (classic.Sharpen, {"diagonal": True}, correlated([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]])),
    "emboss": (classic.Emboss, {}, correlated([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])),
    "emboss from north": (classic.Emboss, {"light": "n"}, correlated([[-1, -2, -1], [0, 1, 0], [1, 2, 1]])),
    "emboss from east": (classic.Emboss, {"light": "e"}, correlated([[1, 0, -1], [2, 1, -2], [1, 0, -1]])),
    "emboss from south-west": (classic.Emboss, {"light": "sw"}, correlated([[0, 1, 2], [-1, 1, 1], [-2, -1, 0]])),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make, arguments, wanted", EXACT.values(), ids=EXACT.keys())
def test_equals_scipy_exactly(make, arguments, wanted, mode):
    layer = make(**arguments, padding_mode=mode, dtype=torch.float64)
    np.testing.assert_array_equal(layer(picture())[0], each_channel(wanted, mode))


def gabor(wavelength: float, theta: float, sigma: float, aspect: float, phase: float, half: int) -> NDArray[np.float64]:
    """By complex numbers: the axis of the waves is the real part of the point turned back by θ."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    point = (x + 1j * y) * np.exp(-1j * theta)
    wave = np.exp(1j * (2 * np.pi * point.real / wavelength + phase)).real
    deviations = sigma, sigma / aspect
    bells = [np.exp(-((part / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
             for part, s in zip((point.real, point.imag), deviations, strict=True)]  # fmt: skip
    return bells[0] * bells[1] * wave


WAVES = {"wavelength": 5.0, "orientations": 3, "sigma": 2.0, "aspect": 0.8, "phase": 0.7, "size": 15}
CLOSE = {
    "box": (classic.Box, {"size": (3, 5)}, lambda x, mode: ndimage.uniform_filter(x, (3, 5), mode=mode)),
    "gaussian": (classic.Gaussian, {}, lambda x, mode: ndimage.gaussian_filter(x, 1, mode=mode)),
    "gaussian, wide": (classic.Gaussian, {"sigma": 2.6}, lambda x, mode: ndimage.gaussian_filter(x, 2.6, mode=mode)),
    "gaussian of two widths": (classic.Gaussian, {"sigma": (0.7, 3)},
                               lambda x, mode: ndimage.gaussian_filter(x, (0.7, 3), mode=mode)),
    "gaussian, cut": (classic.Gaussian, {"sigma": 2, "size": (5, 7)},
                      lambda x, mode: ndimage.gaussian_filter(x, 2, mode=mode, radius=(2, 3))),
    "sharpen by half": (classic.Sharpen, {"amount": 0.3}, lambda x, mode: x - 0.3 * ndimage.laplace(x, mode=mode)),
    "gabor": (classic.Gabor, WAVES, correlated(*[gabor(5, np.pi * k / 3, 2, 0.8, 0.7, 7) for k in range(3)])),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make, arguments, wanted", CLOSE.values(), ids=CLOSE.keys())
def test_equals_scipy_to_rounding(make, arguments, wanted, mode):
    layer = make(**arguments, padding_mode=mode, dtype=torch.float64)
    np.testing.assert_allclose(layer(picture())[0], each_channel(wanted, mode), rtol=1e-12, atol=1e-11)
    single = make(**arguments, padding_mode=mode)
    np.testing.assert_allclose(single(picture().float())[0], each_channel(wanted, mode), rtol=1e-5, atol=1e-3)


# -- what each kernel is for ----------------------------------------------------------------------
SUMS = {"box": 1, "gaussian": 1, "sobel": 0, "scharr": 0, "laplacian": 0, "sharpen": 1, "emboss": 1}


@pytest.mark.parametrize("name", SUMS)
def test_sums(name):
    kernel = LAYERS[name](dtype=torch.float64).kernel
    torch.testing.assert_close(kernel.sum((1, 2)), torch.full((len(kernel),), float(SUMS[name])).double())


@pytest.mark.parametrize("make, factor", [(classic.Sobel, 8), (classic.Scharr, 32)])
def test_gradients_of_a_slope(make, factor):
    """x + 10 y: 1 to the right and 10 downwards, times the factor that the docstring tells."""
    slope = torch.arange(5.0) + 10 * torch.arange(4.0)[:, None]
    x, y = make(padding="valid")(slope[None])
    assert x.unique().tolist() == [factor]
    assert y.unique().tolist() == [10 * factor]


def test_laplacian_of_a_bowl():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    assert classic.Laplacian(padding="valid")((x**2 + 3 * y**2)[None]).unique().tolist() == [8]  # 2 + 6


def test_gabor_answers_to_its_own_waves():
    """Stripes of its wavelength and direction call forth the strongest answer."""
    layer = classic.Gabor(6.0, orientations=4, aspect=1.0)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    for k in range(4):
        theta = math.pi * k / 4
        stripes = torch.cos(2 * math.pi * (x * math.cos(theta) + y * math.sin(theta)) / 6)
        assert layer(stripes[None]).square().mean((1, 2)).argmax() == k


# -- as a layer -----------------------------------------------------------------------------------
@each_layer
def test_is_a_fixed_layer(make):
    layer, x = make(padding_mode="reflect", dtype=torch.float64), picture()
    wanted = layer(x)
    count = len(layer.kernel)
    assert wanted.shape == (1, 3 * count, 61, 83)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    assert torch.equal(copy.deepcopy(layer)(x), wanted)
    torch.testing.assert_close(layer(x[0]), wanted[0])
    assert layer(x[:0]).shape == (0, *wanted.shape[1:])
    for c in range(3):
        torch.testing.assert_close(layer(x[:, c : c + 1]), wanted[:, c * count : (c + 1) * count])


@each_layer
def test_padding_is_a_convolutions(make):
    layer, x = make(padding="valid"), picture().float() / 255
    height, width = layer.kernel.shape[1:]
    inner = layer(x)
    assert inner.shape[2:] == (61 - height + 1, 83 - width + 1)
    wide = make(padding=((1, 2), (0, 3)))(x)
    torch.testing.assert_close(wide[..., 1:-2, : wide.shape[3] - 3], inner)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(make, dtype):
    layer, x = make(dtype=dtype), picture() / 255
    assert layer(x.to(dtype)).dtype == layer.kernel.dtype == dtype
    wanted = make(dtype=torch.float64)(x)
    torch.testing.assert_close(layer(x.to(dtype)).double(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


@each_layer
def test_gradients_flow_through_it(make):
    layer = make(padding_mode="reflect", dtype=torch.float64)
    least = max(layer.kernel.shape) // 2 + 1
    x = torch.randn(1, 2, least, least + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), fast_mode=True)


@each_layer
def test_exports_and_compiles(make):
    layer, x = make(padding_mode="reflect"), picture().float()
    program = torch.export.export(layer, (x,))
    rounding = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(program.module()(x), layer(x), **rounding)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x), **rounding)


def test_every_kind_is_listed_and_tested():
    assert reconv.classic is classic
    assert {make.__name__ for make in LAYERS.values()} == set(classic.__all__)
    assert repr(classic.Sobel(padding_mode="reflect")) == "Sobel(2 of 3×3, padding=(1, 1), padding_mode=reflect)"


# -- errors ---------------------------------------------------------------------------------------
NO_KERNEL = [
    (classic.Box, {"size": 0}, ValueError, "Box: size must be an integer >= 1, or two of them; got size=0"),
    (classic.Box, {"size": 2.5}, ValueError, "size must be an integer"),
    (classic.Box, {"size": (3, 3, 3)}, ValueError, r"size must be one number, or two \(of y, of x\)"),
    (classic.Box, {"padding": "full"}, ValueError, "'same' or 'valid'"),
    (classic.Box, {"padding": -1}, RuntimeError, "padding must be an integer >= 0"),
    (classic.Box, {"padding_mode": "mirror"}, ValueError, "padding_mode must be one of zeros, reflect"),
    (classic.Box, {"dtype": torch.int64}, TypeError, "dtype must be a floating one; got dtype=torch.int64"),
    (classic.Gaussian, {"sigma": 0}, ValueError, "Gaussian: sigma must be a finite number > 0; got sigma=0"),
    (classic.Gaussian, {"sigma": (1.0, -1.0)}, ValueError, "sigma must be a finite number > 0; got sigma=-1.0"),
    (classic.Gaussian, {"sigma": math.inf}, ValueError, "sigma must be a finite number > 0"),
    (classic.Gaussian, {"sigma": "1"}, ValueError, "sigma must be a finite number > 0; got sigma='1'"),
    (classic.Gaussian, {"sigma": 1.0, "size": -3}, ValueError, "size must be an integer >= 1"),
    (classic.Sobel, {"axes": "z"}, ValueError, "Sobel: axes must be 'x', 'y' or 'xy'; got axes='z'"),
    (classic.Scharr, {"axes": 0}, ValueError, "Scharr: axes must be"),
    (classic.Sharpen, {"amount": math.nan}, ValueError, "Sharpen: amount must be a finite number"),
    (classic.Emboss, {"light": "up"}, ValueError, "Emboss: light must be one of nw, n, ne"),
    (classic.Gabor, {"wavelength": 0}, ValueError, "Gabor: wavelength must be a finite number > 0"),
    (classic.Gabor, {"aspect": -1}, ValueError, "aspect must be a finite number > 0"),
    (classic.Gabor, {"sigma": 0}, ValueError, "sigma must be a finite number > 0"),
    (classic.Gabor, {"phase": None}, ValueError, "phase must be a finite number"),
    (classic.Gabor, {"orientations": 0}, ValueError, "orientations must be an integer >= 1"),
    (classic.Gabor, {"orientations": 1.5}, ValueError, "orientations must be an integer >= 1"),
]


@pytest.mark.parametrize("make, arguments, kind, message", NO_KERNEL)
def test_wrong_arguments_are_told(make, arguments, kind, message):
    with pytest.raises(ConvError, match=message) as caught:
        make(**arguments)
    assert isinstance(caught.value, kind)


NO_MAP = [
    ({}, torch.zeros(5, 5), r"Sobel: input must be \(N, C, H, W\) or \(C, H, W\), floating; got input=\(5, 5\)"),
    ({}, torch.zeros(1, 1, 3, 5, 5), r"input must be \(N, C, H, W\)"),
    ({}, torch.zeros(1, 3, 5, 5, dtype=torch.uint8), "floating; got .* dtype=torch.uint8"),
    ({}, torch.zeros(1, 3, 5, 5).double(), "conv2d: all tensors must have the same dtype"),
    ({"padding": "valid"}, torch.zeros(1, 3, 2, 5), "as large as the dilated kernel"),
    ({"padding_mode": "reflect"}, torch.zeros(1, 3, 1, 5), r"reflect padding must be at most \(0, 4\)"),
    ({"padding_mode": "circular", "padding": 6}, torch.zeros(1, 3, 5, 9), r"circular padding must be at most \(5, 9\)"),
]


@pytest.mark.parametrize("arguments, x, message", NO_MAP)
def test_wrong_maps_are_told(arguments, x, message):
    with pytest.raises(ConvError, match=message) as caught:
        classic.Sobel(**arguments)(x)
    assert isinstance(caught.value, RuntimeError)
