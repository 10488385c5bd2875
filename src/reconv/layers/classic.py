"""The hand-made kernels of image processing, as layers with nothing to learn. Public as `reconv.classic`.

Each kernel is applied to every channel by itself (a depthwise convolution), as all layers here do: it is not turned
round. Where a kind has several kernels, the outputs of one channel are neighbours: K kernels make of channel c the
channels c·K … c·K + K − 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.errors import ConvError, conv_error
from reconv.layers.arguments import check_counts
from reconv.ops.functional import conv2d
from reconv.ops.problem import Padding, Size, flat_pads
from reconv.spec import ConvSpec

__all__ = ["Box", "Emboss", "Gabor", "Gaussian", "Laplacian", "Scharr", "Sharpen", "Sobel"]


class Settings(TypedDict, total=False):
    """What every layer here takes besides; see Box."""

    padding: Padding
    padding_mode: str
    device: Any
    dtype: torch.dtype | None


class _Fixed(nn.Module):
    """Applies K fixed kernels to each channel: (N, C, H, W) or (C, H, W) to the same with K·C channels.

    The kernels are a buffer, no parameter; it moves with the layer and is not in its state dict.
    """

    weight: Tensor

    def __init__(self, kernels: Tensor, *, padding: Padding = "same", padding_mode: str = "zeros", device: Any = None,
                 dtype: torch.dtype | None = None) -> None:  # fmt: skip
        super().__init__()
        spec = ConvSpec(in_channels=1, out_channels=len(kernels), kernel_size=tuple(kernels.shape[1:]), bias=False,
                        padding=padding, padding_mode=padding_mode)  # fmt: skip
        dtype = dtype or torch.get_default_dtype()
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise _wrong(self, "dtype must be a floating one", dtype=repr(dtype), also=TypeError)
        self.padding, self.pads, self.padding_mode = spec.even_padding or spec.padding, spec.padding, padding_mode
        self.register_buffer("weight", kernels[:, None].to(device=device, dtype=dtype), persistent=False)

    @property
    def kernel(self) -> Tensor:
        """The kernels themselves: (K, height, width)."""
        return self.weight[:, 0]

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (3, 4) or not input.is_floating_point():
            raise _wrong(self, "input must be (N, C, H, W) or (C, H, W), floating", input=tuple(input.shape),
                         dtype=input.dtype, also=RuntimeError)  # fmt: skip
        channels = input.shape[-3]
        weight = self.weight.repeat(channels, 1, 1, 1)
        if self.padding_mode == "zeros":
            return conv2d(input, weight, padding=self.padding, groups=channels)
        return conv2d(self._padded(input), weight, groups=channels)

    def _padded(self, input: Tensor) -> Tensor:
        """With a border of the map's own values; a reflection does not repeat the edge, so it has one less to give."""
        most = [n - (self.padding_mode == "reflect") for n in input.shape[-2:]]
        if self.padding_mode != "replicate" and any(max(pair) > n for pair, n in zip(self.pads, most, strict=True)):
            raise _wrong(self, f"{self.padding_mode} padding must be at most {tuple(most)}", padding=self.pads,
                         input=tuple(input.shape), do="Use padding_mode='replicate' or 'zeros'.",
                         also=RuntimeError)  # fmt: skip
        return F.pad(input, flat_pads(self.pads), self.padding_mode)

    def extra_repr(self) -> str:
        count, height, width = self.kernel.shape
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        return f"{count} of {height}×{width}, padding={self.padding}{mode}"


class Box(_Fixed):
    """The mean of a rectangle: w = 1 / (height · width).

    Args:    size: an int, or (height, width).
             padding: "same" (which it is by itself; of an even kernel the odd row goes to the end), "valid", or
             numbers as of a convolution. padding_mode: "zeros" (by itself), "reflect", "replicate" or "circular".
             device, dtype: of the kernel; the map must have the same.
    Example: >>> Box(2, padding="valid")(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]))
             tensor([[[3.]]])
    """

    def __init__(self, size: Size = 3, **settings: Unpack[Settings]) -> None:
        height, width = _sizes(self, size)
        kernel = torch.full((1, height, width), 1 / (height * width), dtype=torch.float64)
        super().__init__(kernel, **settings)


class Gaussian(_Fixed):
    """A blur: w(y, x) ∝ exp(−y² / 2σ² − x² / 2σ²), the sum being 1.

    Args:    sigma: the standard deviation in pixels, or (of y, of x).
             size: an int, or (height, width); without it the kernel reaches 4 σ to each side.
             padding, padding_mode, device, dtype: see Box.
    Source:  Marr and Hildreth 1980, Theory of edge detection
    Example: >>> Gaussian(1.0).kernel.shape
             torch.Size([1, 9, 9])
    """

    def __init__(
        self, sigma: float | Sequence[float] = 1.0, size: Size | None = None, **settings: Unpack[Settings]
    ) -> None:
        sigmas = [_positive(self, "sigma", value) for value in _pair(self, "sigma", sigma)]
        sizes = [2 * int(4 * s + 0.5) + 1 for s in sigmas] if size is None else _sizes(self, size)
        column, row = (torch.exp(-((_centred(n) / s) ** 2) / 2) for n, s in zip(sizes, sigmas, strict=True))
        kernel = torch.outer(column / column.sum(), row / row.sum())
        super().__init__(kernel[None], **settings)


class _Gradient(_Fixed):
    """A central difference along one axis, weighed over its neighbours along the other."""

    neighbours: ClassVar[tuple[int, int, int]]

    def __init__(self, axes: str = "xy", **settings: Unpack[Settings]) -> None:
        if axes not in ("x", "y", "xy"):
            raise _wrong(self, "axes must be 'x', 'y' or 'xy'", axes=repr(axes), also=ValueError)
        along_x = torch.outer(_numbers(self.neighbours), _numbers((-1, 0, 1)))
        kernels = {"x": along_x, "y": along_x.T}
        super().__init__(torch.stack([kernels[axis] for axis in axes]), **settings)


class Sobel(_Gradient):
    """Eight times the gradient: [1 2 1]ᵀ ⊗ [−1 0 1] along x, its transpose along y.

    Args:    axes: "xy": channel 2c is the gradient of channel c along x (positive where it is brighter on the
             right), 2c + 1 the one along y (brighter below); "x" or "y": only that one.
             padding, padding_mode, device, dtype: see Box.
    Source:  Sobel and Feldman 1968, A 3×3 isotropic gradient operator for image processing
    Example: >>> Sobel().kernel[0]
             tensor([[-1.,  0.,  1.],
                     [-2.,  0.,  2.],
                     [-1.,  0.,  1.]])
    """

    neighbours = (1, 2, 1)


class Scharr(_Gradient):
    """32 times the gradient, its direction truer than Sobel's: [3 10 3]ᵀ ⊗ [−1 0 1] along x, its transpose along y.

    Args:    axes, and the order of the channels: see Sobel. padding, padding_mode, device, dtype: see Box.
    Source:  Scharr 2000, Optimale Operatoren in der Digitalen Bildverarbeitung
    Example: >>> Scharr("y").kernel
             tensor([[[ -3., -10.,  -3.],
                      [  0.,   0.,   0.],
                      [  3.,  10.,   3.]]])
    """

    neighbours = (3, 10, 3)


class Laplacian(_Fixed):
    """The sum of the second derivatives: each of 4 neighbours, or with `diagonal` of 8, minus the middle.

    Args:    padding, padding_mode, device, dtype: see Box.
    Source:  Marr and Hildreth 1980, Theory of edge detection
    Example: >>> Laplacian().kernel
             tensor([[[ 0.,  1.,  0.],
                      [ 1., -4.,  1.],
                      [ 0.,  1.,  0.]]])
    """

    def __init__(self, diagonal: bool = False, **settings: Unpack[Settings]) -> None:
        super().__init__(_laplacian(diagonal)[None], **settings)


class Sharpen(_Fixed):
    """The map minus `amount` times its Laplacian.

    Args:    diagonal: which Laplacian, see there. padding, padding_mode, device, dtype: see Box.
    Source:  Gonzalez and Woods, Digital Image Processing, section "Sharpening spatial filters"
    Example: >>> Sharpen().kernel
             tensor([[[ 0., -1.,  0.],
                      [-1.,  5., -1.],
                      [ 0., -1.,  0.]]])
    """

    def __init__(self, amount: float = 1.0, diagonal: bool = False, **settings: Unpack[Settings]) -> None:
        if not _is_number(amount):
            raise _wrong(self, "amount must be a finite number", amount=repr(amount), also=ValueError)
        kernel = -amount * _laplacian(diagonal) + 0.0  # and no zero is negative
        kernel[1, 1] += 1
        super().__init__(kernel[None], **settings)


class Emboss(_Fixed):
    """The map as a relief, bright where it rises away from the light, as heights under a lamp are.

    Args:    light: where it comes from: "nw" (the top left corner), "n", "ne", "e", "se", "s", "sw" or "w".
             padding, padding_mode, device, dtype: see Box.
    Example: >>> Emboss().kernel
             tensor([[[-2., -1.,  0.],
                      [-1.,  1.,  1.],
                      [ 0.,  1.,  2.]]])
    """

    around: ClassVar[tuple[tuple[int, int], ...]] = (
        (0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0),
    )  # fmt: skip
    lights: ClassVar[tuple[str, ...]] = ("nw", "n", "ne", "e", "se", "s", "sw", "w")

    def __init__(self, light: str = "nw", **settings: Unpack[Settings]) -> None:
        if light not in self.lights:
            raise _wrong(self, f"light must be one of {', '.join(self.lights)}", light=repr(light), also=ValueError)
        kernel = torch.ones(3, 3, dtype=torch.float64)
        start = self.lights.index(light)
        for steps, height in enumerate((-2, -1, 0, 1, 2, 1, 0, -1)):  # from the light clockwise
            kernel[self.around[(start + steps) % 8]] = height
        super().__init__(kernel[None], **settings)


class Gabor(_Fixed):
    """Waves of one length under a Gaussian, in several orientations: what the first layer of a network learns.

        w_θ(y, x) = γ / 2πσ² · exp(−(u² + γ²v²) / 2σ²) · cos(2π u / λ + ψ),
        u = x cos θ + y sin θ,  v = −x sin θ + y cos θ

    Args:    wavelength: λ in pixels.
             orientations: how many, K: channel c·K + k is channel c seen with θ = π k / K. With θ = 0 the waves run
             along x, so that the stripes stand upright.
             sigma: σ in pixels; without it 0.56 λ, which is a bandwidth of one octave.
             aspect: γ; the Gaussian is 1 / γ times as long along the stripes as across.
             phase: ψ in radians: 0 for lines, π / 2 for edges.
             size: an int, or (height, width); without it the kernel reaches 3 times the larger deviation.
             padding, padding_mode, device, dtype: see Box.
    Source:  Daugman 1985, J. Opt. Soc. Am. A 2, p. 1160
    Example: >>> Gabor(4.0, orientations=6)(torch.zeros(1, 3, 32, 32)).shape
             torch.Size([1, 18, 32, 32])
    """

    def __init__(
        self,
        wavelength: float = 4.0,
        orientations: int = 4,
        sigma: float | None = None,
        aspect: float = 0.5,
        phase: float = 0.0,
        size: Size | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        wavelength, aspect = _positive(self, "wavelength", wavelength), _positive(self, "aspect", aspect)
        sigma = _positive(self, "sigma", 0.56 * wavelength if sigma is None else sigma)
        check_counts(self, orientations=orientations)
        if not _is_number(phase):
            raise _wrong(self, "phase must be a finite number", phase=repr(phase), also=ValueError)
        height, width = _sizes(self, 2 * math.ceil(3 * max(sigma, sigma / aspect)) + 1 if size is None else size)
        y, x = torch.meshgrid(_centred(height), _centred(width), indexing="ij")
        theta = (torch.arange(orientations, dtype=torch.float64) * math.pi / orientations)[:, None, None]
        u, v = x * theta.cos() + y * theta.sin(), -x * theta.sin() + y * theta.cos()
        envelope = torch.exp(-(u**2 + (aspect * v) ** 2) / (2 * sigma**2)) * aspect / (2 * math.pi * sigma**2)
        kernels = envelope * torch.cos(2 * math.pi * u / wavelength + phase)
        super().__init__(kernels, **settings)


# -- parts of the kernels, and of the checks ------------------------------------------------------
def _numbers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _centred(count: int) -> Tensor:
    """… −1 0 1 … ; of an even count the middle lies between two."""
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2


def _laplacian(diagonal: bool) -> Tensor:
    kernel = torch.ones(3, 3, dtype=torch.float64)
    if not diagonal:
        kernel[::2, ::2] = 0
    kernel[1, 1] = 1 - kernel.sum()
    return kernel


def _pair(layer: nn.Module, name: str, value: Any) -> tuple[Any, Any]:
    """(of y, of x): one value serves both."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise _wrong(layer, f"{name} must be one number, or two (of y, of x)", **{name: value}, also=ValueError)
    return values


def _sizes(layer: nn.Module, size: Any) -> tuple[int, int]:
    sizes = _pair(layer, "size", size)
    if not all(isinstance(n, Integral) and int(n) >= 1 for n in sizes):
        raise _wrong(layer, "size must be an integer >= 1, or two of them", size=size, also=ValueError)
    return sizes


def _positive(layer: nn.Module, name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise _wrong(layer, f"{name} must be a finite number > 0", **{name: repr(value)}, also=ValueError)
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _wrong(layer: nn.Module, must: str, *, also: type[Exception], do: str = "", **got: object) -> ConvError:
    return conv_error(type(layer).__name__, must, got=got, do=do, also=also)
