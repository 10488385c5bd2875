"""Small networks of every kind of path, whose receptive fields are to be found."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int | tuple[int, ...], dims: int = 2, **settings: object) -> nn.Module:
    """A convolution with positive weights."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return positive(kind(inputs, outputs, kernel, **settings))


def transposed(inputs: int, outputs: int, kernel: int, dims: int = 2, **settings: object) -> nn.Module:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return positive(kind(inputs, outputs, kernel, **settings))


def positive(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for each in layer.parameters():
            each.abs_().add_(0.1)
    return layer


class Net(nn.Module):
    """Layers by name and a forward that combines them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.steps(self, *inputs)


def attention(net: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    scores = (net.q(tokens) @ net.k(tokens).transpose(-2, -1)).softmax(-1)
    return net.a((scores @ tokens).transpose(1, 2).unflatten(2, x.shape[2:]))


def window_attention(net: nn.Module, x: Tensor) -> Tensor:
    """Among the tokens of each 3×3 window, as in MaxViT's blocks."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // 3, 3, w // 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, c)
    x = F.scaled_dot_product_attention(net.q(x), net.k(x), x)
    x = x.view(n, h // 3, w // 3, 3, 3, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
    return net.a(x)


def grid_attention(net: nn.Module, x: Tensor) -> Tensor:
    """Among the tokens at one place of every 3×3 window."""
    n, c, h, w = x.shape
    x = x.view(n, c, 3, h // 3, 3, w // 3).permute(0, 3, 5, 2, 4, 1).reshape(-1, 9, c)
    x = F.scaled_dot_product_attention(net.q(x), net.k(x), x)
    x = x.view(n, h // 3, w // 3, 3, 3, c).permute(0, 5, 3, 1, 4, 2).reshape(n, c, h, w)
    return net.a(x)


def channels_last(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    y = net.norm(net.b(x).permute(0, 2, 3, 1))
    y = net.down(F.gelu(net.up(y))).permute(0, 3, 1, 2)
    return net.c(x + y)


def channel_shuffle(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    return net.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def focus(net: nn.Module, x: Tensor) -> Tensor:
    """Every second row and column to the channels."""
    return net.a(torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1))


def space_to_depth(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    return net.b(x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, c * 4, h // 2, w // 2))


def depth_to_space(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    return net.b(x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, h * 2, w * 2))


def unet(net: nn.Module, x: Tensor) -> Tensor:
    """Without padding, as it was first drawn: the skip is cropped to what comes up."""
    skip = net.a(x)
    up = net.up(net.b(F.max_pool2d(skip, 2)))
    edge = (skip.shape[2] - up.shape[2]) // 2
    return net.c(torch.cat([skip[:, :, edge : edge + up.shape[2], edge : edge + up.shape[3]], up], 1))


def squeeze_excite(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(x * torch.sigmoid(net.gate(x.mean((2, 3), keepdim=True))))


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    """A residual that is added in place, seen through the base and through a view."""
    x = net.a(x)
    x[:, :1].add_(net.b(x)[:, :1])
    return net.c(x.relu_())


def shuffle_unit(net: nn.Module, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, 1)
    return net.c(torch.cat([left, net.b(right)], 1))


def stacked_frames(net: nn.Module, x: Tensor) -> Tensor:
    """Folded into the batch and back, as in video networks."""
    n, c, t, h, w = x.shape
    x = net.a(x.transpose(1, 2).reshape(n * t, c, h, w))
    return net.b(x.view(n, t, *x.shape[1:]).transpose(1, 2))


def split_again(net: nn.Module, x: Tensor) -> Tensor:
    """What was concatenated is taken apart again: each part has seen its own only."""
    left, right = torch.cat([net.a(x), net.b(x)], 1).relu().split([3, 2], 1)
    return net.c(left) + net.d(right)[..., 1:, 1:]


def mixed_depthwise(net: nn.Module, x: Tensor) -> Tensor:
    """As in MixNet, over kernels of even size, which lean to one side."""
    parts = net.a(x).chunk(2, 1)
    x = torch.cat([net.b(parts[0]), net.c(parts[1])], 1)
    return net.e(net.d(x))


def shuffled_branches(net: nn.Module, x: Tensor) -> Tensor:
    """Two units of ShuffleNet v2."""
    for branch in (net.b, net.c):
        left, right = net.a(x).chunk(2, 1)
        x = torch.cat([left, branch(right)], 1)
        x = x.view(-1, 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    return net.c(x.chunk(2, 1)[0])


def coordinates(net: nn.Module, x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[2], dtype=x.dtype)[:, None].expand(len(x), 1, *x.shape[2:])
    return net.a(torch.cat([x, rows], 1))


def written_side_by_side(net: nn.Module, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 3, *x.shape[2:])
    y[:, :1] = x
    y[:, 1:] = net.a(x)
    return net.b(y) + net.c(y[:, :1])


def padded_channels(net: nn.Module, x: Tensor) -> Tensor:
    """The shortcut of the first ResNet for CIFAR, after a concatenation."""
    return net.c(F.pad(torch.cat([x, net.a(x)], 1), (0, 0, 0, 0, 1, 2)) + net.b(x))


Case = tuple[nn.Module, tuple[int, ...]]  # with the shape of its input


def chain(shape: tuple[int, ...], *layers: nn.Module) -> Case:
    return nn.Sequential(*layers), shape


def graph(shape: tuple[int, ...], forward: Callable[..., Tensor], **layers: nn.Module) -> Case:
    return Net(forward, **layers), shape


CASES: dict[str, Case] = {
    "plain": chain((1, 1, 23, 19), conv(1, 2, 3, padding=1), nn.ReLU(), conv(2, 2, 5), conv(2, 1, (3, 2))),
    "uneven": chain(
        (1, 1, 27, 17), conv(1, 2, (3, 5), stride=(2, 1), padding=(1, 2)), conv(2, 1, (4, 1), dilation=(2, 1))
    ),
    "strides": chain((1, 1, 41, 43), conv(1, 1, 7, stride=2), nn.MaxPool2d(3, 2, 1), conv(1, 1, 3, stride=2)),
    "skipping": chain((1, 1, 31, 29), conv(1, 1, 2, stride=3), conv(1, 1, 1, stride=2), conv(1, 1, 2)),
    "dilated": chain((1, 1, 45), *[conv(1, 1, 3, dims=1, dilation=2**i) for i in range(4)]),
    "grouped": chain((2, 4, 11, 13), conv(4, 4, 3, groups=4), conv(4, 6, 3, groups=2)),
    "same": chain((1, 1, 19, 17), conv(1, 1, 4, padding="same"), conv(1, 1, 2, padding="same", dilation=3)),
    "residual": graph(
        (1, 1, 17, 15), lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(1, 2, 1), b=conv(1, 2, 5, padding=2), c=conv(2, 1, 3)
    ),
    "shortcut": graph(
        (1, 1, 21, 19),
        lambda m, x: m.d(m.a(x) + m.c(m.b(x))),
        a=conv(1, 1, 1, stride=2),
        b=conv(1, 1, 3, stride=2, padding=1),
        c=conv(1, 1, 3, padding=1),
        d=conv(1, 1, 1),
    ),
    "inception": graph(
        (1, 1, 17, 19),
        lambda m, x: m.d(torch.cat([m.a(x), m.b(x), m.c(F.avg_pool2d(x, 3, 1, 1))], 1)),
        a=conv(1, 1, 1),
        b=conv(1, 2, (1, 7), padding=(0, 3)),
        c=conv(1, 1, (5, 1), padding=(2, 0)),
        d=conv(4, 1, 3),
    ),
    "atrous pyramid": graph(
        (1, 1, 25, 27),
        lambda m, x: m.d(torch.cat([m.a(x), m.b(x), m.c(x)], 1)),
        a=conv(1, 1, 1),
        b=conv(1, 1, 3, dilation=3, padding=3),
        c=conv(1, 1, 3, dilation=6, padding=6),
        d=conv(3, 1, 1),
    ),
    "up, even": chain((1, 1, 9, 11), transposed(1, 1, 4, stride=2, padding=1), conv(1, 1, 1)),
    "up, odd": chain((1, 1, 9, 11), transposed(1, 2, 3, stride=2, padding=1, output_padding=1), conv(2, 1, 3)),
    "up, gaps": chain((1, 1, 7, 6), transposed(1, 1, 2, stride=3, bias=False), conv(1, 1, 1)),
    "up, gaps filled": chain((1, 1, 9, 8), transposed(1, 1, 2, stride=3), conv(1, 1, 2, stride=2)),
    "up, dilated": chain((1, 1, 15), transposed(1, 1, 3, dims=1, stride=2, dilation=2), conv(1, 1, 4, dims=1)),
    "down and up": chain(
        (1, 1, 39), conv(1, 1, 3, dims=1, stride=4), transposed(1, 1, 5, dims=1, stride=3), conv(1, 1, 2, dims=1)
    ),
    "3D": chain((1, 1, 11, 9, 10), conv(1, 2, (3, 1, 2), dims=3), nn.AvgPool3d(2), conv(2, 1, 2, dims=3)),
    "pools": chain((1, 1, 26, 28), nn.AvgPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, dilation=3), conv(1, 1, 2)),
    "power pool": chain((1, 1, 15, 17), conv(1, 1, 2), nn.LPPool2d(2, 3), conv(1, 1, 2)),
    "adaptive pool": chain((1, 1, 11, 14), conv(1, 1, 2), nn.AdaptiveAvgPool2d((4, 6)), conv(1, 1, 2)),
    "adaptive pool 1D": chain((1, 1, 18), conv(1, 1, 2, dims=1), nn.AdaptiveMaxPool1d(7), conv(1, 1, 2, dims=1)),
    "global pool": chain((1, 1, 12, 14), conv(1, 2, 3, stride=2), nn.AdaptiveAvgPool2d(1), conv(2, 2, 1)),
    "pool to rows": graph(
        (1, 1, 9, 12), lambda m, x: m.b(m.a(x).mean(2).unsqueeze(2)), a=conv(1, 2, 3), b=conv(2, 2, (1, 3))
    ),
    "classifier": graph(
        (1, 1, 7, 9),
        lambda m, x: m.c(m.b(m.a(x).flatten(1)).view(-1, 1, 6)),
        a=conv(1, 2, 3),
        b=positive(nn.Linear(2 * 35, 6)),
        c=conv(1, 1, 3, dims=1),
    ),
    "gate": graph((1, 1, 14, 13), squeeze_excite, a=conv(1, 2, 3, stride=2), gate=conv(2, 2, 1), b=conv(2, 1, 2)),
    "channel gate": graph(
        (1, 1, 9, 8),
        lambda m, x: (lambda y: m.c(y * m.b(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3)))(m.a(x)),
        a=conv(1, 4, 3),
        b=conv(1, 1, 3, dims=1, padding=1),
        c=conv(4, 1, 2),
    ),
    "pixel shuffle": chain((1, 1, 9, 11), conv(1, 4, 3), nn.PixelShuffle(2), conv(1, 1, 3)),
    "pixel unshuffle": chain((1, 1, 16, 18), conv(1, 1, 3), nn.PixelUnshuffle(2), conv(4, 1, 3)),
    "depth to space": graph((1, 1, 9, 8), depth_to_space, a=conv(1, 4, 3), b=conv(1, 1, 2)),
    "space to depth": graph((1, 1, 12, 14), space_to_depth, a=conv(1, 1, 3), b=conv(4, 1, 2)),
    "focus": graph((1, 1, 14, 16), focus, a=conv(4, 1, 3)),
    "nearest": chain((1, 1, 11, 9), conv(1, 1, 3), nn.Upsample(scale_factor=2), conv(1, 1, 3)),
    "nearest, 2.5": chain((1, 1, 11, 9), conv(1, 1, 2), nn.Upsample(scale_factor=2.5), conv(1, 1, 2)),
    "nearest to size": chain((1, 1, 11, 9), nn.Upsample(size=(7, 12)), conv(1, 1, 2)),
    "nearest, exact": chain((1, 1, 11, 9), nn.Upsample(size=(7, 12), mode="nearest-exact"), conv(1, 1, 2)),
    "area": graph((1, 1, 12, 14), lambda m, x: m.a(F.interpolate(x, size=(5, 4), mode="area")), a=conv(1, 1, 2)),
    "channel shuffle": graph((1, 1, 11, 9), channel_shuffle, a=conv(1, 4, 3), b=conv(4, 4, 3, groups=2)),
    "native channel shuffle": chain((1, 1, 11, 9), conv(1, 4, 3), nn.ChannelShuffle(2), conv(4, 4, 3)),
    "channels last": graph(
        (2, 1, 22, 26),
        channels_last,
        a=conv(1, 4, 2, stride=2),
        b=conv(4, 4, 5, padding=2, groups=4),
        norm=nn.LayerNorm(4),
        up=positive(nn.Linear(4, 8)),
        down=positive(nn.Linear(8, 4)),
        c=conv(4, 1, 2),
    ),
    "einsum": graph(
        (1, 1, 9, 11),
        lambda m, x: m.b(torch.einsum("nchw,dc->ndhw", m.a(x), torch.ones(3, 2).double())),
        a=conv(1, 2, 3),
        b=conv(3, 1, 3),
    ),
    "reflect": chain(
        (1, 1, 13, 15),
        nn.ReflectionPad2d((2, 1, 0, 3)),
        conv(1, 1, 3),
        conv(1, 1, 3, padding=1, padding_mode="replicate"),
    ),
    "crop": chain((1, 1, 14, 15), nn.ZeroPad2d((-1, 2, 3, -2)), conv(1, 1, 3, stride=2), conv(1, 1, 2)),
    "cropped skip": graph(
        (1, 1, 26, 22), unet, a=conv(1, 2, 3), b=conv(2, 2, 3), up=transposed(2, 2, 2, stride=2), c=conv(4, 1, 3)
    ),
    "norms": chain((1, 1, 9, 11), conv(1, 4, 3), nn.BatchNorm2d(4).eval(), nn.Hardswish(), nn.PReLU(), conv(4, 1, 3)),
    "group norm": chain((1, 1, 9, 7), conv(1, 4, 3), nn.GroupNorm(2, 4), conv(4, 1, 1)),
    "instance norm": chain((1, 1, 9, 7), conv(1, 4, 3), nn.InstanceNorm2d(4), conv(4, 1, 1)),
    "local response norm": chain(
        (1, 2, 9, 7), nn.LocalResponseNorm(3), conv(2, 4, 3), nn.LocalResponseNorm(3), conv(4, 1, 2)
    ),
    "row softmax": graph((1, 1, 9, 7), lambda m, x: m.b(m.a(x).softmax(3)), a=conv(1, 1, 3), b=conv(1, 1, (3, 1))),
    "attention": graph((1, 2, 4, 5), attention, a=conv(2, 1, 1), q=nn.Linear(2, 2), k=nn.Linear(2, 2)),
    "window attention": graph(
        (1, 1, 10, 13),
        lambda m, x: window_attention(m, m.b(x)),
        a=conv(2, 1, 2),
        b=conv(1, 2, 2),
        q=nn.Linear(2, 2),
        k=nn.Linear(2, 2),
    ),
    "grid attention": graph(
        (1, 1, 10, 13),
        lambda m, x: grid_attention(m, m.b(x)),
        a=conv(2, 1, 2),
        b=conv(1, 2, 2),
        q=nn.Linear(2, 2),
        k=nn.Linear(2, 2),
    ),
    "unfold": graph(
        (1, 1, 13, 15),
        lambda m, x: m.a(F.unfold(x, (3, 2), stride=2, dilation=2).unflatten(2, (5, -1))),
        a=conv(6, 1, 2),
    ),
    "unfold and fold": graph(
        (1, 1, 9, 11),
        lambda m, x: m.a(F.fold(F.unfold(x, 3, padding=1).mean(1, True).expand(-1, 9, -1), x.shape[2:], 3, padding=1)),
        a=conv(1, 1, 2),
    ),
    "strided windows": graph((1, 1, 17), lambda m, x: m.a(x.unfold(2, 5, 2).mean(3)), a=conv(1, 1, 2, dims=1)),
    "flip": graph((1, 1, 15, 18), lambda m, x: m.b(m.a(x).flip(2, 3)), a=conv(1, 1, 2, stride=2), b=conv(1, 1, 3)),
    "and its flip": graph((1, 1, 8, 9), lambda m, x: m.a(x + x.flip(3)), a=conv(1, 1, 3)),
    "transpose": graph(
        (1, 1, 9, 11), lambda m, x: m.b(m.a(x).transpose(2, 3)), a=conv(1, 1, (3, 1)), b=conv(1, 1, (5, 1))
    ),
    "stack": graph(
        (1, 1, 9, 8),
        lambda m, x: m.b(torch.stack([x, m.a(x)], 2).flatten(1, 2)),
        a=conv(1, 1, 3, padding=1),
        b=conv(2, 1, 2),
    ),
    "split": graph((1, 1, 11, 9), shuffle_unit, a=conv(1, 4, 3), b=conv(2, 2, 3, padding=1), c=conv(4, 1, 1)),
    "by channel": graph((1, 3, 8, 7), lambda m, x: m.a(x[:, [2, 0, 1]] * 2), a=conv(3, 1, 3)),
    "transformed input": graph(
        (1, 3, 8, 7),
        lambda m, x: m.a(torch.cat([x[:, i].unsqueeze(1) * 0.5 + i for i in range(3)], 1)),
        a=conv(3, 1, 3),
    ),
    "in place": graph((1, 1, 11, 9), in_place, a=conv(1, 2, 3), b=conv(2, 2, 3, padding=1), c=conv(2, 1, 2)),
    "video": graph((2, 1, 7, 8, 6), stacked_frames, a=conv(1, 2, 3), b=conv(2, 1, (3, 1, 1), dims=3)),
    "gated linear": chain((1, 1, 9, 8), conv(1, 4, 3), nn.GLU(1), conv(2, 1, 3)),
    "repeated": graph(
        (1, 1, 8, 7),
        lambda m, x: m.b(m.a(x).repeat_interleave(3, 2).repeat(1, 2, 1, 1)),
        a=conv(1, 1, 2),
        b=conv(2, 1, 2),
    ),
    "split again": graph(
        (1, 1, 11, 10), split_again, a=conv(1, 3, 1), b=conv(1, 2, 5, padding=2), c=conv(3, 1, 3), d=conv(2, 1, 2)
    ),
    "mixed depthwise": graph(
        (1, 1, 13, 12),
        mixed_depthwise,
        a=conv(1, 4, 2),
        b=conv(2, 2, 2, groups=2),
        c=nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), conv(2, 2, 4, groups=2)),
        d=conv(4, 8, 3, groups=4),
        e=conv(8, 1, 1),
    ),
    "groups across branches": graph(
        (1, 1, 12, 11),
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)[..., 2:-2, 2:-2], x[..., 4:, :-4]], 1)),
        a=conv(1, 3, 5),
        b=conv(1, 2, 1),
        c=conv(6, 3, 2, groups=3),
    ),
    "shuffled branches": graph(
        (1, 4, 12, 11),
        shuffled_branches,
        a=conv(4, 4, 1),
        b=conv(2, 2, 3, padding=1, groups=2),
        c=conv(2, 2, 3, padding=1, groups=2),
    ),
    "coordinates": graph((1, 1, 7, 8), coordinates, a=conv(2, 1, 3)),
    "written side by side": graph(
        (1, 1, 9, 8), written_side_by_side, a=conv(1, 2, 3, padding=1), b=conv(3, 1, 2), c=conv(1, 1, 2)
    ),
    "padded channels": graph(
        (1, 1, 9, 8), padded_channels, a=conv(1, 2, 3, padding=1), b=conv(1, 6, 1), c=conv(6, 6, 2, groups=6)
    ),
}
