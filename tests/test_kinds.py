"""Every layer of reconv.nn, in every number of dimensions: its block, its values, its table, and torch's ways to it."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from cases import fill
from kinds import KINDS, MAIN_KINDS, ROWS, Kind
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reconv import layers
from reconv.errors import ConvError
from reconv.layers import block_of, build
from reconv.ops import reference
from reconv.spec import output_shape

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_main = pytest.mark.parametrize("kind", MAIN_KINDS.values(), ids=MAIN_KINDS.keys())


def assert_same(kind: Kind, got: torch.Tensor, wanted: torch.Tensor) -> None:
    bound = 0 if kind.exact else 1e-11
    torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


def test_every_layer_has_a_row():
    named = {name for name in layers.__all__ if name[-2:] in ("1d", "2d", "3d")}
    assert named == {f"{row.kind}{dims}d" for row in ROWS.values() for dims in (1, 2, 3)}


# -- block, values, table -------------------------------------------------------------------------
@each_kind
def test_means_its_block(kind: Kind):
    assert str(kind.make().block) == str(kind.block)
    assert block_of(kind.make()) == kind.block


@each_kind
def test_equals_the_reference(kind: Kind):
    layer, x = kind.filled(), kind.input()
    output, wanted = layer(x), torch.from_numpy(reference.run(kind.block, layer.state_dict(), x))
    assert_same(kind, output.detach(), wanted)
    assert output.shape == output_shape(kind.block, kind.input_shape)


@each_kind
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_float32_without_gradients_is_exact_too(kind: Kind, last):
    """Where kernels of our own may serve."""
    layer, x = kind.filled(), kind.input()
    wanted = layer(x).detach().float()
    layer, x = layer.float(), x.float()
    if last and kind.dims > 1:
        order = {2: torch.channels_last, 3: torch.channels_last_3d}[kind.dims]
        layer, x = layer.to(memory_format=order), x.contiguous(memory_format=order)
    with torch.no_grad():
        output = layer(x)
    bound = 0 if kind.exact else 1e-5 * float(wanted.abs().max())
    torch.testing.assert_close(output, wanted, rtol=0, atol=bound)


@each_kind
def test_loads_from_and_into_what_its_block_builds(kind: Kind):
    layer, x = kind.filled(), kind.input()
    other = build(kind.block, dtype=torch.float64, channels=kind.row.channels, spatial_dims=kind.dims).eval()
    assert list(other.state_dict()) == list(layer.state_dict())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    layer.load_state_dict(fill(other).state_dict())
    assert torch.equal(other(x), layer(x))


@each_kind
def test_describes_what_really_happens(kind: Kind):
    layer = kind.make()
    with FlopCounterMode(display=False) as counter:
        output = layer(torch.zeros(kind.input_shape))
    table = layer.describe(kind.input_shape)
    assert table.input_shape == kind.input_shape
    assert table.output_shape == tuple(output.shape)
    assert table.params == sum(p.numel() for p in layer.parameters())
    shapes = [shape for row in table for shape in row.weight_shapes]
    assert sorted(shapes) == sorted(tuple(p.shape) for name, p in layer.named_parameters() if name.endswith("weight"))
    if "Deform" not in kind.name:  # its matrix products are none of torch's convolutions
        assert table.macs * 2 == counter.get_total_flops()


@each_kind
def test_prints_its_table(kind: Kind):
    table = kind.make().describe(kind.input_shape)
    title, head, *rows, total = str(table).splitlines()
    assert title.startswith(f"{kind.name}(")
    assert head.split() == ["part", "input", "weight", "output", "params", "macs"]
    assert [line.split("  ")[0] for line in rows] == [row.text for row in table]
    assert total.split()[-2:] == [f"{table.params:,}", f"{table.macs:,}"]
    assert len({line.rstrip()[-1:].isdigit() for line in rows}) == 1
    assert len({len(line) for line in [head, *rows, total]}) == 1
    assert repr(table) == str(table)


@each_kind
def test_takes_one_input_without_batch(kind: Kind):
    layer, x = kind.filled(), kind.input()
    if "bn" in str(kind.block):
        with pytest.raises(ConvError, match="A batch norm needs the axis of the batch"):
            layer(x[0])
    else:
        torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=1e-11, atol=1e-11)


@each_kind
def test_takes_device_and_dtype(kind: Kind):
    layer = kind.make(device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}


FORWARDED = ["stride", "padding", "dilation", "bias", "padding_mode", "device", "dtype"]  # "…" of the design
SIGNATURES = {
    "DepthwiseConv": ["in_channels", "kernel_size", *FORWARDED, "depth_multiplier"],
    "PointwiseConv": ["in_channels", "out_channels", "stride", "groups", "bias", "device", "dtype"],
    "SeparableConv": ["in_channels", "out_channels", "kernel_size", *FORWARDED, "depth_multiplier", "norm",
                      "activation"],
    "AsymmetricConv": ["in_channels", "out_channels", "kernel_size", *FORWARDED, "mid_channels"],
    "ShuffledGroupConv": ["in_channels", "out_channels", "kernel_size", *FORWARDED, "groups"],
    "StackedConv": ["in_channels", "out_channels", "kernel_size", *FORWARDED, "small", "mid_channels", "activation"],
    "MultiSizeConv": ["in_channels", "out_channels", "kernel_sizes", *FORWARDED, "reduction", "join"],
    "SqueezeExcite": ["channels", "reduction", "device", "dtype"],
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_signature(name, dims):
    parameters = inspect.signature(getattr(layers, f"{name}{dims}d")).parameters
    assert list(parameters) == SIGNATURES[name]
    defaults = {key: p.default for key, p in parameters.items() if key in FORWARDED}
    wanted = {"stride": 1, "padding": 0, "dilation": 1, "bias": True, "padding_mode": "zeros"}
    assert defaults == {key: wanted.get(key) for key in defaults}


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k.row.kind in ("DepthwiseConv", "PointwiseConv")],
                         ids=lambda kind: f"{kind.name} {kind.block}")  # fmt: skip
def test_depthwise_and_pointwise_are_torchs(kind: Kind):
    layer, spec = kind.filled(), kind.block
    if spec.even_padding is None:
        return
    theirs = getattr(nn, f"Conv{kind.dims}d")(
        spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.even_padding, spec.dilation,
        spec.groups, spec.bias, spec.padding_mode, dtype=torch.float64)  # fmt: skip
    assert isinstance(layer, type(theirs))
    assert repr(layer).partition("(")[2] == repr(theirs).partition("(")[2]
    theirs.load_state_dict(layer.state_dict())
    layer.load_state_dict(theirs.state_dict())
    assert torch.equal(layer(kind.input()), theirs(kind.input()))


# -- every way of torch through a layer -----------------------------------------------------------
@each_kind
def test_copies_and_reads_back_without_pickle(kind: Kind, tmp_path):
    layer, x = kind.filled(), kind.input()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert repr(twin) == repr(layer)
    assert twin.block == layer.block
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in layer.parameters())
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    other = kind.make(dtype=torch.float64).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(x), layer(x))


@each_main
def test_compiles_whole(kind: Kind):
    layer, x = kind.filled(), kind.input()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-11, atol=1e-11)


@each_main
def test_exports_to_plain_operators(kind: Kind):
    layer, x = kind.filled(), kind.input()
    program = torch.export.export(layer, (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {getattr(target, "namespace", "aten") for target in called} == {"aten"}
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-11, atol=1e-11)


@each_main
def test_vmap_is_a_loop_and_jacrev_the_jacobian(kind: Kind):
    layer, x = kind.filled(), kind.input()
    weights = {name: tensor.detach() for name, tensor in layer.state_dict().items()}

    def compute(x):
        return torch.func.functional_call(layer, weights, (x,))

    stacked = torch.stack([x, -x, x.flip(-1)])
    mapped = torch.func.vmap(compute)(stacked)
    torch.testing.assert_close(mapped, torch.stack([compute(x) for x in stacked]), rtol=1e-11, atol=1e-11)
    few = x[:1].requires_grad_()
    chosen = torch.linspace(0, compute(few).numel() - 1, 3).long()
    jacobian = torch.func.jacrev(lambda x: compute(x).flatten()[chosen])(few)
    rows = [torch.autograd.grad(compute(few).flatten()[i], few)[0] for i in chosen]
    torch.testing.assert_close(jacobian, torch.stack(rows), rtol=1e-11, atol=1e-11)


@each_kind
def test_autocasts(kind: Kind):
    layer, x = kind.filled(), kind.input()
    wanted = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer.float()(x.float())
    assert output.dtype in (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.double(), wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


@each_main
def test_gradients(kind: Kind):
    """By finite differences, at a point where no value is near a kink."""
    generator = torch.Generator().manual_seed(1)
    layer = kind.make(dtype=torch.float64).eval()
    shape = (1, kind.row.channels, *(4, 3, 3)[: kind.dims])
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    names = [key for key, _ in layer.named_parameters()]
    weights = [
        (0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator)).requires_grad_()
        for p in layer.parameters()
    ]

    def compute(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(compute, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, (x, *weights), fast_mode=True)
