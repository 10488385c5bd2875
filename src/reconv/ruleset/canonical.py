"""The trained weight in one form for every kind of convolution, and what is computed on it.

The dense form is (groups, out / groups, in / groups, *kernel) in float64, transposed or not: a rule writes its algebra
once. Weights go back to torch's own layout, and to the site's own dtype, at the very end.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from reconv.errors import conv_error
from reconv.ruleset.rule import Weights
from reconv.spec import Block, Branches, Chain, ConvSpec
from reconv.surgery.sites import Site

T = TypeVar("T")


def dense(site: Site) -> Tensor:
    """The site's weight as (groups, out / groups, in / groups, *kernel), float64."""
    return dense_weight(site.spec, site.weight)


def dense_weight(spec: ConvSpec, weight: Tensor) -> Tensor:
    """A weight in torch's layout as (groups, out / groups, in / groups, *kernel), float64.

    Example:
             >>> spec = ConvSpec(in_channels=4, out_channels=6, kernel_size=(3,), groups=2, transposed=True)
             >>> dense_weight(spec, torch.ones(spec.weight_shape)).shape
             torch.Size([2, 3, 2, 3])
    """
    grouped = float64(weight).reshape(spec.groups, -1, *spec.weight_shape[1:])
    return grouped.transpose(1, 2) if spec.transposed else grouped


def torch_weight(spec: ConvSpec, weight: Tensor) -> Tensor:
    """The inverse of `dense_weight`: from the dense form to torch's layout; the dtype stays."""
    return (weight.transpose(1, 2) if spec.transposed else weight).reshape(spec.weight_shape).contiguous()


def float64(tensor: Tensor) -> Tensor:
    """A detached copy in float64, on the same device where that device has float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


def relative_error(exact: Tensor, near: Tensor) -> float:
    """‖exact − near‖ / ‖exact‖ (0 where both vanish)."""
    norm, distance = float(exact.norm()), float((exact - near).norm())
    return distance / norm if norm else (0.0 if distance == 0 else float("inf"))


def chained(*weights: Tensor) -> Tensor:
    """The dense kernel of convolutions one after the other, no two of which extend along the same axis."""
    return reduce(lambda first, then: torch.einsum("gmi...,gom...->goi...", first, then), weights)


# -- low rank -----------------------------------------------------------------------------------------
def left_basis(matrix: Tensor) -> Tensor:
    """Left singular vectors of each (…, m, n) matrix as columns, the strongest first; all m of them.

    They are eigenvectors of A·Aᵀ, which is far cheaper than an SVD where m is the smaller side. Being orthonormal,
    they lose nothing at full rank, however weak some directions are.
    """
    largest = matrix.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = matrix / torch.where(largest > 0, largest, 1.0)  # squares must neither overflow nor vanish
    return torch.linalg.eigh(scaled @ scaled.mT).eigenvectors.flip(-1)


def thin_basis(matrix: Tensor) -> Tensor:
    """`left_basis` of the matrices or of their transposes, whichever side is smaller: what `low_rank` takes."""
    return left_basis(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT)


def low_rank(matrix: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest product (…, m, rank) · (…, rank, n) to each matrix, both factors of like size.

        A ≈ L·R,   ‖A − L·R‖² = Σ_{i > rank} σᵢ²

    Args:    basis: `thin_basis(matrix)`.
    Source:  Eckart & Young 1936
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    unit = basis[..., :rank]
    scaled = unit.mT @ (matrix.mT if tall else matrix)
    size = scaled.norm(dim=-1, keepdim=True).sqrt()
    size = torch.where(size > 0, size, 1.0)
    left, right = unit * size.mT, scaled / size
    return (right.mT, left.mT) if tall else (left, right)


_recent: deque[tuple[weakref.ref[Tensor], tuple[object, ...], object]] = deque(maxlen=16)


def once(site: Site, key: tuple[object, ...], compute: Callable[[], T]) -> T:
    """`compute()`, kept for the next proposals of the same site; only the last few results are kept."""
    weight = site.weight
    key = (None if weight.is_inference() else weight._version, *key)  # a weight changed in place is another weight
    for owner, known, value in tuple(_recent):
        if owner() is weight and known == key:
            return value  # type: ignore[return-value]
    result = compute()
    _recent.append((weakref.ref(weight), key, result))
    return result


# -- from dense parts to a state dict -----------------------------------------------------------------
def pack(site: Site, block: Block, parts: Sequence[Tensor], compose: Callable[..., Tensor]) -> Weights:
    """The state dict of a block from the dense weights of its convolutions, the site's bias on the last of them.

    Args:    parts: one dense weight per convolution of the block, from left to right.
             compose: those weights, once rounded to the site's dtype, to the dense kernel that they stand for.
    """
    final = [rounded(part, site) for part in parts]
    tensors: dict[str, Tensor] = {}
    for (key, spec), part in zip(_named_convs(block), final, strict=True):
        tensors[key + "weight"] = torch_weight(spec, part)
        if spec.bias and site.bias is not None:
            tensors[key + "bias"] = site.bias.detach().clone()
    return Weights(tensors, relative_error(dense(site), compose(*map(float64, final))))


def rounded(tensor: Tensor, site: Site) -> Tensor:
    """A float64 tensor in the site's dtype, on its device.

    Raises:  ConvError (an OverflowError): when the dtype cannot hold it.
    """
    result = tensor.to(dtype=site.dtype, device=site.device)
    if not bool(torch.isfinite(result).all()):
        raise conv_error("weights", "the new weights must be finite in the site's dtype",
                         got={"site": site.name, "dtype": site.dtype}, do="Use a wider dtype.",
                         spec=site.block, also=OverflowError)  # fmt: skip
    return result


def _named_convs(block: Block, prefix: str = "") -> Iterator[tuple[str, ConvSpec]]:
    """The convolutions of a block, from left to right, with their prefixes in its state dict."""
    if isinstance(block, ConvSpec):
        yield prefix, block
    elif isinstance(block, Chain | Branches):
        for position, part in enumerate(block.blocks):
            yield from _named_convs(part, f"{prefix}{position}.")
