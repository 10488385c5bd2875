"""Receptive fields against brute force: which inputs, made NaN, make an output NaN."""

import weakref
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import let_torchvision_import
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reconv.costing.receptive import ReceptiveField

CONVOLUTION = torch.ops.aten.convolution.default


class Convolutions(TorchDispatchMode):
    """The output of every convolution that runs, with its receptive field where an observer is given."""

    def __init__(self, observer=None):
        super().__init__()
        self.observer, self.outputs, self.fields = observer, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.observer:
            self.observer.op(func, args, kwargs, out)
        if func is CONVOLUTION:
            self.outputs.append(out.clone())
            self.fields.append(self.observer.of(out) if self.observer else None)
        return out


def fields(model: Callable[..., object], *inputs: Tensor) -> list[tuple[int, ...] | None]:
    with torch.no_grad(), Convolutions(ReceptiveField(inputs)) as seen:
        model(*inputs)
    return seen.fields


def outputs(model: Callable[..., object], x: Tensor) -> list[Tensor]:
    with torch.no_grad(), Convolutions() as seen:
        model(x)
    return seen.outputs


def brute_force(model: Callable[..., object], x: Tensor, axes: Iterable[int], poison: float) -> list[tuple[int, ...]]:
    """For each convolution and axis, the largest distance from the first to the last input that reaches an output.

    In each sample of a batch another slice of the input is made NaN, which goes through everything; where a weight of
    zero must not count, a large number, with which all else changes.
    """
    x = x[:1]
    before = outputs(model, x)
    sizes: list[tuple[int, ...]] = [()] * len(before)
    for axis in axes:
        batch = x.repeat(x.shape[axis], *[1] * (x.dim() - 1))
        for place, each in enumerate(batch):
            each.select(axis - 1, place).fill_(poison)
        for i, (plain, poisoned) in enumerate(zip(before, outputs(model, batch), strict=True)):
            apart = poisoned.unflatten(0, (len(batch), -1))  # frames may have gone into the batch, too
            reached = ~torch.isclose(apart, plain.expand(apart.shape), rtol=1e-9, atol=0)
            place = torch.arange(len(batch)).reshape(-1, *[1] * plain.dim())
            last = torch.where(reached, place, -1).amax(0)
            first = torch.where(reached, place, len(batch)).amin(0)
            sizes[i] += (int((last - first + 1).clamp(min=0).max()),)
    return sizes


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


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Sequential(conv(1, 2, 3, padding=1), nn.ReLU(), conv(2, 2, 5), conv(2, 1, (3, 2))), (1, 1, 23, 19)),
    "uneven": (
        nn.Sequential(conv(1, 2, (3, 5), stride=(2, 1), padding=(1, 2)), conv(2, 1, (4, 1), dilation=(2, 1))),
        (1, 1, 27, 17),
    ),
    "strides": (nn.Sequential(conv(1, 1, 7, stride=2), nn.MaxPool2d(3, 2, 1), conv(1, 1, 3, stride=2)), (1, 1, 41, 43)),
    "skipping": (nn.Sequential(conv(1, 1, 2, stride=3), conv(1, 1, 1, stride=2), conv(1, 1, 2)), (1, 1, 31, 29)),
    "dilated": (nn.Sequential(*[conv(1, 1, 3, dims=1, dilation=2**i) for i in range(4)]), (1, 1, 45)),
    "grouped": (nn.Sequential(conv(4, 4, 3, groups=4), conv(4, 6, 3, groups=2)), (2, 4, 11, 13)),
    "same": (nn.Sequential(conv(1, 1, 4, padding="same"), conv(1, 1, 2, padding="same", dilation=3)), (1, 1, 19, 17)),
    "residual": (
        Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(1, 2, 1), b=conv(1, 2, 5, padding=2), c=conv(2, 1, 3)),
        (1, 1, 17, 15),
    ),
    "shortcut": (
        Net(
            lambda m, x: m.d(m.a(x) + m.c(m.b(x))),
            a=conv(1, 1, 1, stride=2), b=conv(1, 1, 3, stride=2, padding=1), c=conv(1, 1, 3, padding=1), d=conv(1, 1, 1),
        ),
        (1, 1, 21, 19),
    ),  # fmt: skip
    "inception": (
        Net(
            lambda m, x: m.d(torch.cat([m.a(x), m.b(x), m.c(F.avg_pool2d(x, 3, 1, 1))], 1)),
            a=conv(1, 1, 1), b=conv(1, 2, (1, 7), padding=(0, 3)), c=conv(1, 1, (5, 1), padding=(2, 0)), d=conv(4, 1, 3),
        ),
        (1, 1, 17, 19),
    ),  # fmt: skip
    "atrous pyramid": (
        Net(
            lambda m, x: m.d(torch.cat([m.a(x), m.b(x), m.c(x)], 1)),
            a=conv(1, 1, 1), b=conv(1, 1, 3, dilation=3, padding=3), c=conv(1, 1, 3, dilation=6, padding=6), d=conv(3, 1, 1),
        ),
        (1, 1, 25, 27),
    ),  # fmt: skip
    "up, even": (nn.Sequential(transposed(1, 1, 4, stride=2, padding=1), conv(1, 1, 1)), (1, 1, 9, 11)),
    "up, odd": (nn.Sequential(transposed(1, 2, 3, stride=2, padding=1, output_padding=1), conv(2, 1, 3)), (1, 1, 9, 11)),
    "up, gaps": (nn.Sequential(transposed(1, 1, 2, stride=3, bias=False), conv(1, 1, 1)), (1, 1, 7, 6)),
    "up, gaps filled": (nn.Sequential(transposed(1, 1, 2, stride=3), conv(1, 1, 2, stride=2)), (1, 1, 9, 8)),
    "up, dilated": (nn.Sequential(transposed(1, 1, 3, dims=1, stride=2, dilation=2), conv(1, 1, 4, dims=1)), (1, 1, 15)),
    "down and up": (
        nn.Sequential(conv(1, 1, 3, dims=1, stride=4), transposed(1, 1, 5, dims=1, stride=3), conv(1, 1, 2, dims=1)),
        (1, 1, 39),
    ),
    "3D": (nn.Sequential(conv(1, 2, (3, 1, 2), dims=3), nn.AvgPool3d(2), conv(2, 1, 2, dims=3)), (1, 1, 11, 9, 10)),
    "pools": (nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, dilation=3), conv(1, 1, 2)), (1, 1, 26, 28)),
    "power pool": (nn.Sequential(conv(1, 1, 2), nn.LPPool2d(2, 3), conv(1, 1, 2)), (1, 1, 15, 17)),
    "adaptive pool": (nn.Sequential(conv(1, 1, 2), nn.AdaptiveAvgPool2d((4, 6)), conv(1, 1, 2)), (1, 1, 11, 14)),
    "adaptive pool 1D": (nn.Sequential(conv(1, 1, 2, dims=1), nn.AdaptiveMaxPool1d(7), conv(1, 1, 2, dims=1)), (1, 1, 18)),
    "global pool": (
        nn.Sequential(conv(1, 2, 3, stride=2), nn.AdaptiveAvgPool2d(1), conv(2, 2, 1)),
        (1, 1, 12, 14),
    ),
    "pool to rows": (
        Net(lambda m, x: m.b(m.a(x).mean(2).unsqueeze(2)), a=conv(1, 2, 3), b=conv(2, 2, (1, 3))),
        (1, 1, 9, 12),
    ),
    "classifier": (
        Net(
            lambda m, x: m.c(m.b(m.a(x).flatten(1)).view(-1, 1, 6)),
            a=conv(1, 2, 3), b=positive(nn.Linear(2 * 35, 6)), c=conv(1, 1, 3, dims=1),
        ),
        (1, 1, 7, 9),
    ),  # fmt: skip
    "gate": (Net(squeeze_excite, a=conv(1, 2, 3, stride=2), gate=conv(2, 2, 1), b=conv(2, 1, 2)), (1, 1, 14, 13)),
    "channel gate": (
        Net(
            lambda m, x: (lambda y: m.c(y * m.b(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3)))(m.a(x)),
            a=conv(1, 4, 3), b=conv(1, 1, 3, dims=1, padding=1), c=conv(4, 1, 2),
        ),
        (1, 1, 9, 8),
    ),  # fmt: skip
    "pixel shuffle": (nn.Sequential(conv(1, 4, 3), nn.PixelShuffle(2), conv(1, 1, 3)), (1, 1, 9, 11)),
    "pixel unshuffle": (nn.Sequential(conv(1, 1, 3), nn.PixelUnshuffle(2), conv(4, 1, 3)), (1, 1, 16, 18)),
    "depth to space": (Net(depth_to_space, a=conv(1, 4, 3), b=conv(1, 1, 2)), (1, 1, 9, 8)),
    "space to depth": (Net(space_to_depth, a=conv(1, 1, 3), b=conv(4, 1, 2)), (1, 1, 12, 14)),
    "focus": (Net(focus, a=conv(4, 1, 3)), (1, 1, 14, 16)),
    "nearest": (nn.Sequential(conv(1, 1, 3), nn.Upsample(scale_factor=2), conv(1, 1, 3)), (1, 1, 11, 9)),
    "nearest, 2.5": (nn.Sequential(conv(1, 1, 2), nn.Upsample(scale_factor=2.5), conv(1, 1, 2)), (1, 1, 11, 9)),
    "nearest to size": (nn.Sequential(nn.Upsample(size=(7, 12)), conv(1, 1, 2)), (1, 1, 11, 9)),
    "nearest, exact": (nn.Sequential(nn.Upsample(size=(7, 12), mode="nearest-exact"), conv(1, 1, 2)), (1, 1, 11, 9)),
    "area": (Net(lambda m, x: m.a(F.interpolate(x, size=(5, 4), mode="area")), a=conv(1, 1, 2)), (1, 1, 12, 14)),
    "channel shuffle": (Net(channel_shuffle, a=conv(1, 4, 3), b=conv(4, 4, 3, groups=2)), (1, 1, 11, 9)),
    "native channel shuffle": (nn.Sequential(conv(1, 4, 3), nn.ChannelShuffle(2), conv(4, 4, 3)), (1, 1, 11, 9)),
    "channels last": (
        Net(
            channels_last, a=conv(1, 4, 2, stride=2), b=conv(4, 4, 5, padding=2, groups=4), norm=nn.LayerNorm(4),
            up=positive(nn.Linear(4, 8)), down=positive(nn.Linear(8, 4)), c=conv(4, 1, 2),
        ),
        (2, 1, 22, 26),
    ),  # fmt: skip
    "einsum": (
        Net(lambda m, x: m.b(torch.einsum("nchw,dc->ndhw", m.a(x), torch.ones(3, 2).double())), a=conv(1, 2, 3), b=conv(3, 1, 3)),
        (1, 1, 9, 11),
    ),  # fmt: skip
    "reflect": (
        nn.Sequential(nn.ReflectionPad2d((2, 1, 0, 3)), conv(1, 1, 3), conv(1, 1, 3, padding=1, padding_mode="replicate")),
        (1, 1, 13, 15),
    ),
    "crop": (nn.Sequential(nn.ZeroPad2d((-1, 2, 3, -2)), conv(1, 1, 3, stride=2), conv(1, 1, 2)), (1, 1, 14, 15)),
    "cropped skip": (
        Net(unet, a=conv(1, 2, 3), b=conv(2, 2, 3), up=transposed(2, 2, 2, stride=2), c=conv(4, 1, 3)),
        (1, 1, 26, 22),
    ),
    "norms": (nn.Sequential(conv(1, 4, 3), nn.BatchNorm2d(4).eval(), nn.Hardswish(), nn.PReLU(), conv(4, 1, 3)), (1, 1, 9, 11)),
    "group norm": (nn.Sequential(conv(1, 4, 3), nn.GroupNorm(2, 4), conv(4, 1, 1)), (1, 1, 9, 7)),
    "instance norm": (nn.Sequential(conv(1, 4, 3), nn.InstanceNorm2d(4), conv(4, 1, 1)), (1, 1, 9, 7)),
    "local response norm": (nn.Sequential(nn.LocalResponseNorm(3), conv(2, 4, 3), nn.LocalResponseNorm(3), conv(4, 1, 2)), (1, 2, 9, 7)),
    "row softmax": (Net(lambda m, x: m.b(m.a(x).softmax(3)), a=conv(1, 1, 3), b=conv(1, 1, (3, 1))), (1, 1, 9, 7)),
    "attention": (Net(attention, a=conv(2, 1, 1), q=nn.Linear(2, 2), k=nn.Linear(2, 2)), (1, 2, 4, 5)),
    "window attention": (
        Net(lambda m, x: window_attention(m, m.b(x)), a=conv(2, 1, 2), b=conv(1, 2, 2), q=nn.Linear(2, 2), k=nn.Linear(2, 2)),
        (1, 1, 10, 13),
    ),
    "grid attention": (
        Net(lambda m, x: grid_attention(m, m.b(x)), a=conv(2, 1, 2), b=conv(1, 2, 2), q=nn.Linear(2, 2), k=nn.Linear(2, 2)),
        (1, 1, 10, 13),
    ),
    "unfold": (Net(lambda m, x: m.a(F.unfold(x, (3, 2), stride=2, dilation=2).unflatten(2, (5, -1))), a=conv(6, 1, 2)), (1, 1, 13, 15)),
    "unfold and fold": (
        Net(lambda m, x: m.a(F.fold(F.unfold(x, 3, padding=1).mean(1, True).expand(-1, 9, -1), x.shape[2:], 3, padding=1)), a=conv(1, 1, 2)),
        (1, 1, 9, 11),
    ),
    "strided windows": (
        Net(lambda m, x: m.a(x.unfold(2, 5, 2).mean(3)), a=conv(1, 1, 2, dims=1)),
        (1, 1, 17),
    ),
    "flip": (Net(lambda m, x: m.b(m.a(x).flip(2, 3)), a=conv(1, 1, 2, stride=2), b=conv(1, 1, 3)), (1, 1, 15, 18)),
    "and its flip": (Net(lambda m, x: m.a(x + x.flip(3)), a=conv(1, 1, 3)), (1, 1, 8, 9)),
    "transpose": (Net(lambda m, x: m.b(m.a(x).transpose(2, 3)), a=conv(1, 1, (3, 1)), b=conv(1, 1, (5, 1))), (1, 1, 9, 11)),
    "stack": (Net(lambda m, x: m.b(torch.stack([x, m.a(x)], 2).flatten(1, 2)), a=conv(1, 1, 3, padding=1), b=conv(2, 1, 2)), (1, 1, 9, 8)),
    "split": (Net(shuffle_unit, a=conv(1, 4, 3), b=conv(2, 2, 3, padding=1), c=conv(4, 1, 1)), (1, 1, 11, 9)),
    "by channel": (Net(lambda m, x: m.a(x[:, [2, 0, 1]] * 2), a=conv(3, 1, 3)), (1, 3, 8, 7)),
    "transformed input": (
        Net(lambda m, x: m.a(torch.cat([x[:, i].unsqueeze(1) * 0.5 + i for i in range(3)], 1)), a=conv(3, 1, 3)),
        (1, 3, 8, 7),
    ),
    "in place": (Net(in_place, a=conv(1, 2, 3), b=conv(2, 2, 3, padding=1), c=conv(2, 1, 2)), (1, 1, 11, 9)),
    "video": (Net(stacked_frames, a=conv(1, 2, 3), b=conv(2, 1, (3, 1, 1), dims=3)), (2, 1, 7, 8, 6)),
    "gated linear": (nn.Sequential(conv(1, 4, 3), nn.GLU(1), conv(2, 1, 3)), (1, 1, 9, 8)),
    "repeated": (
        Net(lambda m, x: m.b(m.a(x).repeat_interleave(3, 2).repeat(1, 2, 1, 1)), a=conv(1, 1, 2), b=conv(2, 1, 2)),
        (1, 1, 8, 7),
    ),
}  # fmt: skip


def sample(shape: Sequence[int]) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("name", CASES)
def test_as_by_brute_force(name):
    model, shape = CASES[name]
    model, x = model.double(), sample(shape)
    truth = brute_force(model, x, range(2, len(shape)), float("nan"))
    if name == "video":  # its first convolution slides along the frames' axes only
        truth[0] = truth[0][1:]
    assert fields(model, x) == truth


INTERPOLATIONS = {
    "linear, 2": ({"scale_factor": 2, "mode": "bilinear"}, (8, 7)),
    "linear, 1.5": ({"scale_factor": 1.5, "mode": "bilinear"}, (9, 8)),
    "linear to size": ({"size": (13, 5), "mode": "bilinear"}, (7, 12)),
    "linear by corners": ({"size": (13, 7), "mode": "bilinear", "align_corners": True}, (7, 10)),
    "linear to one row": ({"size": (1, 3), "mode": "bilinear", "align_corners": True}, (5, 7)),
    "cubic": ({"scale_factor": 2, "mode": "bicubic"}, (12, 13)),
    "cubic, 3": ({"scale_factor": 3, "mode": "bicubic"}, (10, 9)),
}


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_interpolation_reads_no_weight_of_zero(name):
    settings, size = INTERPOLATIONS[name]
    kernel = (1, 2) if settings.get("size", (0,))[0] == 1 else 2
    model = Net(lambda m, x: m.a(F.interpolate(x, **settings)), a=conv(1, 1, kernel)).double()
    x = sample((1, 1, *size))
    assert fields(model, x) == brute_force(model, x, (2, 3), 1e6)


layers = st.one_of(
    st.builds(lambda k, s, d: conv(1, 1, k, dims=1, stride=s, dilation=d), *map(st.integers, (1, 1, 1), (4, 3, 3))),
    st.builds(lambda k, s, d: transposed(1, 1, k, dims=1, stride=s, dilation=d, bias=False),
              *map(st.integers, (1, 1, 1), (5, 3, 2))),
    st.builds(nn.MaxPool1d, st.integers(1, 3), st.integers(1, 2)),
    st.builds(lambda scale: nn.Upsample(scale_factor=scale), st.sampled_from([2, 3, 1.5])),
)  # fmt: skip


@given(st.lists(layers, min_size=1, max_size=5))
@settings(max_examples=60)
def test_any_chain_as_by_brute_force(chain):
    model = nn.Sequential(*chain, conv(1, 1, 1, dims=1)).double()
    x = sample((1, 1, 150))
    try:
        found = fields(model, x)
    except RuntimeError:  # the input is too short for so many strides
        assume(False)
    assume(all(size is None or size[0] <= 40 for size in found))  # enough positions see everything that they can
    assert [size or (0,) for size in found] == brute_force(model, x, [2], float("nan"))


UNSEEN = {
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(1, 9, 9, 2, dtype=x.dtype), align_corners=False),
    "sorted rows": lambda x: x.sort(2).values,
    "rolled": lambda x: x.roll(1, 2),
    "put together in space": lambda x: torch.cat([x, x], 3),
    "tokens with one more": lambda x: torch.cat([x.flatten(2)[..., :9], x.flatten(2)], 2).unflatten(2, (10, 9)),
    "scaled by a number read out": lambda x: x / x.max().item(),
    "out of Python": lambda x: torch.from_numpy(x.numpy() * 2),
    "written in two places": lambda x: torch.zeros_like(x).index_copy_(2, torch.arange(9), x),
    "spectrum": lambda x: torch.fft.rfft(x).abs(),
    "kernel from positions": lambda x: F.conv2d(x, x[..., :3, :3]),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_unknown_is_none_and_never_a_number(name):
    layer = conv(1, 1, 3).double()
    assert fields(lambda x: layer(UNSEEN[name](x)), sample((1, 1, 9, 9)))[-1] is None


def test_an_unknown_branch_makes_the_sum_unknown():
    a, b = conv(1, 1, 1).double(), conv(1, 1, 3).double()
    assert fields(lambda x: b(a(x) + a(x.sort(2).values)), sample((1, 1, 9, 9))) == [(1, 1), None, None]


def stale_view(x: Tensor) -> Tensor:
    view = x[:, :, 1:]
    x[:, :1].copy_(x.mean((2, 3), keepdim=True).expand_as(x[:, :1]))
    return view


def stitched(x: Tensor) -> Tensor:
    canvas = x.new_zeros(1, 1, 9, 18)
    canvas[..., :9] = x
    canvas[..., 9:] = x
    return canvas


def side_by_side(x: Tensor) -> Tensor:
    canvas = x.new_empty(1, 2, 9, 9)
    canvas[:, :1] = x
    canvas[:, 1:] = F.avg_pool2d(x, 5, 1, 2)
    return canvas


def padded_by_hand(x: Tensor) -> Tensor:
    canvas = x.new_zeros(1, 1, 13, 12)
    canvas[..., 2:11, 1:10].copy_(x)
    return canvas


WRITTEN = {
    "a view of what was changed": (stale_view, None),
    "tiles": (stitched, None),
    "channels": (side_by_side, (7, 7)),
    "a frame around it": (padded_by_hand, (3, 3)),
    "a sum in place": (lambda x: (x * 1).add_(F.avg_pool2d(x, 3, 1, 1)), (5, 5)),
    "through a reshaped view": (lambda x: [y := x * 2, y.view(-1).mul_(3)][0], (3, 3)),
    "overwritten": (lambda x: F.avg_pool2d(x, 3, 1, 1).copy_(x), (3, 3)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_writes_in_place_reach_every_view_of_the_storage(name):
    write, expected = WRITTEN[name]
    weight = torch.ones(1, 1, 3, 3).double()
    found = fields(lambda x: F.conv2d((y := write(x * 1)), weight.expand(1, y.shape[1], 3, 3)), sample((1, 1, 9, 9)))
    assert found[-1] == expected


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_any_mode_counts_as_more_input(mode, dims):
    chain = nn.Sequential(*[conv(1, 1, 3, dims, padding=1, padding_mode=mode) for _ in range(3)]).double()
    assert fields(chain, sample((1, 1, *(7, 6, 5)[:dims]))) == [(size,) * dims for size in (3, 5, 7)]


def test_small_maps_do_not_clip():
    """At 1×1 the map still has neighbours that a larger input would fill."""
    chain = nn.Sequential(*[conv(1, 1, 3, stride=2, padding=1) for _ in range(5)])
    assert fields(chain, torch.zeros(1, 1, 4, 4)) == [(size, size) for size in (3, 7, 15, 31, 63)]


INPUTS = {
    "twins": (lambda m, x, y: m(x) + m(F.max_pool2d(y, 3, 1, 1)), [(1, 1, 9, 9), (1, 1, 9, 9)], (7, 7)),
    "an image and a mask": (lambda m, x, y: m(x[:, :1] * y), [(1, 3, 9, 8), (1, 1, 9, 8)], (5, 5)),
    "an image and a time": (lambda m, x, t: m(x + t.sin().view(1, 1, 1, 1)), [(1, 1, 9, 9), (1,)], (5, 5)),
    "two sizes": (lambda m, x, y: m(x) + m(y)[..., :7, :7], [(1, 1, 9, 9), (1, 1, 11, 9)], None),
    "unbatched": (lambda m, x: m(x), [(1, 9, 9)], (5, 5)),
    "rows of sound": (lambda m, x: m(x.view(1, 1, 5, -1)), [(1, 45)], None),
    "sound": (lambda m, x: m(x[:, None, None, ::2].expand(-1, -1, 9, -1)), [(1, 31)], (9,)),
    "nothing of it": (lambda m, x: m(torch.ones(1, 1, 9, 9)), [(1, 1, 9, 9)], None),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_any_rank_and_number(name):
    forward, shapes, expected = INPUTS[name]
    layer = conv(1, 1, 3)
    last = nn.Conv2d(1, 1, 3)
    inputs = [torch.zeros(shape) for shape in shapes]
    assert fields(lambda *xs: last(forward(layer, *xs)), *inputs)[-1] == expected


def test_tokens_through_an_embedding():
    embed, layer = nn.Embedding(9, 4), conv(4, 1, 3, dims=1, dilation=2)
    assert fields(lambda x: layer(embed(x).transpose(1, 2)), torch.zeros(2, 12, dtype=torch.long)) == [(5,)]


def test_batch_statistics_see_the_whole_map():
    chain = nn.Sequential(conv(1, 2, 3), nn.BatchNorm2d(2), conv(2, 1, 1))
    assert fields(chain.train(), torch.zeros(1, 1, 9, 11)) == [(3, 3), (9, 11)]
    assert fields(chain.eval(), torch.zeros(1, 1, 9, 11)) == [(3, 3), (3, 3)]


def test_memory_given_back_and_taken_again_is_not_mixed_up():
    """Large tensors come and go at the same addresses; none may inherit what another has seen."""
    layer = conv(1, 1, 3)

    def forward(x: Tensor) -> None:
        for _ in range(20):
            layer(layer(x))
            layer(torch.ones_like(x))

    assert fields(forward, torch.zeros(1, 1, 64, 64)) == [(3, 3), (5, 5), None] * 20


def test_the_observer_keeps_no_tensor_alive():
    observer = ReceptiveField((x := torch.zeros(1, 1, 9, 9),))
    with torch.no_grad(), Convolutions(observer):
        y = weakref.ref(x * 2)
    assert y() is None


# real networks -----------------------------------------------------------------------------------

PUBLISHED = {
    "vgg16": (13, 196),  # five stages; 212 with the last pooling
    "mobilenetv1_100": (27, 315),  # Araujo 2019, "Computing receptive fields of convolutional neural networks"
    "inception_resnet_v2": (244, 3039),  # the same
    "resnet18": (20, 435),
    "resnet50": (53, 427),  # Araujo has 483, with each stage's stride in its last unit; here it is in the first
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields(name):
    number, size = PUBLISHED[name]
    found = timm_fields(name)
    assert max(filter(None, found[:number])) == (size, size)
    assert len(found) >= number


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_100", "densenet121", "convnext_atto", "mobilenetv3_small_100", "res2net50_14w_8s", "mobilevit_xxs",
     "nasnetalarge", "pvt_v2_b0", "ghostnet_050", "skresnet18", "eca_vovnet39b", "hrnet_w18_small"],
)  # fmt: skip
def test_no_convolution_of_these_networks_is_unknown(name):
    found = timm_fields(name)
    assert found
    assert None not in found


def timm_fields(name: str) -> list[tuple[int, ...] | None]:
    """On the meta device: every operator is dispatched, none is computed."""
    let_torchvision_import()
    import timm

    with torch.device("meta"):
        return fields(timm.create_model(name).eval(), torch.zeros(1, 3, 224, 224))
