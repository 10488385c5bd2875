"""Modules with branches: training-time blocks, as their authors structure them, and stages with residuals."""

import torch
from torch import nn
from torch.nn import functional as F
from wild import Net


def settled(module, *shape):
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.double().eval()


def conv(i, o, k, **kwargs):
    return nn.Conv2d(i, o, k, padding=k // 2, **kwargs)


def normed(*args, **kwargs):
    kernel = nn.Conv2d(*args, bias=False, **kwargs)
    return nn.Sequential(kernel, nn.BatchNorm2d(kernel.out_channels))


class RepVGG(nn.Module):
    """Source: Ding et al. 2021, arXiv:2101.03697"""

    def __init__(self, i, o, stride=1, groups=1):
        super().__init__()
        same = i == o and stride == 1
        self.identity = nn.BatchNorm2d(i) if same else None
        self.large = normed(i, o, kernel_size=3, stride=stride, padding=1, groups=groups)
        self.small = normed(i, o, kernel_size=1, stride=stride, groups=groups)
        self.act, self.attention = nn.ReLU(), nn.Identity()

    def forward(self, x):
        direct = 0 if self.identity is None else self.identity(x)
        return self.act(self.attention(self.large(x) + self.small(x) + direct))


class ACNet(nn.Module):
    """Source: Ding et al. 2019, arXiv:1908.03930"""

    def __init__(self, i, o, stride=1):
        super().__init__()
        self.square = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.column = nn.Conv2d(i, o, (3, 1), stride, (1, 0), bias=False)
        self.row = nn.Conv2d(i, o, (1, 3), stride, (0, 1), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-4) for _ in range(3))

    def forward(self, x):
        parts = [norm(part(x)) for norm, part in zip(self.norms, (self.square, self.column, self.row), strict=True)]
        return parts[0] + parts[1] + parts[2]


class NormThenBorder(nn.Module):
    """A batch norm, and around its map a border of what it makes of zeros."""

    def __init__(self, pixels, channels):
        super().__init__()
        self.bn, self.pad_pixels = nn.BatchNorm2d(channels), pixels

    def forward(self, x):
        p, y = self.pad_pixels, F.pad(self.bn(x), [self.pad_pixels] * 4)
        value = self.bn.bias - self.bn.running_mean * self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        if p:
            value = value.detach().view(1, -1, 1, 1)
            y[:, :, :p], y[:, :, -p:], y[..., :p], y[..., -p:] = value, value, value, value
        return y


class WrongBorder(NormThenBorder):
    def forward(self, x):
        return super().forward(x) + 1


class AroundIdentity(nn.Conv2d):
    """A 1×1 whose weight is learned as what is added to the identity."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1, bias=False)
        self.base = torch.eye(channels).reshape(channels, channels, 1, 1)

    def forward(self, x):
        return F.conv2d(x, self.weight + self.base.to(self.weight), None, 1, 0, 1, self.groups)


class DBB(nn.Module):
    """Source: Ding et al. 2021, arXiv:2103.13425"""

    def __init__(self, i, o, stride=1, border=NormThenBorder):
        super().__init__()
        self.origin = normed(i, o, kernel_size=3, stride=stride, padding=1)
        self.point = normed(i, o, kernel_size=1, stride=stride)
        self.average = nn.Sequential(nn.Conv2d(i, o, 1, bias=False), border(1, o), nn.AvgPool2d(3, stride),
                                     nn.BatchNorm2d(o))  # fmt: skip
        self.two = nn.Sequential(AroundIdentity(i), border(1, i), nn.Conv2d(i, o, 3, stride, bias=False),
                                 nn.BatchNorm2d(o))  # fmt: skip
        self.act = nn.ReLU()

    def forward(self, x):
        out = self.origin(x)
        out += self.point(x)
        out += self.average(x)
        out += self.two(x)
        return self.act(out)


class MobileOne(nn.Module):
    """Source: Vasu et al. 2022, arXiv:2206.04040"""

    def __init__(self, channels, branches=3):
        super().__init__()
        self.many = nn.ModuleList(normed(channels, channels, kernel_size=3, padding=1, groups=channels)
                                  for _ in range(branches))  # fmt: skip
        self.scale, self.skip = normed(channels, channels, kernel_size=1, groups=channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        out = self.scale(x) + self.skip(x)
        for branch in self.many:
            out += branch(x)
        return torch.relu(out)


def residual(i, o, inner):
    return Net(lambda m, x: m.act(m.inner(x) + m.short(x)), inner=inner,
                  short=nn.Identity() if i == o else nn.Conv2d(i, o, 1), act=nn.ReLU())  # fmt: skip


STAGES = {
    "a residual block": lambda: residual(4, 4, nn.Sequential(
        conv(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4, 3))),
    "other channels": lambda: nn.Sequential(conv(4, 3, 3), nn.SiLU(), conv(3, 6, 1), nn.ReLU()),
    "branches": lambda: Net(
        lambda m, x: torch.cat([m.a(x), m.c(m.b(x).relu())], 1), a=conv(4, 2, 1), b=conv(4, 3, 1), c=conv(3, 3, 3)),
}  # fmt: skip
