"""What may stand between two convolutions: a batch norm, an activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from reconv.errors import conv_error
from reconv.spec import Activation, BatchNorm, Block
from reconv.spec.block import ACTIVATIONS

Norm = str | Callable[[int], nn.Module] | None
Act = str | Callable[[], nn.Module] | None

CLASSES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU,
    "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "identity": nn.Identity,
}  # fmt: skip


@fx.wrap  # a leaf there, as torch.nn's norms are
def check_axes(input: Tensor, dims: int) -> None:
    """A batch norm must never take an input without a batch for one of fewer dimensions."""
    if input.ndim != dims + 2:
        raise conv_error(f"BatchNorm{dims}d", f"input must be (N, C, *spatial) with {dims} spatial axes",
                         got={"input": tuple(input.shape)}, do="A batch norm needs the axis of the batch.",
                         also=ValueError)  # fmt: skip


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    spatial_dims: ClassVar[int]

    def _check_input_dim(self, input: Tensor) -> None:
        check_axes(input, self.spatial_dims)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    spatial_dims = 1


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    spatial_dims = 2


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    spatial_dims = 3


NORMS: tuple[type[_BatchNorm], ...] = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
_TORCHS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def between(layer: str, norm: Norm, activation: Act, channels: int, dims: int) -> Iterator[Block | nn.Module]:
    """The parts that stand between two convolutions: blocks where they have a name, else modules.

    Args:    layer: its name, for messages. norm: None, "batch", or what makes a module of the channels.
             activation: None, one of `ACTIVATIONS`, or what makes a module of nothing.
    """
    if norm is not None:
        yield _norm(layer, norm, channels, dims)
    if activation is not None:
        yield _activation(layer, activation)


def _norm(layer: str, norm: Any, channels: int, dims: int) -> Block | nn.Module:
    if norm == "batch" or norm in (_TORCHS[dims - 1], NORMS[dims - 1]):
        return BatchNorm()
    if isinstance(norm, str) or norm in _TORCHS:
        raise conv_error(layer, f"norm must be None, 'batch', or a class or function of the channels, for {dims}D maps",
                         got={"norm": _name(norm)}, also=ValueError)  # fmt: skip
    return _made(layer, "norm", norm, channels)


def _activation(layer: str, activation: Any) -> Block | nn.Module:
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise conv_error(layer, f"activation must be one of {', '.join(ACTIVATIONS)}, or a class",
                             got={"activation": repr(activation)}, also=ValueError)  # fmt: skip
        return Activation(activation)
    for name, kind in CLASSES.items():
        if activation is kind:
            return Activation(name)
    return _made(layer, "activation", activation)


def _made(layer: str, what: str, make: Any, *arguments: int) -> nn.Module:
    takes = "the channels" if arguments else "nothing"
    must = f"{what} must be a name, or a class or function that makes a module of {takes}"
    got = {what: _name(make)}
    if isinstance(make, nn.Module):
        raise conv_error(layer, must, got=got, do="Give the class, not a module of it.", also=TypeError)
    try:
        made = make(*arguments)
    except TypeError as error:
        raise conv_error(layer, must, got=got, do=f"Calling it gave: {error}.", also=TypeError) from error
    if not isinstance(made, nn.Module):
        raise conv_error(layer, must, got=got, also=TypeError)
    return made


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def named(module: nn.Module) -> Block | None:
    """The block of a norm or an activation; None where no name says what it computes."""
    kind = type(module)
    if kind in _TORCHS + NORMS and _settings(module) == _settings(kind(1)):
        return BatchNorm()
    for name, known in CLASSES.items():
        if kind is known and _settings(module) == _settings(known()):
            return Activation(name)
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module was told that changes its values."""
    free = {"training", "inplace", "num_features", "momentum"}
    return {name: value for name, value in vars(module).items() if name[0] != "_" and name not in free}
