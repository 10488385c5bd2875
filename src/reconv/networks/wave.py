"""WaveNet: causal dilated convolutions over sound."""

from __future__ import annotations

from torch import Tensor, nn

from reconv.layers import Conv1d, PointwiseConv1d
from reconv.networks.catalogue import network
from reconv.networks.parts import named, relu


@network(
    paper="van den Oord et al. 2016, arXiv:1609.03499", input_shape=(1, 256, 16000), params=1_279_616,
    macs=20_250_624_000, published="", kinds="standard pointwise dilated dimensions skip",
)  # fmt: skip
def wavenet(
    channels: int = 256, classes: int = 256, width: int = 64, skips: int = 256, depth: int = 10, repeats: int = 3
) -> nn.Module:
    """WaveNet: stacks of gated causal convolutions of two taps, whose dilation doubles from layer to layer.

    The output at a time depends on no later input. Widths are not told in the paper; those here are common ones.

    Args:    channels: of the input, (N, channels, time): in the paper 256 levels, one of them 1.
             width: of the layers; skips: of their sum; depth: layers of a stack, with dilations 1, 2, 4, …;
             repeats: of the stack.
    Returns: a network that gives (N, classes, time).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  van den Oord et al. 2016, figure 4
    Example:
             >>> import torch
             >>> wavenet(1, 2, width=4, skips=4, depth=3)(torch.zeros(1, 1, 29)).shape
             torch.Size([1, 2, 29])
    """
    layers = [_Gated(width, skips, 2**i) for _ in range(repeats) for i in range(depth)]
    layers[-1].on = None  # there is no further layer
    last = named(act1=relu(), conv1=PointwiseConv1d(skips, skips), act2=relu(), conv2=PointwiseConv1d(skips, classes))
    return _WaveNet(_causal(channels, width), layers, last)


def _causal(inputs: int, outputs: int, dilation: int = 1) -> nn.Module:
    return Conv1d(inputs, outputs, 2, padding=((dilation, 0),), dilation=dilation)


class _Gated(nn.Module):
    """z = tanh(W · x) · sigmoid(V · x): what goes on, added to x, and what is skipped to the end."""

    def __init__(self, width: int, skips: int, dilation: int) -> None:
        super().__init__()
        self.conv = _causal(width, 2 * width, dilation)
        self.on: nn.Module | None = PointwiseConv1d(width, width)
        self.skip = PointwiseConv1d(width, skips)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        signal, gate = self.conv(x).chunk(2, 1)
        z = signal.tanh() * gate.sigmoid()
        return x + self.on(z) if self.on else x, self.skip(z)


class _WaveNet(nn.Module):
    def __init__(self, first: nn.Module, layers: list[_Gated], last: nn.Module) -> None:
        super().__init__()
        self.first, self.layers, self.last = first, nn.ModuleList(layers), last

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        return self.last(total)
