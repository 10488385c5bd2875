"""Receptive fields against brute force: which inputs, made NaN, make an output NaN."""

import weakref
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import let_torchvision_import
from receptive_nets import CASES, Net, conv, transposed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reconv.costing.receptive import ReceptiveField
from reconv.surgery.clone import clone

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


def sample(shape: Sequence[int]) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("name", CASES)
def test_as_by_brute_force(name):
    model, shape = CASES[name]
    model, x = clone(model).double(), sample(shape)  # others test the same networks
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
@settings(max_examples=40)
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
    "sparse and back": lambda x: x.to_sparse().to_dense(),
    "layout of another library": lambda x: x.float().to_mkldnn().relu().to_dense().double(),
    "kernel from positions": lambda x: F.conv2d(x, x[..., :3, :3]),
    "rows picked out": lambda x: torch.stack([x[:, :, 0], x[:, :, 5], x[:, :, 8]], 2),
    "a row left out": lambda x: torch.cat([x[..., :4, :], x[..., 5:, :]], 2),
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


def test_a_batch_of_views_keeps_them_apart():
    layer, last = conv(1, 1, 3), conv(1, 1, 2)

    def forward(x: Tensor) -> None:
        straight, mirrored = layer(torch.cat([x, x.flip(3)])).chunk(2)
        last(straight + last(straight)[..., :1, :1])
        last(straight + mirrored.flip(3))

    assert fields(forward, torch.zeros(1, 1, 9, 9)) == [(3, 3), (4, 4), (9, 9), (4, 4)]


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


def test_inputs_may_be_nested():
    layer = conv(1, 1, 3)
    x, y = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    with torch.no_grad(), Convolutions(ReceptiveField(({"x": x}, [y]))) as seen:
        layer(x + layer(y)[..., :1, :1])
    assert seen.fields == [(3, 3), (9, 9)]


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
    ["mobilenetv2_100", "densenet121", "convnext_atto", "mobilenetv3_small_100", "mobilevit_xxs", "mixnet_s", "dpn48b",
     "cs3darknet_focus_s", "pvt_v2_b0", "ghostnet_050", "skresnet18", "eca_vovnet39b"],
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
