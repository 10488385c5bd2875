"""`ConvSpec`: one convolution, validated and normalised here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from numbers import Integral
from typing import Any

from reconv.errors import ConvError, conv_error
from reconv.shown import show

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """A convolution of 1, 2 or 3 spatial dimensions, transposed or not, in PyTorch's words.

        y[n, o, p] = b[o] + Σ_{c,k} w[o, c, k] · x[n, c, s·p + d·k − lo]        (c over the group of o)

    Args:    kernel_size: a tuple, which fixes the number of dimensions.
             stride, dilation, output_padding: an int, or one per dimension.
             padding: an int, one per dimension, a (lo, hi) pair per dimension, or "same" or "valid".
             padding_mode: "zeros", "reflect", "replicate" or "circular".
    Raises:  ConvError: when the arguments do not describe a convolution.
    Example:
             >>> spec = ConvSpec(in_channels=16, out_channels=32, kernel_size=(3, 3), padding=1)
             >>> spec.padding, spec.weight_shape, str(spec)
             (((1, 1), (1, 1)), (32, 16, 3, 3), 'ic16oc32k3x3p1')
    """

    in_channels: int
    out_channels: int
    kernel_size: Ints
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: Any = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, (tuple, list)) or not 1 <= len(self.kernel_size) <= 3:
            raise self._wrong("kernel_size must be a tuple of 1, 2 or 3 integers", "kernel_size", also=TypeError)
        self._set(kernel_size=self._per_axis("kernel_size", 1))
        self._set(stride=self._per_axis("stride", 1), dilation=self._per_axis("dilation", 1))
        self._set(output_padding=self._per_axis("output_padding", 0))
        self._set(padding=self._pads(), bias=bool(self.bias), transposed=bool(self.transposed))
        self._check_channels()
        self._check_modes()

    # -- validation -------------------------------------------------------------------------------
    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _wrong(self, must: str, *names: str, do: str = "", also: type[Exception] = ValueError) -> ConvError:
        kind = "conv_transpose" if self.transposed else "conv"
        dims = f"{len(self.kernel_size)}d" if isinstance(self.kernel_size, (tuple, list)) else ""
        got = {n: getattr(self, n) for n in names}
        return conv_error(kind + dims, must, got=got, do=do, spec=self._text_so_far(), also=also)

    def _text_so_far(self) -> str | None:
        """The text of a spec that is wrong; None where a field is not even of its type."""
        from reconv.spec.text import conv_text

        try:
            return conv_text(self)
        except (TypeError, ValueError, AttributeError):
            return None

    def _per_axis(self, name: str, least: int) -> Ints:
        dims = len(self.kernel_size)
        values = self._axes(name)
        if len(values) != dims or not all(_is_int(v) and v >= least for v in values):
            raise self._wrong(f"{name} must be an integer >= {least}, or {dims} of them", name, also=RuntimeError)
        return tuple(int(v) for v in values)

    def _axes(self, name: str) -> tuple[Any, ...]:
        """A value per axis: one number serves all."""
        value, dims = getattr(self, name), len(self.kernel_size)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            value = (value,)
        values = tuple(value)
        return values * dims if len(values) == 1 and name != "kernel_size" else values

    def _pads(self) -> Pads:
        dims = len(self.kernel_size)
        if isinstance(self.padding, str):
            return self._named_pads(self.padding)
        pairs = tuple((v, v) if not isinstance(v, (tuple, list)) else v for v in self._axes("padding"))
        if len(pairs) != dims or not all(len(p) == 2 and all(_is_int(v) and v >= 0 for v in p) for p in pairs):
            raise self._wrong(
                f"padding must be an integer >= 0, {dims} of them, {dims} pairs (lo, hi), 'same' or 'valid'",
                "padding", also=RuntimeError)  # fmt: skip
        return tuple((int(lo), int(hi)) for lo, hi in pairs)

    def _named_pads(self, name: str) -> Pads:
        if name == "valid" and not self.transposed:
            return ((0, 0),) * len(self.kernel_size)
        if name != "same" or self.transposed:
            raise self._wrong("padding must be a number, 'same' or 'valid' (a transposed one: a number)", "padding")
        if any(s != 1 for s in self.stride):
            raise self._wrong("padding='same' needs stride 1", "stride",
                              do="Give the padding as numbers.")  # fmt: skip
        total = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)

    def _check_channels(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 1:
                raise self._wrong(f"{name} must be an integer >= 1", name)
            self._set(**{name: int(getattr(self, name))})
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                common = math.gcd(self.in_channels, self.out_channels)
                choices = [str(g) for g in range(1, common + 1) if common % g == 0]
                listed = ", ".join(choices[:-1]) + " or " + choices[-1] if len(choices) > 1 else choices[0]
                raise self._wrong(f"{name} must be divisible by groups", name, "groups", do=f"Use groups {listed}.")

    def _check_modes(self) -> None:
        if self.padding_mode not in PADDING_MODES:
            raise self._wrong(f"padding_mode must be one of {', '.join(PADDING_MODES)}", "padding_mode")
        if not self.transposed:
            if any(self.output_padding):
                raise self._wrong("output_padding belongs to transposed convolutions", "output_padding")
            return
        if self.padding_mode != "zeros":
            raise self._wrong("a transposed convolution pads with zeros only", "padding_mode")
        for out, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if out >= max(s, d):
                raise self._wrong("output_padding must be smaller than stride or dilation",
                                  "output_padding", "stride", "dilation", also=RuntimeError)  # fmt: skip

    # -- what follows from it ---------------------------------------------------------------------
    @property
    def spatial_dims(self) -> int:
        return len(self.kernel_size)

    @property
    def weight_shape(self) -> Ints:
        """In PyTorch's order: (out, in / groups, *kernel), transposed (in, out / groups, *kernel)."""
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel_size)

    @property
    def pointwise(self) -> bool:
        return set(self.kernel_size) == {1}

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels and self.groups > 1

    @property
    def even_padding(self) -> Ints | None:
        """One number per axis where lo == hi everywhere, else None."""
        return tuple(lo for lo, _ in self.padding) if all(lo == hi for lo, hi in self.padding) else None

    @property
    def kind(self) -> str:
        """The field's word for it: `depthwise`, `pointwise`, `grouped`, `dilated`, … and `transposed`."""
        if self.depthwise:
            word = "depthwise"
        elif self.groups > 1:
            word = "grouped"
        elif self.pointwise:
            word = "pointwise"
        else:
            word = "standard" if len(set(self.kernel_size)) == 1 else "asymmetric"
        dilated = any(d > 1 and k > 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        words = [w for w, is_so in (("transposed", self.transposed), ("dilated", dilated)) if is_so]
        return " ".join([*words, *([word] if word != "standard" or not words else [])])

    def replace(self, **changes: object) -> ConvSpec:
        """The same convolution with some fields changed, validated anew."""
        return dataclass_replace(self, **changes)  # type: ignore[arg-type]

    def along(self, axes: Iterable[int]) -> ConvSpec:
        """The convolution along some of its axes only: one tap and nothing else along the others.

        Example:
                 >>> str(ConvSpec.parse("ic8oc8k3x5s2x1p1x2").along([0]))
                 'ic8oc8k3x1s2x1p1x0'
        """
        kept = set(axes)
        neutral = {"kernel_size": 1, "stride": 1, "padding": (0, 0), "dilation": 1, "output_padding": 0}
        changes = {
            name: tuple(value if axis in kept else other for axis, value in enumerate(getattr(self, name)))
            for name, other in neutral.items()
        }
        return self.replace(**changes)

    @classmethod
    def of(cls, module: Any) -> ConvSpec:
        """The spec of a torch.nn (or reconv.nn) convolution module, of any number of dimensions."""
        names = [f.name for f in fields(cls) if f.name not in ("bias", "padding")]
        missing = [n for n in names if not hasattr(module, n)]
        if missing:
            raise conv_error("ConvSpec.of", "the module must be a convolution",
                             got={"module": type(module).__name__}, do=f"It has no {missing[0]}.",
                             also=TypeError)  # fmt: skip
        return cls(bias=module.bias is not None, padding=module.padding, **{n: getattr(module, n) for n in names})

    def _repr_svg_(self) -> str | None:
        return show("block", self)

    def __str__(self) -> str:
        from reconv.spec.text import conv_text

        return conv_text(self)

    @classmethod
    def parse(cls, text: str) -> ConvSpec:
        """The inverse of `str(spec)`."""
        from reconv.spec.text import parse

        block = parse(text)
        if not isinstance(block, cls):
            raise conv_error("ConvSpec.parse", "the text must describe one convolution", got={"text": repr(text)},
                             do="Blocks are read by reconv.spec.parse.", also=ValueError)  # fmt: skip
        return block


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
