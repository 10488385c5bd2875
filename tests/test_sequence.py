"""Layers one after the other: what is computed in one call, and that it is the same."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from cases import fill, whole_numbers
from torch import nn
from torch.nn.modules.conv import _ConvNd

from reconv.layers import Absorbed, ChainLayer, QuickSequential, build, sequence
from reconv.layers.sequence import quicken
from reconv.ops import reference
from reconv.spec import parse
from reconv.targets import laid_out, to_layout

CL = torch.channels_last

CHAINS = {  # a block, its input, and whether its convolutions are computed in one call
    "bottleneck": ("ic20oc6k1x1nb -> ic6oc7k3x3p1nb -> ic7oc33k1x1", (2, 20, 9, 7), True),
    "asymmetric, strided": ("ic5oc8k3x1s2x1p1x0nb -> ic8oc17k1x3s1x2p0x1", (1, 5, 9, 11), True),
    "two": ("ic16oc4k1x1nb -> ic4oc16k1x1", (1, 16, 7, 7), True),
    "four": ("ic3oc16k3x3 -> ic16oc5k1x1d2 -> ic5oc5k5x5p2 -> ic5oc64k2x2s2", (3, 3, 12, 13), True),
    "depthwise": ("ic6oc6k3x3p1g6nb -> ic6oc9k1x1", (2, 6, 8, 8), True),
    "reflect": ("ic6oc4k1x1nb -> ic4oc9k3x3p1mreflect", (2, 6, 8, 8), False),
    "uneven": ("ic6oc4k1x1nb -> ic4oc9k2x2p0:1x1:0", (2, 6, 8, 8), True),
    "transposed": ("ic6oc4k1x1nb -> ic4oc9k2x2t", (2, 6, 8, 8), False),
    "1d": ("ic6oc4k1nb -> ic4oc9k3p1", (2, 6, 8), False),
}


def in_one_call(layer, x) -> tuple[torch.Tensor, bool]:
    """The output, and whether the parts were computed together."""
    seen = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        first = sequence.convolve_first
        patch.setattr(sequence, "convolve_first", lambda *a: seen.append(first(*a)) or seen[-1])
        return layer(x), [count for count, _ in seen] == [sum(isinstance(m, _ConvNd) for m in layer.modules())]


def chain(text: str, shape: tuple[int, ...], dtype=torch.float32):
    """The layer with whole numbers for weights, an input, and what float64 says of them."""
    block = parse(text)
    layer = build(block, dtype=dtype)
    fill(layer)
    x = whole_numbers(shape, 1)
    wanted = torch.from_numpy(reference.run(block, layer.state_dict(), x))
    return to_layout(layer, "channels_last"), laid_out(x.to(dtype), "channels_last"), wanted


@torch.no_grad()
def part_by_part(layer, x) -> torch.Tensor:
    for part in layer:
        x = part(x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("text, shape, together", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_equals_the_reference_exactly(text, shape, together, dtype):
    layer, x, wanted = chain(text, shape, dtype)
    output, was_together = in_one_call(layer, x)
    assert torch.equal(output.double(), wanted)
    assert was_together is together
    assert output.is_contiguous(memory_format=CL) or x.ndim == 3


def _weight_normed(layer):
    torch.nn.utils.parametrizations.weight_norm(layer[0])


def _told_apart(layer):
    layer[0].stride = (2, 2)


APART = {  # what makes the parts of a chain more than their convolutions
    "a hook on a part": lambda layer: layer[1].register_forward_hook(lambda m, i, o: o + 1),
    "a hook before a part": lambda layer: layer[0].register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
    "a parametrisation": _weight_normed,
    "a part of another kind": lambda layer: layer.insert(1, torch.nn.SiLU()),
    "a subclass of ReLU": lambda layer: layer.append(torch.nn.ReLU6()),
    "a ReLU before": lambda layer: layer.insert(0, torch.nn.ReLU()),
    "a hook on a ReLU": lambda layer: layer.append(torch.nn.ReLU())[-1].register_forward_hook(lambda m, i, o: o + 1),
    "a bfloat16 part": lambda layer: layer.bfloat16(),
}


@pytest.mark.parametrize("change", APART.values(), ids=APART.keys())
def test_parts_that_do_more_do_so(change):
    layer, x, _ = chain(*CHAINS["bottleneck"][:2])
    assert in_one_call(layer, x)[1]
    change(layer)
    x = x.to(next(layer.parameters()).dtype)
    assert torch.equal(in_one_call(layer, x)[0], part_by_part(layer, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("at", [[1], [1, 3], [3], [2, 4]], ids=str)
def test_a_chain_takes_relus_along(at, dtype):
    layer, x, _ = chain(*CHAINS["bottleneck"][:2], dtype)
    for position in at:
        layer.insert(position, torch.nn.ReLU(inplace=position % 2 == 0))
    output, together = in_one_call(layer, x)
    assert together
    assert (output < 0).any().item() is (at[-1] < len(layer) - 1)
    assert torch.equal(output, part_by_part(layer, x))


def test_relu_keeps_what_is_no_number():
    layer, x, _ = chain(*CHAINS["two"][:2])
    layer.append(torch.nn.ReLU())
    x[0, 3, 2, 2] = torch.nan
    output, together = in_one_call(layer, x)
    assert together
    assert torch.equal(output.isnan().any(1), x.isnan().any(1))


CHANGES = {  # of the parts, between two calls
    "weights written in place": lambda layer: layer[0].weight.data.mul_(2),
    "weights replaced": lambda layer: layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()}),
    "another memory format": lambda layer: to_layout(layer, "contiguous"),
    "another stride": _told_apart,
    "float64": lambda layer: layer.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_chain_follows_what_is_changed(change):
    layer, x, _ = chain(*CHAINS["bottleneck"][:2])
    in_one_call(layer, x)
    change(layer)
    x = x.to(next(layer.parameters()).dtype)
    assert torch.equal(in_one_call(layer, x)[0], part_by_part(layer, x))


# -- sequences ------------------------------------------------------------------------------------
def convs(*channels: int, size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(i, o, size, padding=size // 2) for i, o in pairwise(channels)]


SEQUENCES = {  # what it holds, and how many convolutions each call of the kernel computes
    "convolutions": (lambda: convs(3, 8, 5, 17), [3]),
    "absorbed": (lambda: [Absorbed(), *convs(3, 8), Absorbed(), nn.ReLU(), Absorbed(), *convs(8, 5)], [2]),
    "chains": (lambda: [build(parse("ic3oc4k1x1nb -> ic4oc9k3x3p1 -> relu")), Absorbed(), *convs(9, 4)], [3]),
    "pooled": (lambda: [*convs(3, 8), nn.ReLU(), nn.MaxPool2d(2), *convs(8, 19), nn.MaxPool2d((3, 3), 3)], [2]),
    "pooled, then a ReLU": (lambda: [*convs(3, 8), nn.MaxPool2d(2), nn.ReLU(inplace=True), *convs(8, 3)], [1, 1]),
    "pooled twice": (lambda: [*convs(3, 8), nn.MaxPool2d(2), nn.MaxPool2d(2), *convs(8, 3)], [1, 1]),
    "pooled with an overlap": (lambda: [*convs(3, 8), nn.MaxPool2d(3, 2), *convs(8, 3)], [1, 1]),
    "pooled with padding": (lambda: [*convs(3, 8), nn.MaxPool2d(2, padding=1), *convs(8, 3)], [1, 1]),
    "pooled with dilation": (lambda: [*convs(3, 8), nn.MaxPool2d(2, dilation=2), *convs(8, 3)], [1, 1]),
    "pooled, rounded up": (lambda: [*convs(3, 8), nn.MaxPool2d(2, ceil_mode=True), *convs(8, 3)], [1, 1]),
    "pooled to oblongs": (lambda: [*convs(3, 8), nn.MaxPool2d((2, 1)), *convs(8, 3)], [1, 1]),
    "another kind between": (lambda: [*convs(3, 8), nn.BatchNorm2d(8), *convs(8, 8, 3), nn.Tanh()], [1, 2]),
    "depthwise between": (lambda: [*convs(3, 8), nn.Conv2d(8, 8, 3, groups=8), *convs(8, 8)], [1, 0, 1]),
    "another kind first": (lambda: [nn.ReLU(), nn.MaxPool2d(2), *convs(3, 8)], [1]),
    "in a sequence": (lambda: [*convs(3, 8), QuickSequential(*convs(8, 4), nn.ReLU()), *convs(4, 3)], [3]),
    "none": (lambda: [nn.ReLU(), nn.Identity()], []),
    "empty": (lambda: [], []),
}  # fmt: skip


def quick(*parts: nn.Module) -> QuickSequential:
    return to_layout(QuickSequential(*parts), "channels_last").eval()


@pytest.mark.parametrize("shape", [(1, 3, 13, 18), (2, 3, 12, 12)], ids=str)
@pytest.mark.parametrize("parts, counts", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_a_sequence_gives_what_its_parts_give(parts, counts, shape, monkeypatch):
    layer, seen = quick(*fill(nn.ModuleList(parts())).float()), []
    first = sequence.convolve_first
    monkeypatch.setattr(sequence, "convolve_first", lambda *a: seen.append(first(*a)) or seen[-1])
    x = whole_numbers(shape).float().contiguous(memory_format=CL)
    before = x.clone()
    with torch.no_grad():
        output = layer(x)
    assert [count for count, _ in seen] == counts
    assert torch.equal(x, before)
    assert torch.equal(output, part_by_part(layer, x))


def test_pooling_keeps_what_is_no_number():
    layer, x = quick(*convs(3, 8, size=1), nn.MaxPool2d(2)), torch.randn(1, 3, 6, 6).contiguous(memory_format=CL)
    x[0, 1, 3, 2] = torch.nan
    with torch.no_grad():
        assert torch.equal(layer(x).isnan(), part_by_part(layer, x).isnan())


def _exchange(layer: nn.Module, where: int) -> None:
    layer[where] = nn.Sequential(layer[where], nn.Sigmoid())


def _add_a_hook(layer: nn.Module, where: int) -> None:
    layer[where].register_forward_hook(lambda module, inputs, output: output + 1)


def _add_a_hook_before(layer: nn.Module, where: int) -> None:
    layer[where].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def _put_into(layer: nn.Module, where: int) -> None:
    layer._modules[str(where)] = nn.Sequential(layer[where], nn.Tanh())


def _take_out(layer: nn.Module, where: int) -> None:
    del layer[3][1]
    layer[3].append(nn.Conv2d(4, 9, 1).to(memory_format=CL))


ALTERED = {
    "a hook": _add_a_hook,
    "a hook before": _add_a_hook_before,
    "a forward of its own": lambda layer, where: _other_forward(layer[where]),
    "another module": _exchange,
    "another module, unseen": _put_into,
    "a part of a part": _take_out,
    "a copy's hook": lambda layer, where: _add_a_hook(copy.deepcopy(layer), where),
}


@pytest.mark.parametrize("where", [0, 1, 3, 4])
@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
def test_a_sequence_follows_what_is_done_to_its_parts(alter, where):
    """Before and after, since it remembers what it has seen."""
    chain = build(parse("ic8oc4k1x1nb -> ic4oc9k3x3p1"))
    layer = quick(*convs(3, 8), Absorbed(), nn.ReLU(), chain, nn.MaxPool2d(2))
    x = torch.randn(1, 3, 8, 8).contiguous(memory_format=CL)
    with torch.no_grad():
        for each in (layer, copy.deepcopy(layer)):
            torch.testing.assert_close(each(x), part_by_part(each, x))
            alter(each, where)
            torch.testing.assert_close(each(x), part_by_part(each, x))


@pytest.mark.parametrize("register", [
    lambda layer: layer[1].register_forward_hook(lambda *_: None),
    lambda layer: nn.modules.module.register_module_forward_hook(lambda *_: None),
], ids=["of a part", "of all modules"])  # fmt: skip
def test_a_sequence_is_quick_again_without_hooks(register):
    layer, x = quick(*convs(3, 8, 4)), torch.randn(1, 3, 8, 8).contiguous(memory_format=CL)
    handle = register(layer)
    assert not in_one_call(layer, x)[1]
    handle.remove()
    assert in_one_call(layer, x)[1]


def test_a_sequence_hears_hooks_on_all_modules():
    layer, heard = quick(*convs(3, 8, 4)), []
    x = torch.randn(1, 3, 8, 8).contiguous(memory_format=CL)
    with torch.no_grad():
        layer(x)
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module)))
        try:
            layer(x)
        finally:
            handle.remove()
    assert heard == [nn.Conv2d, nn.Conv2d, QuickSequential]


class Doubling(ChainLayer):
    def forward(self, input):
        return 2 * super().forward(input)


def _other_forward(layer: nn.Module) -> nn.Module:
    plain = layer.forward
    layer.forward = lambda input: 2 * plain(input)
    return layer


def pointwise(kind: type = ChainLayer) -> nn.Module:
    return kind(*convs(8, 4, 8, size=1))


DOING_MORE = {
    "a subclass": lambda: pointwise(Doubling),
    "a forward of its own": lambda: _other_forward(pointwise()),
    "a convolution's own forward": lambda: _other_forward(convs(8, 8)[0]),
}


@pytest.mark.parametrize("part", DOING_MORE.values(), ids=DOING_MORE.keys())
def test_what_does_more_in_a_sequence_does_so(part):
    layer, x = quick(*convs(3, 8), part(), *convs(8, 3)), torch.randn(1, 3, 8, 8).contiguous(memory_format=CL)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), part_by_part(layer, x))


def test_a_sequence_hears_backward_hooks_of_its_parts():
    layer, heard = quick(*convs(3, 8), pointwise()), []
    layer[1].register_full_backward_hook(lambda *_: heard.append(1))
    layer(torch.randn(1, 3, 8, 8)).sum().backward()
    assert heard


def test_a_sequence_has_gradients():
    layer = quick(*convs(3, 8), nn.ReLU(), nn.MaxPool2d(2), *convs(8, 4))
    plain, x = nn.Sequential(*copy.deepcopy(list(layer))), torch.randn(2, 3, 8, 8)
    for each in (layer, plain):
        each(x).square().sum().backward()
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_quicken_changes_plain_sequences_only():
    class Own(nn.Sequential):
        pass

    model = nn.Sequential(nn.Sequential(*convs(3, 3)), Own(*convs(3, 3)))
    keys = list(model.state_dict())
    for name in ("0.0", "1.0"):
        quicken(model, name)
    assert [type(part) for part in model] == [QuickSequential, Own]
    assert type(model) is nn.Sequential
    assert list(model.state_dict()) == keys
