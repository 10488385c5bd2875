"""Each convolution of a network and its neighbours are found, or refused with the reason; the network stays."""

from __future__ import annotations

import threading

import pytest
import torch
from fakes import grid
from torch import Tensor, nn
from wild import CASES, IMAGE, Net, conv, make, norm, shared_convolution, state

from reconv.errors import ConvError
from reconv.layers import build
from reconv.surgery import applied, clone, find_sites
from reconv.surgery.sites import chosen


@pytest.mark.parametrize("name", CASES)
def test_every_convolution_is_found_and_its_neighbours_known(name):
    case, model, x = make(name)
    network = find_sites(model, x)
    assert tuple(site.name for site in network.sites) == case.names
    for site in network.sites:
        wanted = case.refusals.get(site.name)
        assert (wanted in site.refusal) if wanted else site.refusal is None
        wanted = case.norms.get(site.name)
        if wanted and wanted.startswith("="):
            assert (site.norm.name, site.norm_refusal) == (wanted[1:], None)
        elif wanted:
            assert site.norm is None
            assert wanted in site.norm_refusal
    assert tuple(c.name for c in network.calls if c.functional) == case.functional
    assert {name for name, _ in network.refusals} == set(case.functional)


@pytest.mark.parametrize("name", CASES)
def test_finding_leaves_everything_as_it_was(name):
    _, model, x = make(name)
    for module in model.modules():
        module.training = len(type(module).__name__) % 2 == 0  # some on, some off
    before, given = state(model), x.clone()
    random = torch.get_rng_state()
    find_sites(model, x)
    assert state(model) == before
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", CASES)
def test_a_site_holds_what_its_convolution_applies(name):
    """Its block, built and filled with its tensors, gives what the module gives."""
    _, model, x = make(name)
    network = find_sites(model, x)
    copied = clone(model).eval()
    for site in network.sites:
        if site.refusal and "tied" not in site.refusal:
            continue
        layer = build(site.block, dtype=site.dtype)
        layer.load_state_dict(site.tensors)
        inside = grid(*site.input_shape)
        module = copied.get_submodule(site.name)
        torch.testing.assert_close(layer(inside), module(inside))
        tensors = applied(module)
        assert tensors.keys() == site.tensors.keys()
        assert all(torch.equal(tensors[key], site.tensors[key]) for key in tensors)


def test_calls_are_in_order_with_their_shapes_and_macs():
    network = find_sites(shared_convolution(), torch.zeros(*IMAGE))
    assert [c.name for c in network.calls] == ["0", "1", "1"]
    assert network.sites[1].names == ("1", "3")
    inner = (2, 4, 9, 7)
    assert [(c.input_shape, c.output_shape) for c in network.calls] == [(IMAGE, inner), (inner, inner), (inner, inner)]
    assert [c.macs for c in network.calls] == [2 * 63 * 4 * 3 * 9, *[2 * 63 * 4 * 4 * 9] * 2]


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"padding": (1, 2), "padding_mode": "reflect"}, (2, 3, 9, 7)),
        ({"padding": "same", "padding_mode": "circular", "dilation": 2}, (2, 3, 9, 7)),
        ({"padding": "same"}, (3, 9, 7)),
        ({"padding": 2, "padding_mode": "replicate", "stride": 2}, (3, 9, 7)),
    ],
)
def test_padding_that_is_an_operator_of_its_own_counts_as_the_convolutions(options, shape):
    model = nn.Conv2d(3, 4, (3, 2), **options)
    (call,) = find_sites(model, torch.zeros(shape)).calls
    assert call.input_shape == (shape if len(shape) == 4 else (1, *shape))
    assert call.macs == 4 * 3 * 6 * model(torch.zeros(shape)).numel() // 4


def test_a_pre_hook_that_changes_the_input_is_seen():
    model = conv()
    model.register_forward_pre_hook(lambda m, args, kwargs: ((args[0][..., :5, :4],), kwargs), with_kwargs=True)
    (call,) = find_sites(model, torch.zeros(*IMAGE)).calls
    assert (call.input_shape, call.output_shape) == ((2, 3, 5, 4), (2, 4, 5, 4))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_the_activation_that_follows_is_known(inplace, with_norm):
    between = [norm()] if with_norm else []
    model = nn.Sequential(conv(), *between, nn.ReLU(inplace), conv(4, 2))
    sites = find_sites(model, torch.zeros(*IMAGE)).sites
    assert [site.activation for site in sites] == [str(1 + with_norm), None]


def test_torchscript_is_seen_but_not_swapped():
    scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv(4, 2)).eval())
    network = find_sites(scripted, torch.zeros(*IMAGE))
    assert network.sites == ()
    assert [c.name for c in network.calls] == ["0", "2"]
    assert [name for name, why in network.refusals if why.startswith("TorchScript")] == ["0", "2"]


def test_a_compiled_network_is_looked_into():
    whole = torch.compile(nn.Sequential(conv()))
    part = nn.Sequential(torch.compile(nn.Sequential(conv())), nn.ReLU(), conv(4, 4))
    assert [s.name for s in find_sites(whole, torch.zeros(*IMAGE)).sites] == ["0"]
    assert [s.name for s in find_sites(part, torch.zeros(*IMAGE)).sites] == ["0.0", "2"]
    assert "0._orig_mod.0.weight" in part.state_dict()


def test_numbers_beside_the_tensors_are_passed_on():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, times: int) -> Tensor:
            return self.conv(x) * times

    assert [c.name for c in find_sites(Scaled(), (torch.zeros(*IMAGE), 3)).calls] == ["conv"]


@pytest.mark.parametrize(
    "name, patterns, wanted",
    [("a.conv1", "*", True), ("a.conv1", "b.*", False), ("a.conv1", "b.*, a.*", True), ("", "*", True),
     ("a.conv1", ["b", "a.conv?"], True), ("A.conv1", "a.*", False), ("a.conv1", "a", False)],
)  # fmt: skip
def test_sites_by_pattern(name, patterns, wanted):
    assert chosen(name, patterns) == wanted


# bad input ---------------------------------------------------------------------------------------


def undeepcopyable() -> nn.Module:
    model = nn.Sequential(conv())
    model.lock = threading.Lock()
    return model


def failing(x: Tensor) -> Tensor:
    raise RuntimeError("only on Sundays")


@pytest.mark.parametrize(
    "make, inputs, message, builtin",
    [
        (lambda: nn.Linear(3, 4), torch.zeros(2, 3), "must run at least one convolution; got model=Linear", ValueError),
        (lambda: Net(lambda s, x: x, a=conv()), torch.zeros(2, 3), "at least one convolution", ValueError),
        (conv, torch.zeros(2, 5, 9, 9), r"accept example_inputs.*\(2, 5, 9, 9\).* to have 3 channels", None),
        (lambda: Net(lambda s, x: failing(x)), torch.zeros(1), "RuntimeError: only on Sundays", None),
        (conv, torch.full(IMAGE, float("nan")), "example_inputs must be finite", ValueError),
        (conv, torch.full(IMAGE, float("inf")), "example_inputs must be finite", ValueError),
        (conv, None, "must be a tensor or a tuple of tensors; got .*NoneType", TypeError),
        (conv, (), "must be a tensor or a tuple of tensors", TypeError),
        (conv, {"x": torch.zeros(IMAGE)}, "must be a tensor or a tuple of tensors", TypeError),
        (conv, (torch.zeros(IMAGE), "x"), "must be a tensor or a tuple of tensors; got .*'Tensor', 'str'", TypeError),
        (lambda: nn.LazyConv2d(4, 3), torch.zeros(IMAGE), "parameter must have its shape; got .*weight", ValueError),
        (undeepcopyable, torch.zeros(IMAGE), r"must allow copy.deepcopy; got .*cannot pickle '_thread.lock'", None),
        (lambda: "net", torch.zeros(IMAGE), "model must be a torch.nn.Module; got model=str", TypeError),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(make, inputs, message, builtin):
    with pytest.raises(ConvError, match=message) as caught:
        find_sites(make(), inputs)
    assert builtin is None or isinstance(caught.value, builtin)


def test_inference_mode_is_told_and_what_was_made_in_it_is_read():
    with torch.inference_mode():
        net, x = conv(), torch.zeros(IMAGE)
        with pytest.raises(ConvError, match="must be read outside of torch"):
            find_sites(net, x)
    assert [site.name for site in find_sites(net, x).sites] == [""]
