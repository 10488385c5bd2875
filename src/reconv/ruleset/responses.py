"""What a convolution met on real inputs: moments of its patches, streamed, and how a new kernel is judged by them.

    p: an input patch, y: the response that the original gave, e = y − w · p: by how much the one given now falls short

    C = Σ (p − μ_p)(p − μ_p)ᵀ,    E = Σ (e − μ_e)(p − μ_p)ᵀ,    W* = W + E (C + λ)⁻¹

W* is the closest kernel to the original's responses that there is, and the trained one where the patches say nothing.
Source:  Zhang et al. 2015, arXiv:1505.06798 (asymmetric reconstruction)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.ops.problem import flat_pads
from reconv.spec import ConvSpec

LONGEST = 2500  # values of a patch up to which all their products are kept; beyond: channels ⊗ taps
WIDEST = 6000  # channels a group beyond which nothing is kept
PATCHES, PATCHES_PER_VALUE = 4096, 3  # drawn at random from all that there are, at most: as many, and for each value
CHUNK = 2**23  # values of patches that are written out at once
RIDGE = 1e-3  # of the mean of C's diagonal
RIDGE_FEW = 1e-1  # more of it, times values / patches: few patches say little


def bounded(spec: ConvSpec) -> bool:
    """Whether moments of this convolution's patches fit into a bounded memory."""
    return spec.in_channels // spec.groups <= WIDEST


def most_patches(spec: ConvSpec) -> int:
    """As many patches of a convolution as are looked at."""
    return PATCHES + PATCHES_PER_VALUE * patch_length(spec)


def patch_length(spec: ConvSpec) -> int:
    """Values that an output is computed from."""
    return spec.in_channels // spec.groups * prod(spec.kernel_size)


def moment_bytes(spec: ConvSpec, dtype: torch.dtype) -> int:
    """What the moments of a convolution take in memory."""
    length, inputs, taps = patch_length(spec), spec.in_channels // spec.groups, prod(spec.kernel_size)
    own = length**2 if length <= LONGEST else inputs**2 + taps**2
    return spec.groups * (own + length * spec.out_channels // spec.groups) * computing(dtype).itemsize


def computing(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments: float64 stays, all others are float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def patches(spec: ConvSpec, input: Tensor) -> Tensor:
    """The input of each output, as a view (N, C, *out, *kernel); tap k is what w[…, k] is multiplied by.

    A transposed convolution is a plain one over its input with zeros between, its kernel turned round.
    """
    k, d = spec.kernel_size, spec.dilation
    if spec.transposed:
        input = _stuffed(input, spec.stride)
        extra = zip(k, d, spec.padding, spec.output_padding, strict=True)
        pads, stride = [(a * (n - 1) - lo, a * (n - 1) - hi + op) for n, a, (lo, hi), op in extra], [1] * len(k)
    else:
        pads, stride = list(spec.padding), list(spec.stride)
    if any(map(any, pads)):
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        input = F.pad(input, flat_pads(pads), mode=mode)
    for axis, (n, a, s) in enumerate(zip(k, d, stride, strict=True), 2):
        input = input.unfold(axis, a * (n - 1) + 1, s)[..., ::a]
    return input.flip(list(range(-len(k), 0))) if spec.transposed else input


def _stuffed(input: Tensor, stride: Sequence[int]) -> Tensor:
    """The input with stride − 1 zeros between neighbours."""
    if set(stride) == {1}:
        return input
    result = input.new_zeros(*input.shape[:2], *((n - 1) * s + 1 for n, s in zip(input.shape[2:], stride, strict=True)))
    spread: Any = (..., *(slice(None, None, s) for s in stride))
    result[spread] = input
    return result


@dataclass
class Responses:
    """Moments of one convolution over all that it saw; in float64 for float64 networks, else float32.

    Args:    spec: the convolution. outputs: how much each output counts, (groups, out / groups), squared: the scale
             of the batch norm behind it. work: multiply-accumulates that a fit may take.
    """

    spec: ConvSpec
    outputs: Tensor | None = None
    work: float = 6e10
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)  # (g, D)
    mean_left: Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)  # of e, (g, o)
    patches: Tensor | None = field(default=None, repr=False)  # C (g, D, D), where D is at most LONGEST
    channels: Tensor | None = field(default=None, repr=False)  # else of channels, taps and patches alike (g, i, i)
    taps: Tensor | None = field(default=None, repr=False)  # … (g, K, K)
    left: Tensor | None = field(default=None, repr=False)  # E (g, o, D); None: e is 0
    energy: Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)  # Σ (e − μ_e)², (g, o)
    metrics: dict[Any, tuple[Tensor, Metric]] = field(default_factory=dict, repr=False, compare=False)  # made so far

    def add(self, input: Tensor, left: Tensor | None = None, most: int | None = None, seed: int = 0) -> None:
        """Adds one run.

        Args:    input: (N, C, *spatial); left: e, (N, O, *out_spatial); None: the responses are the original's.
                 most: as many positions, drawn at random, at most; None: all.
        """
        dims, dtype = self.spec.spatial_dims, computing(input.dtype)
        if input.ndim == dims + 1:
            input, left = input[None], None if left is None else left[None]
        view = patches(self.spec, input.detach().to(dtype))
        rows = view.movedim(1, dims + 1)  # (N, *out, C, *kernel)
        chosen = _drawn(prod(rows.shape[: dims + 1]), most, seed)
        short = None if left is None else left.detach().to(dtype).movedim(1, -1).flatten(0, -2)
        g, taps = self.spec.groups, prod(self.spec.kernel_size)
        for some in chosen.split(max(1, CHUNK // (self.spec.in_channels * taps))):
            places = torch.unravel_index(some.to(rows.device), rows.shape[: dims + 1])
            each = rows[places].reshape(len(some), g, -1, taps)
            self._merge(each, None if short is None else short[some.to(rows.device)].reshape(len(some), g, -1))

    def _merge(self, rows: Tensor, left: Tensor | None) -> None:
        """The pairwise update of Chan, Golub, LeVeque 1979, on patches (S, g, i, K) and what they fall short."""
        count, (_, g, i, taps) = len(rows), rows.shape
        total = self.count + count
        flat = rows.flatten(2)
        mean = flat.mean(0)
        shift, share = mean - self.mean, self.count * count / total
        rows = (flat - mean).transpose(0, 1)  # (g, S, D)
        if i * taps <= LONGEST:
            self.patches = _sum(self.patches, rows.mT @ rows, share, shift, shift)
        else:
            by_channel = rows.reshape(g, count, i, taps).transpose(1, 2).flatten(2)
            by_tap = rows.reshape(g, count * i, taps)
            apart = shift.expand(g, i * taps).reshape(g, i, taps)
            self.channels = _sum(self.channels, by_channel @ by_channel.mT) + share * apart @ apart.mT
            self.taps = _sum(self.taps, by_tap.mT @ by_tap) + share * apart.mT @ apart
        if left is not None:
            mean_left = left.mean(0)
            gap, left = mean_left - self.mean_left, (left - mean_left).transpose(0, 1)
            self.left = _sum(self.left, left.mT @ rows, share, gap, shift)
            self.energy = self.energy + left.square().sum(1) + share * gap.square()
            self.mean_left = self.mean_left + gap * (count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        self.metrics.clear()

    def metric(self, weight: Tensor, centred: bool, dtype: torch.dtype, dense: Callable[[], Tensor]) -> Metric:
        """The metric for a convolution's weight, made once; dense: the weight as (g, o, D)."""
        key = (id(weight), None if weight.is_inference() else weight._version, centred, dtype)
        if key not in self.metrics:
            self.metrics[key] = weight, Metric(self, dense(), centred, dtype)  # the weight stays, and so does its id
        return self.metrics[key][1]


def _sum(known: Tensor | None, more: Tensor, share: float = 0.0, one: Tensor | None = None,
         other: Tensor | None = None) -> Tensor:  # fmt: skip
    if known is None:
        return more
    known += more
    if share and one is not None and other is not None:
        known += share * one[..., :, None] * other[..., None, :]
    return known


def _drawn(count: int, most: int | None, seed: int) -> Tensor:
    """Which of so many positions are looked at: all, or as many as are wanted, the same ones each time."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.randint(count, (most,), generator=torch.Generator().manual_seed(seed)).sort().values


class Metric:
    """How far a kernel (g, o, D) is from the original's responses, and which one is nearest.

        ‖X‖² = Σ_o s_o² · x_o (C + λ) x_oᵀ

    Args:    centred: the means do not count, since a bias or a batch norm takes them up.
    """

    def __init__(self, seen: Responses, weight: Tensor, centred: bool, dtype: torch.dtype) -> None:
        g, o, length = weight.shape
        self.centred, self.weight, self.inputs = centred, weight.to(dtype), seen.spec.in_channels // seen.spec.groups
        kept = [None if t is None else t.to(dtype) for t in (seen.patches, seen.channels, seen.taps, seen.left)]
        self.full, self.channels, taps, left = kept
        energy = seen.energy.to(dtype) + weight.new_zeros(g, o, dtype=dtype)
        trace = (self.full if self.full is not None else self.channels).diagonal(dim1=-2, dim2=-1).sum(-1)  # type: ignore[union-attr]
        self.taps = None if taps is None else taps / torch.where(trace > 0, trace, 1.0)[:, None, None]
        self.mean: Tensor | None = None
        if not centred:
            self.mean = seen.mean.to(dtype) * seen.count**0.5
            short = seen.mean_left.to(dtype) * seen.count**0.5
            trace = trace + self.mean.square().sum(-1)
            if left is not None:
                left = left + short[..., None] * self.mean[:, None]
                energy = energy + short.square()
        ridge = (RIDGE + RIDGE_FEW * length / max(seen.count, 1)) * trace / length
        self.ridge = torch.where(ridge > 0, ridge, 1.0)[:, None, None]
        self.scale = _scale(seen.outputs, weight).to(dtype)
        self.nearest = self.weight if left is None else self.weight + self.solve(left)
        self.left, self.energy = left, energy

    def times(self, x: Tensor, ridge: bool = True) -> Tensor:
        """x (C + λ)."""
        if self.full is not None:
            result = x @ self.full
        else:
            g, o, _ = x.shape
            by_tap = x.reshape(g, o, self.inputs, -1) @ self.taps[:, None]  # type: ignore[index]
            result = (by_tap.transpose(2, 3) @ self.channels[:, None]).transpose(2, 3).reshape(x.shape)  # type: ignore[index]
        if self.mean is not None:
            result = result + (x @ self.mean[..., None]) * self.mean[:, None]
        return result + self.ridge * x if ridge else result

    def weighted(self, x: Tensor) -> Tensor:
        """s² · x (C + λ): half of the gradient of ‖X‖²."""
        return self.scale.square()[..., None] * self.times(x)

    def solve(self, x: Tensor) -> Tensor:
        """x (C + λ)⁻¹."""
        if self.mean is None:
            return self._solve(x)
        v = self.mean[:, None]
        once, own = self._solve(x), self._solve(v)
        return once - (once @ v.mT) * own / (1 + own @ v.mT)  # Sherman & Morrison 1950

    def _solve(self, x: Tensor) -> Tensor:
        if self.full is not None:
            matrix = self.full.double() + self.ridge.double() * torch.eye(x.shape[-1], dtype=torch.float64,
                                                                          device=x.device)  # fmt: skip
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if bool(failed.any()):  # rounding has made a tiny eigenvalue negative
                return torch.linalg.solve(matrix, x.double().mT).mT.to(x.dtype)
            return torch.cholesky_solve(x.double().mT, factor).mT.to(x.dtype)
        a, u = torch.linalg.eigh(self.channels)
        b, v = torch.linalg.eigh(self.taps)
        g, o, _ = x.shape
        turned = u.mT[:, None] @ x.reshape(g, o, self.inputs, -1) @ v[:, None]
        turned = turned / (a.clamp(min=0)[:, None, :, None] * b.clamp(min=0)[:, None, None, :] + self.ridge[..., None])
        return (u[:, None] @ turned @ v.mT[:, None]).reshape(x.shape)

    def loss(self, kernel: Tensor) -> float:
        """‖W* − kernel‖²."""
        apart = self.nearest - kernel.to(self.nearest.dtype)
        return float((apart * self.weighted(apart)).sum())

    def error(self, kernel: Tensor) -> float:
        """‖responses of the kernel − the original's‖ / ‖the original's‖, on what was seen."""
        squared = self.scale.square()
        change = self.weight - kernel.to(self.weight.dtype)
        apart = ((change * self.times(change, ridge=False)).sum(-1) + self.energy) * squared
        size = (self._size + self.energy) * squared
        if self.left is not None:
            apart = apart + 2 * squared * (change * self.left).sum(-1)
            size = size + 2 * squared * (self.weight * self.left).sum(-1)
        near, whole = max(float(apart.sum()), 0.0), float(size.sum())
        return (near / whole) ** 0.5 if whole > 0 else 0.0 if near == 0 else float("inf")

    @cached_property
    def _size(self) -> Tensor:
        return (self.weight * self.times(self.weight, ridge=False)).sum(-1)

    def low_rank(self, rank: int) -> tuple[Tensor, Tensor]:
        """The nearest product (g, o, rank) · (g, rank, D), both factors of like size.

        U: eigenvectors of s W* (C + λ) W*ᵀ s;    Ŵ = s⁻¹ U_r · U_rᵀ s W*
        """
        scaled = self.scale[..., None] * self.nearest
        moment = scaled @ self.times(scaled).mT
        unit = torch.linalg.eigh(moment).eigenvectors.flip(-1)[..., :rank]
        left, right = unit / self.scale[..., None], unit.mT @ scaled
        ratio = (right.norm(dim=-1) / left.norm(dim=-2)).sqrt()
        ratio = torch.where(ratio > 0, ratio, 1.0)
        return left * ratio[:, None], right / ratio[..., None]


def _scale(outputs: Tensor | None, weight: Tensor) -> Tensor:
    """How much each output counts, the root mean square made 1; none counts for less than a little."""
    g, o, _ = weight.shape
    if outputs is None:
        return weight.new_ones(g, o)
    root = outputs.to(weight.device, torch.float64).reshape(g, o).sqrt()
    size = root.square().mean().sqrt()
    return (root / torch.where(size > 0, size, 1.0)).clamp(min=1e-2)
