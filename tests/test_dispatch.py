"""The choice among kernels: by what was measured, explained, and open to autograd and torch.compile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import whole_numbers
from test_families import BY_NAME, problem_of
from torch import Tensor, nn
from torch.nn import functional as F

import reconv
from reconv.ops import autograd, convolve, registered, results, ways
from reconv.ops.dispatch import KERNELS, choose, explain
from reconv.ops.kernel import TORCH
from reconv.ops.native import library, native_isa
from reconv.spec import ConvSpec

LINE = "ic16oc16k3x3p1g16 1x16x20x20"


def measured(problem, ms: dict[str, float], line: str = LINE) -> dict:
    """A table of one row."""
    row = {"problem": line, "features": list(results.features(problem)), "ms": ms}
    return {"format": 1, "machine": {"gmacs": {"1": 50.0}, "gbytes": {"1": 10.0}},
            "kinds": {results.kind(problem): {"1": [row]}}}  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    """Puts tables in place of the measured ones."""

    def put(*tables: dict) -> None:
        merged = {"kinds": {k: v for t in tables for k, v in t["kinds"].items()}, "machine": tables[0]["machine"]}
        monkeypatch.setattr(results, "table", lambda isa: merged)
        forget()

    def forget() -> None:
        results._rows.cache_clear()
        ways.forget()

    yield put
    monkeypatch.undo()
    forget()


def problem(text: str = "ic16oc16k3x3p1g16", shape=(1, 16, 20, 20), op="forward", layout="contiguous"):
    return problem_of(op, ConvSpec.parse(text), shape, torch.float32, layout)


CHOICES = {
    "the fastest": ({"torch": 2.0, "depthwise": 1.0, "planar": 1.5, "onednn": 1.8}, "depthwise"),
    "torch where it is fastest": ({"torch": 1.0, "depthwise": 1.2}, "torch"),
    "torch where the others are hardly faster": ({"torch": 1.0, "depthwise": 0.99}, "torch"),
    "another way of torch": ({"torch": 1.0, "depthwise": 1.2, "torch, other layout": 0.5}, "torch, other layout"),
    "not one that was not measured": ({"torch": 1.0, "onednn": 0.8}, "onednn"),
    "not one that does not serve": ({"torch": 1.0, "dense": 0.1, "planar": 0.5}, "planar"),
}


@pytest.mark.parametrize("ms, name", CHOICES.values(), ids=CHOICES.keys())
def test_the_fastest_that_was_measured_is_taken(ms, name, table):
    asked, _ = problem()
    table(measured(asked, ms))
    assert choose(asked).name == name
    told = explain(asked)
    assert told.chosen == name
    assert list(told.reasons) == [kernel.name for kernel in KERNELS["forward"]]
    assert [kernel for kernel, reason in told.reasons.items() if reason is None] == [name]
    assert told.roofline_ms == pytest.approx(max(asked.macs / 50e6, (2 * 6400 + 144) * 4 / 10e6))


def test_the_nearest_measured_problem_decides(table):
    asked, _ = problem("ic20oc20k3x3p1g20", (1, 20, 24, 24))
    near, far = problem()[0], problem("ic128oc128k31x31p15g128", (1, 128, 56, 56))[0]
    rows = [measured(near, {"torch": 2.0, "depthwise": 1.0}), measured(far, {"torch": 1.0, "depthwise": 2.0})]
    both = rows[0]["kinds"][results.kind(near)]["1"] + rows[1]["kinds"][results.kind(far)]["1"]
    table({"machine": None, "kinds": {results.kind(near): {"1": both}}})
    assert choose(asked).name == "depthwise"
    assert explain(asked).near.line == LINE
    assert explain(asked).roofline_ms is None
    assert choose(far).name == "torch"


UNLIKE = {
    "another pass": ("ic16oc16k3x3p1g16", (1, 16, 20, 20), "weight_gradient", "contiguous"),
    "another layout": ("ic16oc16k3x3p1g16", (1, 16, 20, 20), "forward", "channels_last"),
    "another kind": ("ic16oc16k3x3p1g4", (1, 16, 20, 20), "forward", "contiguous"),
    "far larger": ("ic1024oc1024k3x3p1g1024", (4, 1024, 60, 60), "forward", "contiguous"),
}


@pytest.mark.parametrize("arguments", UNLIKE.values(), ids=UNLIKE.keys())
def test_torch_where_nothing_like_it_was_measured(arguments, table):
    table(measured(problem()[0], {"torch": 2.0, "depthwise": 1.0}))
    asked, _ = problem(*arguments)
    assert choose(asked).name == "torch"
    assert "measured" in explain(asked).reasons["planar"]


@pytest.mark.parametrize("isa", [results.results_isa()])
def test_the_committed_table_can_be_read(isa):
    """Every row is of a problem file, and says what dispatch needs."""
    table = results.table(isa)
    assert table["format"] == 1
    for kind, counts in table["kinds"].items():
        for rows in counts.values():
            for row in rows:
                assert "torch" in row["ms"], row
                assert set(row["ms"]) <= set(BY_NAME)
                assert len(row["features"]) == 11
                assert kind


# -- autograd -------------------------------------------------------------------------------------
NATIVE = {"torch": 9.0, "depthwise": 1.0, "planar": 1.0, "dense": 1.0}
TRAINED = {
    "depthwise": ("ic6oc6k3x3s2p1g6", (2, 6, 7, 8)),
    "multiplied, without bias": ("ic3oc6k3x3p1g3nb", (2, 3, 6, 5)),
    "uneven": ("ic4oc4k3x2p0:2x1:0g4", (1, 4, 6, 7)),
    "groups, dilated": ("ic6oc6k3p2d2g3", (2, 6, 11)),
    "3d": ("ic3oc3k2x3x2p1g3", (1, 3, 3, 4, 3)),
    "transposed": ("ic4oc4k4x4s2p1g4t", (1, 4, 4, 3)),
    "transposed, uneven": ("ic4oc6k3x3s2p0:1x2:0g2top1", (1, 4, 4, 3)),
    "dense": ("ic3oc4k3x3x3p1", (1, 3, 3, 4, 3)),
}


def everywhere(spec: ConvSpec, shape, dtype=torch.float32):
    """Tables that take a native kernel for every pass."""
    found = []
    for op in ("forward", "input_gradient", "weight_gradient"):
        for layout in ("contiguous", "channels_last"):
            asked, _ = problem_of(op, spec, shape, dtype, layout)
            serving = [k.name for k in KERNELS[op] if k.name in NATIVE and k.refuse(asked) is None]
            found.append(measured(asked, {name: NATIVE[name] for name in serving}))
    return found


def entrance(spec: ConvSpec):
    """The public function of the spec, of input, weight and bias."""
    dims = spec.spatial_dims
    if spec.transposed:
        function = getattr(reconv.functional, f"conv_transpose{dims}d")
        return lambda x, w, b: function(
            x, w, b, spec.stride, spec.padding, spec.output_padding, spec.groups, spec.dilation
        )
    function = getattr(reconv.functional, f"conv{dims}d")
    return lambda x, w, b: function(x, w, b, spec.stride, spec.padding, spec.dilation, spec.groups)


def leaves(spec: ConvSpec, shape, dtype=torch.float64) -> list[Tensor | None]:
    bias = whole_numbers((spec.out_channels,), 2).to(dtype).requires_grad_() if spec.bias else None
    return [whole_numbers(shape, 0).to(dtype).requires_grad_(),
            whole_numbers(spec.weight_shape, 1).to(dtype).requires_grad_(), bias]  # fmt: skip


@pytest.fixture
def counted(monkeypatch):
    """How often autograd went our way."""
    calls, ours = [], autograd.differentiated
    monkeypatch.setattr(convolve, "differentiated", lambda *a: calls.append(a) or ours(*a))
    return calls


@pytest.mark.parametrize("text, shape", TRAINED.values(), ids=TRAINED.keys())
def test_gradients_of_native_kernels(text, shape, table, counted):
    spec = ConvSpec.parse(text)
    table(*everywhere(spec, shape, torch.float64))
    tensors = leaves(spec, shape)
    assert torch.autograd.gradcheck(entrance(spec), tensors, check_batched_grad=True, atol=1e-4)
    assert torch.autograd.gradgradcheck(entrance(spec), tensors, atol=1e-4)
    assert counted


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("text, shape", TRAINED.values(), ids=TRAINED.keys())
def test_training_is_exactly_torchs(text, shape, layout, table, counted):
    spec = ConvSpec.parse(text)
    table(*everywhere(spec, shape))
    ours, theirs = leaves(spec, shape, torch.float32), leaves(spec, shape, torch.float32)
    with torch.no_grad():
        if layout == "channels_last":
            for tensors in (ours, theirs):
                tensors[0].data = tensors[0].movedim(1, -1).contiguous().movedim(-1, 1)
    outputs = [entrance(spec)(*ours), _by_torch(spec)(*theirs)]
    assert torch.equal(*outputs)
    weights = whole_numbers(tuple(outputs[0].shape), 5).float()
    for output in outputs:
        (output * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is None or torch.equal(mine.grad, other.grad)
    assert counted


def _by_torch(spec: ConvSpec):
    asked = ways.conv_by_torch if not spec.transposed else ways.transposed_by_torch
    if spec.transposed:
        return lambda x, w, b: asked(spec.spatial_dims, x, w, b, spec.stride, spec.padding, spec.output_padding,
                                     spec.groups, spec.dilation)  # fmt: skip
    return lambda x, w, b: asked(spec.spatial_dims, x, w, b, spec.stride, spec.padding, spec.dilation, spec.groups)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_the_wanted_gradients_are_computed(wanted, table, counted):
    spec = ConvSpec.parse("ic6oc6k3x3p1g6")
    table(*everywhere(spec, (2, 6, 7, 8)))
    tensors = [
        t.detach().requires_grad_(w) for t, w in zip(leaves(spec, (2, 6, 7, 8), torch.float32), wanted, strict=True)
    ]
    entrance(spec)(*tensors).sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)
    assert counted


def test_a_network_trains_as_with_torch(table):
    """A step of SGD on a depthwise layer, twice, with the gradient expanded from one number."""
    spec = ConvSpec.parse("ic6oc6k3x3p1g6")
    table(*everywhere(spec, (2, 6, 8, 8)))
    torch.manual_seed(0)
    ours = reconv.nn.DepthwiseConv2d(6, 3, padding=1)
    theirs = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 8, 8)
    for layer in (ours, theirs):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


# -- torch.compile --------------------------------------------------------------------------------
OPAQUE = {
    "depthwise": lambda: reconv.nn.DepthwiseConv2d(6, 3, padding=1),
    "groups, channels_last": lambda: reconv.nn.Conv2d(6, 9, 3, 2, groups=3).to(memory_format=torch.channels_last),
    "uneven": lambda: reconv.nn.Conv2d(6, 6, 3, padding=((0, 1), (2, 0)), groups=6),
    "transposed": lambda: reconv.nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6),
}


@pytest.mark.parametrize("make", OPAQUE.values(), ids=OPAQUE.keys())
def test_the_compiler_sees_one_opaque_operator(make, monkeypatch):
    monkeypatch.setattr(registered, "HAS_RESULTS", True)
    torch._dynamo.reset()
    layer, x, seen = make(), torch.randn(2, 6, 8, 9), []
    with torch.no_grad():
        eager = layer(x)

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), eager)
    assert any("reconv.convolution" in name for name in seen), seen
    compiled(x).sum().backward()
    assert layer.weight.grad is not None


def test_export_sees_plain_operators(monkeypatch):
    monkeypatch.setattr(registered, "HAS_RESULTS", True)
    program = torch.export.export(reconv.nn.DepthwiseConv2d(6, 3), (torch.randn(1, 6, 8, 8),))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names
    assert not any("reconv" in name for name in names)


CHECKED = {
    "depthwise": ((2, 6, 7, 8), (6, 1, 3, 3), True, ([1, 1], [1, 1, 1, 1], [1, 1], False, [0, 0], 6)),
    "uneven groups": ((1, 6, 7, 8), (4, 3, 3, 2), False, ([2, 1], [0, 1, 2, 0], [1, 2], False, [0, 0], 2)),
    "transposed": ((1, 6, 5), (6, 1, 4), True, ([2], [1, 1], [1], True, [1], 6)),
    "3d": ((1, 3, 4, 5, 3), (6, 3, 3, 3, 3), True, ([1, 1, 1], [1] * 6, [1, 1, 1], False, [0, 0, 0], 1)),
}


@pytest.mark.parametrize("shape, weight, bias, settings", CHECKED.values(), ids=CHECKED.keys())
def test_the_operator_keeps_the_rules_of_torch(shape, weight, bias, settings):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, generator=generator, requires_grad=True) for size in (shape, weight))
    channels = weight[1] * settings[5] if settings[3] else weight[0]
    b = torch.randn(channels, generator=generator, requires_grad=True) if bias else None
    torch.library.opcheck(torch.ops.reconv.convolution, (x, w, b, *settings))
    grad = torch.randn_like(torch.ops.reconv.convolution(x, w, b, *settings)).detach()
    arguments = (grad, x.detach(), w.detach(), *settings, [True, True, bias])
    torch.library.opcheck(torch.ops.reconv.convolution_backward, arguments)


# -- without kernels ------------------------------------------------------------------------------
def test_the_library_was_built():
    assert library() is not None
    assert native_isa() in ("avx512", "avx2", "baseline")


WITHOUT_CALLS = """
import sys
sys.modules["reconv._calls"] = None
from reconv.ops import native
assert native.calls is None and native.library() is not None
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", *sys.argv[1:]]))
"""


def test_calls_without_the_module_that_tells_them_from_their_tensors():
    """Where Python's headers were missing, the kernels are called through ctypes."""
    tests = [f"test_{name}.py" for name in ("dispatch", "deform_native", "separable_native")]
    run = subprocess.run([sys.executable, "-c", WITHOUT_CALLS, *tests, "-k", "exactly or equals or bits"],
                         cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stdout


def test_large_tensors_are_left_to_torch():
    asked = problem()[0]._replace(x=(1, 16, 2**14, 2**14), y=(1, 16, 2**14, 2**14))
    assert [kernel.name for kernel in KERNELS["forward"] if kernel.refuse(asked) is None][-1] == "torch"
    for name in ("depthwise", "planar", "dense"):
        assert "fewer than" in BY_NAME[name].refuse(asked)


def test_torch_is_last_and_never_refuses():
    for kernels in KERNELS.values():
        assert kernels[-1] is TORCH
        assert TORCH.refuse(problem()[0]) is None


def test_functions_of_torch_give_the_same():
    """A depthwise convolution with every spelling of its arguments."""
    x, w = torch.randn(1, 6, 9, 9), torch.randn(6, 1, 3, 3)
    for stride, padding in ((1, 0), ([2, 1], [1]), ((1,), "same"), (2, "valid")):
        torch.testing.assert_close(reconv.functional.conv2d(x, w, None, stride, padding, 1, 6),
                                   F.conv2d(x, w, None, stride, padding, 1, 6))  # fmt: skip
