"""Whole modules as blocks: the same function, or the reason why not."""

import pytest
import torch
from branched import conv, settled
from torch import nn
from torch.nn import functional as F
from wild import Net

import reconv
from reconv.layers import build
from reconv.surgery.regions import Region, region


def repvgg(m, x):
    return torch.relu(m.bn3(m.conv3(x)) + m.bn1(m.conv1(x)) + m.bn0(x))


def bottleneck(m, x):
    out = F.relu(m.bn1(m.conv1(x)), inplace=True)
    out = m.drop(m.bn2(m.conv2(out)))
    out += m.short(x)
    return m.act(out)


MODULES = {
    "a convolution": lambda: conv(4, 6, 3),
    "a sequence": lambda: nn.Sequential(
        conv(4, 6, 3), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU(), nn.Identity(), conv(6, 4, 1)
    ),
    "sequences in sequences": lambda: nn.Sequential(
        nn.Sequential(conv(4, 6, 3), nn.SiLU()), nn.Sequential(conv(6, 4, 1))
    ),
    "RepVGG": lambda: Net(
        repvgg,
        conv3=conv(4, 4, 3, bias=False),
        bn3=nn.BatchNorm2d(4),
        conv1=conv(4, 4, 1, bias=False),
        bn1=nn.BatchNorm2d(4),
        bn0=nn.BatchNorm2d(4),
    ),
    "a residual block": lambda: Net(
        bottleneck,
        conv1=conv(4, 3, 1),
        bn1=nn.BatchNorm2d(3),
        conv2=conv(3, 5, 3, stride=2),
        bn2=nn.BatchNorm2d(5),
        drop=nn.Dropout(0.5),
        short=nn.Sequential(conv(4, 5, 1, stride=2), nn.BatchNorm2d(5, affine=False)),
        act=nn.ReLU6(),
    ),
    "a skip": lambda: Net(lambda m, x: x + m.conv(x).relu(), conv=conv(4, 4, 3)),
    "dense": lambda: Net(
        lambda m, x: torch.cat((x, m.a(torch.cat([x, m.b(x)], 1))), dim=1), a=conv(7, 3, 3), b=conv(4, 3, 1)
    ),
    "inception": lambda: Net(
        lambda m, x: torch.cat([m.a(x), m.b(m.c(x)), torch.sigmoid(m.d(x))], 1),
        a=conv(4, 2, 1),
        b=conv(3, 5, 5),
        c=conv(4, 3, 1),
        d=conv(4, 1, 3),
    ),
    "our layers": lambda: nn.Sequential(
        reconv.nn.SeparableConv2d(4, 6, 3, padding=1, norm="batch", activation="relu"),
        reconv.nn.SqueezeExcite2d(6, 2),
        reconv.nn.ShuffledGroupConv2d(6, 4, 3, groups=2, padding=1),
    ),
    "control flow on attributes": lambda: Net(
        lambda m, x: m.a(x) if m.training else m.b(x), a=conv(4, 4, 1), b=conv(4, 3, 3)
    ),
    "one dimension": lambda: nn.Sequential(
        nn.Conv1d(4, 3, 5), nn.BatchNorm1d(3), nn.ELU(), nn.ConvTranspose1d(3, 2, 4, 2)
    ),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_computes_the_same(make):
    torch.manual_seed(0)
    module = settled(make())
    x = (
        torch.randn(2, 4, 11, dtype=torch.float64)
        if "1d" in str(module)
        else torch.randn(2, 4, 8, 7, dtype=torch.float64)
    )
    found = region(module)
    assert isinstance(found, Region), found
    layer = build(found.block, dtype=torch.float64, channels=4)
    layer.load_state_dict(found.tensors)
    torch.testing.assert_close(layer.eval()(x), module(x), rtol=1e-12, atol=1e-12)
    assert set(found.modules) <= {name for name, _ in module.named_modules()}


REFUSED = {
    "decides by values": (
        lambda: Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv(4, 4, 1)),
        "cannot be traced",
    ),
    "another operation": (lambda: Net(lambda m, x: m.a(x) * 2, a=conv(4, 4, 1)), "no block says mul"),
    "adds a number": (lambda: Net(lambda m, x: m.a(x) + 1, a=conv(4, 4, 1)), "something else than maps"),
    "reads a parameter": (lambda: Net(lambda m, x: m.a(x) + m.a.weight.sum(), a=conv(4, 4, 1)), "else than maps"),
    "used in branches that do not join": (
        lambda: Net(lambda m, x: m.b(m.a(x)) + (m.a(x) + x), a=conv(4, 4, 1), b=conv(4, 4, 1)),
        "gives is used in branches",
    ),
    "two inputs": (lambda: nn.Bilinear(3, 3, 3), "several inputs"),
    "two outputs": (lambda: Net(lambda m, x: (m.a(x), x), a=conv(4, 4, 1)), "does not give one map"),
    "joins along the width": (
        lambda: Net(lambda m, x: torch.cat([x, m.a(x)], -1), a=conv(4, 4, 1)),
        "no block says cat",
    ),
    "a norm without statistics": (
        lambda: nn.Sequential(conv(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "a layer without a block": (lambda: nn.Sequential(conv(4, 4, 1), nn.GroupNorm(2, 4)), "no block says GroupNorm"),
    "an activation of another slope": (
        lambda: Net(lambda m, x: F.leaky_relu(m.a(x), 0.2), a=conv(4, 4, 1)),
        "no block says leaky_relu with negative_slope=0.2",
    ),
}


@pytest.mark.parametrize("make, reason", REFUSED.values(), ids=REFUSED.keys())
def test_refused(make, reason):
    found = region(make().eval())
    assert isinstance(found, str)
    assert reason in found


def test_refused_where_somebody_watches():
    module = nn.Sequential(conv(4, 4, 1), nn.ReLU())
    module[0].register_forward_hook(lambda *_: None)
    assert region(module) == "a hook watches 0"
