"""What all layers share: weights in TensorFlow's layout, made when the input's channels are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from reconv.errors import ConvError, conv_error
from reconv.tensorflow import activations, constraints, initializers, regularizers
from reconv.tensorflow.arguments import Call, Ints, Pairs, Sizes
from reconv.tensorflow.compute import Settings
from reconv.tensorflow.convert import Array, array

DATA_FORMATS = ("channels_last", "channels_first")


class Common(TypedDict, total=False):
    """Arguments that every layer takes."""

    activation: str | Callable[[Tensor], Tensor] | None
    use_bias: bool
    bias_initializer: Any
    bias_regularizer: Any
    activity_regularizer: Any
    bias_constraint: Any
    trainable: bool
    name: str | None
    in_channels: int | None
    device: Any
    dtype: torch.dtype | None


class Role(NamedTuple):
    """How a weight begins, what it adds to the loss, and where it must stay."""

    initializer: Callable[..., Any]
    regularizer: Callable[[Tensor], Tensor] | None
    constraint: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, initializer: Any, regularizer: Any, constraint: Any, default: str) -> Role:
        chosen = initializers.get(default if initializer is None else initializer)
        return cls(chosen, regularizers.get(regularizer), constraints.get(constraint))


class Layer(LazyModuleMixin, nn.Module):
    """A convolution of Keras.

    Its weights get their values at the first call, which tells the input's channels, or at once where `in_channels`
    is given. Until then they are torch's UninitializedParameter: the layer can be copied, moved, compiled, and take a
    state dict or Keras' weights; but save it, export it and give it to an optimiser when they are made.
    """

    spatial_dims: ClassVar[int]
    can_be_causal: ClassVar[bool] = True
    bias: Tensor | None

    def __init__(
        self,
        kernels: Mapping[str, Role],
        sizes: tuple[Sizes, Sizes, Sizes],
        padding: str,
        data_format: str | None,
        *,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        use_bias: bool = True,
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        bias_constraint: Any = None,
        trainable: bool = True,
        name: str | None = None,
        in_channels: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.spelling = self._spelled(data_format)
        self.data_format = data_format or DATA_FORMATS[0]
        self.padding = self._padding(padding)
        kernel_size, strides, dilation_rate = sizes
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        self.strides = self._sizes("strides", strides)
        self.dilation_rate = self._sizes("dilation_rate", dilation_rate)
        self.check_own()
        self.roles = dict(kernels)
        if use_bias:
            self.roles["bias"] = Role.of(bias_initializer, bias_regularizer, bias_constraint, "zeros")
        for weight in self.roles:
            make: Any = UninitializedParameter  # its type stub lacks the arguments
            self.register_parameter(weight, make(requires_grad=trainable, device=device, dtype=dtype))
        if not use_bias:
            self.register_parameter("bias", None)
        self.activation = activations.get(activation)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.activity_losses: list[Tensor] = []
        if in_channels is not None:
            self._begin(in_channels)

    # -- arguments --------------------------------------------------------------------------------
    def wrong(self, must: str, got: Mapping[str, object]) -> ConvError:
        return self.spelling.wrong(must, got)

    def _spelled(self, data_format: str | None) -> Call:
        call = Call(type(self).__name__, self.spatial_dims, data_format != DATA_FORMATS[1])
        if data_format is not None and data_format not in DATA_FORMATS:
            raise call.wrong(
                f"data_format must be one of {', '.join(DATA_FORMATS)}", {"data_format": repr(data_format)}
            )
        return call

    def _padding(self, padding: str) -> str:
        words = ("valid", "same", "causal") if self.can_be_causal and self.spatial_dims == 1 else ("valid", "same")
        if not isinstance(padding, str) or padding.lower() not in words:
            raise self.wrong(f"padding must be one of {', '.join(words)}", {"padding": repr(padding)})
        return padding.lower()

    def check_own(self) -> None:
        """Of the arguments that this kind alone takes."""
        raise NotImplementedError

    def _sizes(self, name: str, value: Sizes) -> Ints:
        sizes = self.spelling.integers(name, value)
        sizes = sizes * self.spatial_dims if len(sizes) == 1 else sizes
        if len(sizes) != self.spatial_dims or min(sizes) < 1:
            raise self.wrong(f"{name} must be an integer >= 1, or {self.spatial_dims} of them", {name: value})
        return sizes

    def count(self, name: str, value: int) -> int:
        """An argument that is one number, at least 1."""
        numbers = self.spelling.integers(name, value)
        if len(numbers) != 1 or numbers[0] < 1:
            raise self.wrong(f"{name} must be an integer >= 1", {name: value})
        return numbers[0]

    @property
    def settings(self) -> Settings:
        pads: Pairs | None = None
        if self.padding == "valid":
            pads = ((0, 0),) * self.spatial_dims
        elif self.padding == "causal":  # nothing of what comes later is seen
            pads = ((self.dilation_rate[0] * (self.kernel_size[0] - 1), 0),)
        return Settings(self.strides, pads, self.dilation_rate)

    # -- weights ----------------------------------------------------------------------------------
    def shapes(self, in_channels: int) -> dict[str, Ints]:
        """Of each kernel, in TensorFlow's layout, and of the bias."""
        raise NotImplementedError

    def _begin(self, in_channels: int) -> None:
        """As at a first call."""
        shape = [1] * (self.spatial_dims + 2)
        shape[-1 if self.spelling.channels_last else 1] = self.count("in_channels", in_channels)
        self._infer_parameters(self, (torch.empty(shape, device="meta"),))

    def initialize_parameters(self, inputs: Tensor) -> None:  # LazyModuleMixin's, before the first call
        self.spelling.check(input=inputs)
        shapes = self.shapes(self.spelling.channels(inputs.shape))
        for name, role in self.roles.items():
            weight = getattr(self, name)
            if isinstance(weight, UninitializedParameter):
                value = _tensor(role.initializer(shapes[name], dtype=weight.dtype))
                if tuple(value.shape) != shapes[name]:
                    raise self.wrong(f"the initializer of {name} must give {shapes[name]}",
                                     {"shape": tuple(value.shape)})  # fmt: skip
                with torch.no_grad():
                    weight.materialize(shapes[name])
                    weight.copy_(value)

    def weights(self) -> Iterator[tuple[nn.Parameter, Role]]:
        for name, role in self.roles.items():
            yield getattr(self, name), role

    def get_weights(self) -> list[Array]:
        """Copies of the kernels and the bias, in Keras' order and layout."""
        if self.has_uninitialized_params():
            return []
        return [array(weight) for weight, _ in self.weights()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Takes kernels and bias in Keras' order and layout; they tell the input's channels, too.

        Raises:  ConvError (a ValueError): when they are not as many, or not of the shapes of this layer.
        """
        tensors = {name: _tensor(value) for name, value in zip(self.roles, weights, strict=False)}
        if len(weights) != len(self.roles):
            raise self.wrong(f"weights must be {', '.join(self.roles)}", {"weights": len(weights)})
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wanted = self._wanted_shapes(next(iter(given.values())))
        if given != {name: wanted[name] for name in given}:
            raise self.wrong("weights must have the shapes of the layer", {"weights": given, "shapes": wanted})
        if self.has_uninitialized_params():
            self._begin(self.channels_of(given[next(iter(given))]))
        with torch.no_grad():
            for name, tensor in tensors.items():
                getattr(self, name).copy_(tensor)

    def _wanted_shapes(self, kernel: Ints) -> dict[str, Ints]:
        """The shapes that there are, or where there are none yet, those that go with such a first kernel."""
        if not self.has_uninitialized_params():
            return {name: tuple(getattr(self, name).shape) for name in self.roles}
        fits = len(kernel) == self.spatial_dims + 2 and self.channels_of(kernel) > 0
        return self.shapes(self.channels_of(kernel) if fits else getattr(self, "groups", 1))

    def channels_of(self, kernel: Ints) -> int:
        """The input's channels that the first kernel, of this shape, takes."""
        return kernel[-2]

    # -- calls ------------------------------------------------------------------------------------
    def computed(self, inputs: Tensor) -> Tensor:
        """The convolution, and the bias."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        self.spelling.check(input=inputs)
        self._check_channels(self.spelling.channels(inputs.shape))
        outputs = self.computed(inputs)
        if self.activation is not None:
            outputs = self.activation(outputs)
        if self.activity_regularizer is not None and self.training and torch.is_grad_enabled():
            self.activity_losses.append(self.activity_regularizer(outputs) / outputs.shape[0])
        return outputs

    def _check_channels(self, channels: int) -> None:
        wanted = self.channels_of(tuple(getattr(self, next(iter(self.roles))).shape))
        if channels != wanted:
            raise self.wrong(f"inputs must have {wanted} channels", {"channels": channels})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"activity_losses": []}  # these belong to a graph, which is not copied

    def extra_repr(self) -> str:
        names = ("filters", "kernel_size", "strides", "padding", "output_padding", "data_format", "dilation_rate",
                 "groups", "depth_multiplier", "name")  # fmt: skip
        shown = {name: getattr(self, name) for name in names if getattr(self, name, None) is not None}
        return ", ".join(f"{name}={value!r}" for name, value in (shown | {"use_bias": self.bias is not None}).items())


def losses(module: nn.Module) -> list[Tensor]:
    """What the regularisers of a module's layers add to the loss, one scalar each.

    Those of weights that can be trained; and those of activities, each over its batch, from calls in training mode
    since the last time that they were collected.

    Example:
             >>> from reconv.tensorflow.layers import Conv1D
             >>> layer = Conv1D(1, 2, in_channels=1, kernel_initializer="ones", kernel_regularizer="l2")
             >>> [loss.item() for loss in losses(layer)]
             [0.0199...]
    """
    found = []
    for layer in _layers(module):
        if layer.has_uninitialized_params():
            continue
        found += [role.regularizer(weight) for weight, role in layer.weights()
                  if role.regularizer is not None and weight.requires_grad]  # fmt: skip
        found += layer.activity_losses
        layer.activity_losses = []
    return found


@torch.no_grad()
def constrain(module: nn.Module) -> None:
    """Puts the weights of a module's layers, where they can be trained, back to where their constraints allow.

    To be called after each step of the optimiser.

    Example:
             >>> from reconv.tensorflow.layers import Conv1D
             >>> layer = Conv1D(1, 2, in_channels=1, kernel_initializer=lambda shape, dtype: torch.tensor(
             ...     [-1.0, 2.0]).view(shape), kernel_constraint="non_neg")
             >>> constrain(layer)
             >>> layer.kernel.flatten().tolist()
             [0.0, 2.0]
    """
    for layer in _layers(module):
        for weight, role in () if layer.has_uninitialized_params() else layer.weights():
            if role.constraint is not None and weight.requires_grad:
                weight.copy_(role.constraint(weight))


def _layers(module: nn.Module) -> Iterator[Layer]:
    if not isinstance(module, nn.Module):
        raise conv_error("reconv.tensorflow", "module must be a torch.nn.Module", got={"module": type(module).__name__},
                         also=TypeError)  # fmt: skip
    return (layer for layer in module.modules() if isinstance(layer, Layer))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
