"""`feature_maps`: what each convolution of a network makes of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from reconv.drawing.maps import Row, png
from reconv.errors import conv_error
from reconv.layers.arguments import check_counts
from reconv.spec import ConvSpec
from reconv.surgery.clone import clone, fresh, tensors_of
from reconv.surgery.sites import ConvCall, check_sites, chosen
from reconv.surgery.trace import Trace
from reconv.writing import write_bytes

CHANNELS = 10
LEGEND = (
    "The channels that vary most over the first image, each on its own scale: its least value black, its largest white"
)


class FeatureMaps(Mapping[str, Tensor]):
    """The output of every convolution by the name of its site, in call order; a picture in notebooks.

    The second call of a shared convolution is `name#2`, its third `name#3`.

    Args:    calls: what ran, by the same names.
    """

    def __init__(self, tensors: Mapping[str, Tensor], calls: Mapping[str, ConvCall], image: Tensor, title: str) -> None:
        self.calls, self.title, self._tensors, self._image = dict(calls), title, dict(tensors), image

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {tuple(tensor.shape)}" for name, tensor in self.items())

    def save(self, path: str | Path, channels: int = CHANNELS) -> None:
        """Draws the maps as a PNG: a row for each convolution, with those channels that vary most over the image.

        Args:    channels: how many of each at most.
        Raises:  ConvError: when the path does not end in .png, channels < 1, or Pillow is missing.
        """
        if Path(path).suffix.lower() != ".png":
            raise conv_error("feature_maps", "the path must end in .png", got={"path": path}, also=ValueError)
        check_counts("feature_maps", channels=channels)
        write_bytes(path, self._drawn(channels), "feature_maps")

    def _drawn(self, channels: int) -> bytes:
        rows = [_row(name, self.calls[name], tensor, channels) for name, tensor in self.items()]
        return png([*_image_rows(self._image, channels), *rows], self.title, LEGEND)

    def _repr_png_(self) -> bytes:
        return self._drawn(CHANNELS)


def feature_maps(model: nn.Module, image: Tensor | Sequence[Any], sites: str | Sequence[str] = "*") -> FeatureMaps:
    """What each convolution that `model` runs on an image gives, before batch norm and activation.

    Args:    image: what the network takes: a tensor (N, C, *spatial), or a tuple where it takes several.
             sites: globs of module names, several as a list or with commas.
    Returns: FeatureMaps: a mapping from names to tensors in call order, and a picture of them (`save`). The network
             runs as a copy in evaluation mode.
    Raises:  ConvError: when the network rejects the image, or runs no convolution that is meant.
    Example:
             >>> import torch
             >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
             >>> feature_maps(net, torch.zeros(1, 1, 8, 8))
             0  (1, 4, 6, 6)
             2  (1, 2, 4, 4)
    """
    check_sites("feature_maps", sites)
    inputs = fresh(tensors_of(image))
    shown = inputs[0].clone()  # the network may write into its input
    trace = cast(_Keeping, _Keeping.of(clone(model), inputs))
    tensors: dict[str, Tensor] = {}
    calls: dict[str, ConvCall] = {}
    seen: Counter[str] = Counter()
    for run, output in zip(trace.runs, trace.kept, strict=True):
        name = run.call.name
        seen[name] += 1
        if chosen(name, sites):
            key = f"{name}#{seen[name]}" if seen[name] > 1 else name
            tensors[key], calls[key] = output, run.call
    if not tensors:
        raise conv_error("feature_maps", "sites must match at least one convolution", got={"sites": sites},
                         do=f"The network has {', '.join(seen) or 'none'}.", also=ValueError)  # fmt: skip
    return FeatureMaps(tensors, calls, shown, type(model).__name__)


class _Keeping(Trace):
    """A trace that keeps what each convolution gave, copied, since what follows may write into it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[Tensor] = []

    def record(self, name: str, kind: str, spec: ConvSpec, shape: tuple[int, ...], weight: Tensor, bias: Tensor | None,
               out: Tensor, module: nn.Module | None) -> None:  # fmt: skip
        super().record(name, kind, spec, shape, weight, bias, out, module)
        self.kept.append(out.clone())


# -- rows of the picture --------------------------------------------------------------------------
def _row(name: str, call: ConvCall, tensor: Tensor, channels: int) -> Row:
    maps = _real(tensor[0] if len(tensor) else tensor.new_zeros(tensor.shape[1:]))
    if maps[0].numel() == 1:  # a curve over the channels says more than their squares
        tiles: tuple[tuple[str, Any], ...] = (("all channels", maps.flatten().numpy()),)
    else:
        tiles = tuple((str(c), maps[c].numpy()) for c in strongest(maps)[:channels])
    return Row(name or "(the network itself)", (_words(call), f"gives {_shape(maps)}"), tiles)


def strongest(maps: Tensor) -> list[int]:
    """Channels by how much they vary over the map."""
    order: list[int] = maps.flatten(1).std(1).argsort(descending=True, stable=True).tolist()
    return order


def _image_rows(image: Tensor, channels: int) -> list[Row]:
    """The first image of the batch, in colour where it has three channels; nothing where it is no map."""
    if image.ndim < 3 or not image.numel():
        return []
    maps = _real(image[0])
    if maps.ndim == 3 and len(maps) == 3:
        low, high = maps.min(), maps.max()
        colours = ((maps - low) / (high - low).clamp_min(1e-12)).movedim(0, -1)
        return [Row("input", (_shape(maps),), (("", colours.numpy()),), colour=True)]
    names = [str(c) if len(maps) > 1 else "" for c in range(len(maps))]
    return [Row("input", (_shape(maps),), tuple(zip(names, maps.numpy(), strict=True))[:channels])]


def _words(call: ConvCall) -> str:
    """As in `3x3 depthwise, stride 2`; of one axis `3-tap standard`."""
    spec = call.spec
    size = _each(spec.kernel_size) + ("-tap" if spec.spatial_dims == 1 else "")
    changed = (("stride", spec.stride), ("dilation", spec.dilation))
    return ", ".join([f"{size} {call.kind}", *(f"{word} {_one(v)}" for word, v in changed if set(v) != {1})])


def _shape(maps: Tensor) -> str:
    slices = f"; slice {maps.shape[1] // 2 + 1}" if maps.ndim == 4 else ""
    return _each(maps.shape, " x ") + slices


def _each(numbers: Sequence[int], between: str = "x") -> str:
    return between.join(map(str, numbers))


def _one(values: Sequence[int]) -> str:
    """One number where all are the same."""
    return str(values[0]) if len(set(values)) == 1 else _each(values)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.abs() if tensor.is_complex() else tensor).double()
