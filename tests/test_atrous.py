"""`atrous`: at the old positions every map is what it was, on every way through a network; else it is refused."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTarget
from torch import Tensor, nn
from torch.nn import functional as F

import reconv
from reconv.errors import ConvError
from reconv.layers.pooling import GridPool
from reconv.planning.edits import restructure
from reconv.planning.make import plan
from reconv.planning.plan import Plan
from reconv.rewriting.apply import apply
from reconv.rewriting.job import rewrite
from reconv.ruleset import rules_named
from reconv.surgery import find_sites
from reconv.surgery.kin import pool_grid, pool_text, remade, text_of

(ATROUS,) = rules_named("atrous")
FAKE = FakeTarget()


class Net(nn.Module):
    """Layers by name, and a function of them and the input; weights are small integers, so that sums are exact."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=generator))
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(into: int, out: int, k: int = 3, dims: int = 2, **others) -> nn.Module:
    return getattr(nn, f"Conv{dims}d")(into, out, k, **{"padding": k // 2} | others)


def line(*layers: nn.Module) -> nn.Module:
    return Net(lambda m, x: m.s(x), s=nn.Sequential(*layers)).eval()


def residual() -> nn.Module:
    return Net(lambda m, x: m.e((y := F.relu(m.b(F.relu(m.a(m.stem(x)))) + m.short(m.stem(x)))) + m.d(F.relu(m.c(y)))),
               stem=conv(3, 4), a=conv(4, 6, stride=2), b=conv(6, 6), short=conv(4, 6, 1, stride=2), c=conv(6, 6),
               d=conv(6, 6), e=conv(6, 2)).eval()  # fmt: skip


def reduced(pool: nn.Module) -> nn.Module:
    """A convolution and a pooling of stride 2 side by side."""
    return Net(lambda m, x: m.c(torch.cat([m.a(x), m.p(x)], 1)), a=conv(3, 4, stride=2), p=pool, c=conv(7, 2)).eval()


def shuffled() -> nn.Module:
    def run(m, x):
        y = m.a(x)
        y = y.view(y.shape[0], 2, 3, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return m.b(torch.cat(y.chunk(2, 1)[::-1], 1))

    return Net(run, a=conv(3, 6, stride=2), b=conv(6, 2, groups=2)).eval()


def channels_last() -> nn.Module:
    return Net(lambda m, x: m.b(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
               a=conv(3, 4, 2, stride=2, padding=0), n=nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5)),
               b=conv(5, 2)).eval()  # fmt: skip


def twice() -> nn.Module:
    return Net(lambda m, x: m.b(m.b(m.a(x))), a=conv(3, 4, stride=2), b=conv(4, 4)).eval()


TWO = (conv(3, 4, stride=2), nn.ReLU(), conv(4, 4), conv(4, 4, stride=2), conv(4, 2))
POOLED = (conv(3, 4), nn.MaxPool2d(2), conv(4, 4), nn.ReLU(), conv(4, 4), nn.MaxPool2d(2), conv(4, 2))
SERVED = {  # network, input, sites, how fine the output, what changes beside the site
    "residual": (residual, (2, 3, 13, 11), "*", 2, {"b", "short", "c", "d", "e"}),
    "even lengths": (residual, (2, 3, 12, 10), "*", 2, {"b", "short", "c", "d", "e"}),
    "last of two": (lambda: line(*TWO), (1, 3, 21, 18), "*", 2, {"s.4"}),
    "first of two": (lambda: line(*TWO), (1, 3, 21, 18), "s.0", 2, {"s.2", "s.3", "s.4"}),
    "both of two": (lambda: line(*TWO), (1, 3, 21, 18), "s.*", 4, {"s.2", "s.3", "s.4"}),
    "pooled": (lambda: line(*POOLED), (1, 3, 23, 18), "*", 2, {"s.5"}),
    "pooled, both": (lambda: line(*POOLED), (1, 3, 23, 18), "s.*", 4, {"s.1", "s.4", "s.5", "s.6"}),
    "depthwise": (lambda: line(conv(3, 6, 1), conv(6, 6, groups=6, stride=2), nn.ReLU6(), conv(6, 6, 1),
                               conv(6, 6, groups=6)), (1, 3, 9, 12), "*", 2, {"s.4"}),
    "1D": (lambda: line(conv(3, 4, 5, dims=1, stride=3), conv(4, 2, dims=1)), (2, 3, 31), "*", 3, {"s.1"}),
    "3D": (lambda: line(conv(3, 4, dims=3, stride=2), nn.MaxPool3d(3, 1, 1), conv(4, 2, dims=3)), (1, 3, 9, 7, 8), "*",
           2, {"s.1", "s.2"}),
    "one axis": (lambda: line(conv(3, 4, stride=(2, 1)), conv(4, 2)), (1, 3, 11, 9), "*", (2, 1), {"s.1"}),
    "padded pooling": (lambda: line(conv(3, 4, 7, stride=2), nn.MaxPool2d(3, 2, 1), conv(4, 2)), (1, 3, 25, 22), "s.0",
                       2, {"s.1", "s.2"}),
    "rounded up": (lambda: line(conv(3, 4), nn.MaxPool2d(3, 2, ceil_mode=True), conv(4, 4), conv(4, 2)), (1, 3, 10, 9),
                   "*", 2, {"s.1", "s.3"}),
    "concatenated": (lambda: reduced(nn.MaxPool2d(3, 2, 1)), (1, 3, 11, 10), "*", 2, {"p", "c"}),
    "average beside": (lambda: reduced(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)), (1, 3, 11, 10),
                       "*", 2, {"p", "c"}),
    "averages behind": (lambda: line(conv(3, 4, stride=2), nn.AvgPool2d(3, 1, 1), conv(4, 4), nn.AvgPool2d(2, 2),
                                     nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)), (1, 3, 27, 22),
                        "*", 2, {"s.1", "s.2", "s.3", "s.4"}),
    "shuffled": (shuffled, (1, 3, 9, 10), "*", 2, {"b"}),
    "channels last": (channels_last, (1, 3, 9, 10), "*", 2, {"b"}),
    "run twice": (twice, (1, 3, 13, 10), "*", 2, {"b"}),
    "even kernels": (lambda: line(conv(3, 4, 4, stride=2, padding=1), conv(4, 4, 4, padding="same"),
                                  conv(4, 2, 2, padding=0, stride=2)), (1, 3, 22, 19), "s.0", 2, {"s.1", "s.2"}),
    "dilated": (lambda: line(conv(3, 4, stride=2, dilation=2, padding=2), conv(4, 2, dilation=(3, 2))),
                (1, 3, 33, 30), "*", 2, {"s.1"}),
    "reflected": (lambda: line(conv(3, 4, stride=2), conv(4, 2, padding_mode="reflect")), (1, 3, 9, 11), "*", 2,
                  {"s.1"}),
    "replicated": (lambda: line(conv(3, 4, stride=2), conv(4, 2, padding_mode="replicate")), (1, 3, 9, 11), "*", 2,
                   {"s.1"}),
    "circular": (lambda: line(conv(3, 4, stride=2), conv(4, 2, padding_mode="circular")), (1, 3, 8, 12), "*", 2,
                 {"s.1"}),
    "transposed behind": (lambda: line(conv(3, 4, stride=2), nn.ConvTranspose2d(4, 2, 3, padding=1)), (1, 3, 9, 10),
                          "*", 2, {"s.1"}),
    "batch norm": (lambda: line(conv(3, 4, stride=2, bias=False), nn.BatchNorm2d(4), nn.SiLU(), conv(4, 2)),
                   (1, 3, 9, 10), "*", 2, {"s.3"}),
}  # fmt: skip
ROUNDED = {"average beside", "averages behind", "channels last", "batch norm"}  # whose numbers are no integers


def image(shape) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()


@torch.no_grad()
@pytest.mark.parametrize("case", SERVED)
def test_the_maps_are_equal_at_the_old_positions(case):
    make, shape, sites, fine, beside = SERVED[case]
    net, x = make(), image(shape)
    made = plan(net, x, rules="atrous", sites=sites, target=FAKE)
    assert {e.rule for e in made.edits} == {"atrous"}, made.refusals
    assert set().union(*(dict(e.also) for e in made.edits)) - {e.site for e in made.edits} == \
        beside - {e.site for e in made.edits}  # fmt: skip
    student = apply(net, Plan.from_dict(made.to_dict()), x)
    for each in (x, -x.flip(-1)):
        old, new = net(each), student(each)
        fines = (1, 1, *((fine,) * (new.ndim - 2) if isinstance(fine, int) else fine))
        at_old = new[tuple(slice(None, None, f) for f in fines)]
        assert all(f * (n - 1) < now <= f * n for f, n, now in zip(fines, old.shape, new.shape, strict=True))
        assert new.numel() > old.numel()
        if case in ROUNDED:
            torch.testing.assert_close(at_old, old, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(at_old, old)
    again = restructure(net, made)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(x), student(x))


def gated() -> nn.Module:
    return Net(lambda m, x: m.c((y := m.a(x)) * torch.sigmoid(m.g(y.mean((2, 3), keepdim=True)))),
               a=conv(3, 4, stride=2), g=conv(4, 4, 1), c=conv(4, 2)).eval()  # fmt: skip


def behind(run, *more: nn.Module, **layers: nn.Module) -> nn.Module:
    return Net(lambda m, x: run(m, m.a(x)), a=conv(3, 4, stride=2), **layers).eval()


REFUSED = {
    "gate": (gated, "mul brings back to its map what was taken of all positions"),
    "control flow": (lambda: behind(lambda m, y: y if y.sum() > 0 else -y), "the forward pass decides by values"),
    "interpolated": (lambda: behind(lambda m, y: F.interpolate(y, scale_factor=2)), "upsample_nearest2d takes its"),
    "flattened": (lambda: behind(lambda m, y: m.f(y.flatten(1)), f=nn.Linear(4 * 5 * 6, 2)), "view takes its"),
    "functional pooling": (lambda: behind(lambda m, y: F.max_pool2d(y, 2)), "max_pool2d_with_indices takes its"),
    "functional convolution": (lambda: behind(lambda m, y: F.conv2d(y, m.c.weight), c=conv(4, 2)), "convolution takes"),
    "transposed": (lambda: behind(lambda m, y: m.c(y), c=nn.ConvTranspose2d(4, 2, 2, stride=2)), "c takes its pos"),
    "circular": (lambda: behind(lambda m, y: m.c(y), c=conv(4, 2, padding_mode="circular")), "c would not give at the"),
    "a map of its own": (lambda: behind(lambda m, y: y + m.c.weight[:1, :, :5, :6], c=conv(4, 2, 7)),
                         "add takes it with a tensor of its own"),
    "coarse map": (lambda: Net(lambda m, x: m.a(x) + x[:, :1, ::2, ::2], a=conv(3, 4, stride=2)).eval(),
                   "add joins it with a map that has no stride"),
    "normalised over the map": (lambda: behind(lambda m, y: F.instance_norm(y)), "takes its positions"),
    "cropped": (lambda: behind(lambda m, y: y[..., 1:]), "slice takes its positions"),
    "fixed size": (lambda: behind(lambda m, y: y.view(1, 4, 5, 6) * 2), "with it, the network fails"),
    "no stride": (lambda: line(conv(3, 4), conv(4, 4)), "its stride is 1, and no other stride stands before it"),
    "transposed itself": (lambda: line(nn.ConvTranspose2d(3, 4, 2, stride=2)), "transposed: its stride makes its map"),
    "attention": (lambda: behind(lambda m, y: (z := y.flatten(2)) @ z.mT), "takes its positions"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_equal_is_refused(case):
    make, reason = REFUSED[case]
    net, x = make(), image((1, 3, 9, 11))
    first, *_ = find_sites(net, x).sites
    assert reason in ATROUS.refuse(first)
    made = plan(net, x, rules="denser", target=FAKE)
    assert not made.edits
    assert any(reason in r.reason for r in made.refusals)


def classifier() -> nn.Module:
    return Net(lambda m, x: m.f(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))),
               a=conv(3, 4, stride=2), b=conv(4, 6, stride=2), f=nn.Linear(6, 3)).eval()  # fmt: skip


@torch.no_grad()
def test_a_classifier_averages_over_more_positions():
    net, x = classifier(), image((2, 3, 12, 17))
    made = plan(net, x, rules="atrous", target=FAKE)
    assert [e.site for e in made.edits] == ["b"]
    student = apply(net, made, x)
    assert student(x).shape == net(x).shape
    assert torch.equal(student.b(F.relu(student.a(x)))[..., ::2, ::2], net.b(F.relu(net.a(x))))
    assert {r.site: r.reason for r in made.refusals} == {
        "a": "unless sites are named, it serves the last alone that it can: b"
    }


def test_with_a_budget_nothing_is_made_finer():
    made = plan(classifier(), image((1, 3, 9, 11)), "macs=0.9", rules=["atrous", "separable"], target=FAKE)
    assert not any(e.rule == "atrous" for e in made.edits)
    assert ("*", "atrous") in {(r.site, r.rule) for r in made.refusals}


def test_a_stronger_rule_keeps_away_from_what_is_made_finer():
    net, x = line(*TWO), image((1, 3, 21, 18))
    made = plan(net, x, rules=["atrous", "dilate_branch"], target=FAKE)
    assert [(e.site, e.rule) for e in made.edits] == [
        ("s.3", "atrous"),
        ("s.0", "dilate_branch"),
        ("s.2", "dilate_branch"),
    ]
    assert "atrous at s.3 changes the same modules" in {r.reason for r in made.refusals}
    student = apply(net, made, x)
    torch.testing.assert_close(student(x)[..., ::2, ::2], net(x))


@torch.no_grad()
def test_a_run_is_saved_loaded_and_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    make, shape, sites, *_ = SERVED["averages behind"]
    net, x = make(), image(shape)
    result = rewrite(net, x, rules=["atrous", "exact"], sites=sites, data=x.repeat(20, 1, 1, 1), target=FAKE)
    assert any(e.rule == "atrous" for e in result.plan.edits)
    assert result.error < 1e-5
    result.save(tmp_path / "run")
    again = reconv.load(tmp_path / "run", base=net)
    torch.testing.assert_close(again(x), result.model(x))
    torch.testing.assert_close(again(x)[..., ::2, ::2], net(x), rtol=1e-4, atol=1e-4)
    reconv.export(again, x, tmp_path / "net.onnx")
    (out,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), again(x), rtol=1e-4, atol=1e-3)


# -- poolings --------------------------------------------------------------------------------------------
POOLS = (nn.MaxPool1d(3, 2, 1), nn.MaxPool2d((3, 2), 2, ceil_mode=True), nn.MaxPool3d(2), nn.AvgPool1d(3, 2, 1),
         nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
         nn.AvgPool2d((2, 3), 1, divisor_override=5), nn.AvgPool3d(3, 2, 1), nn.MaxPool2d(1, 3, ceil_mode=True),
         nn.AvgPool2d(2, 2, ceil_mode=True))  # fmt: skip


@pytest.mark.parametrize("length", [6, 7, 8, 9])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_every_pooling_has_its_grid(pool, length):
    """Rounding up is a padding at the high end."""
    dims = int(type(pool).__name__[-2])
    x = torch.randn(2, 3, *(length, length + 1, length)[:dims], generator=torch.Generator().manual_seed(0))
    kernel, stride, padding, dilation = pool_grid(pool)
    kind = "max" if "Max" in type(pool).__name__ else "avg"
    own = GridPool(kind, kernel, stride, padding, dilation, getattr(pool, "count_include_pad", True),
                   getattr(pool, "divisor_override", None))  # fmt: skip
    torch.testing.assert_close(own(x), pool(x))
    assert text_of(own) == text_of(pool) == pool_text(kind, (kernel, stride, padding, dilation))
    torch.testing.assert_close(remade("it", pool, text_of(pool))(x), pool(x))


def test_a_kernel_larger_than_its_map_is_an_error():
    with pytest.raises(ConvError, match="the kernel must fit its padded input"):
        GridPool("avg", (3,), (1,), ((0, 0),), (2,))(torch.zeros(1, 1, 4))
