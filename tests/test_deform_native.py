"""The native deformable convolution against the plain operators: values, all gradients, and when it is taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deform_cases import CASES, compute, operands, some
from torch import Tensor

from reconv import functional
from reconv.errors import ConvError
from reconv.ops import deform, deform_native
from reconv.ops.native import native_isa
from reconv.spec import Deform, parse

TAILS = {  # channels around the lanes of a vector, positions around the length of a stretch
    f"{text} on {'x'.join(map(str, shape))}": (parse(text), shape)
    for text, shape in [
        ("deform(ic1oc1k3x3p1, og1)", (1, 1, 5, 7)),
        ("deform(ic1oc15k1x1nb, og1, mask)", (2, 1, 3, 3)),
        ("deform(ic3oc16k2x3p1x0, og3, mask)", (1, 3, 11, 13)),
        ("deform(ic15oc17k3x3p1, og1)", (2, 15, 6, 9)),
        ("deform(ic16oc24k3x3s2p1, og1, mask)", (1, 16, 17, 15)),
        ("deform(ic17oc25k3x3p1, og1, mask)", (1, 17, 8, 16)),
        ("deform(ic34oc33k3x1p1x0, og2)", (3, 34, 7, 7)),
        ("deform(ic48oc6k3x3p1g3, og2, mask)", (1, 48, 6, 6)),
        ("deform(ic64oc64k3x3p1g32, og1, mask)", (1, 64, 6, 5)),
        ("deform(ic40oc40k3x3p2d2g40, og5)", (1, 40, 9, 9)),
        ("deform(ic20oc26k3x3s1x2p0:2x3:1g2, og4, mask)", (2, 20, 7, 8)),
        ("deform(ic130oc50k3x3p1, og1, mask)", (1, 130, 5, 5)),
        ("deform(ic8oc4k7x9p3x4, og8)", (1, 8, 12, 12)),
        ("deform(ic4oc5k3x3p1, og1)", (1, 4, 1, 130)),
        ("deform(ic4oc5k1x1, og1, mask)", (2, 4, 16, 8)),
        ("deform(ic4oc5k3x3p1, og2, mask)", (1, 4, 3, 43)),
    ]
}
ALL = TAILS | {f"case {name}": case for name, case in CASES.items() if case[0].conv.spatial_dims == 2}
each_case = pytest.mark.parametrize("block, shape", ALL.values(), ids=ALL.keys())
ORDER = ("input", "offset", "weight", "bias", "mask")
CL = torch.channels_last


@pytest.fixture(autouse=True)
def measured_here(monkeypatch):
    """The choice is tested as on a processor with results."""
    monkeypatch.setattr(deform_native, "MEASURED", (native_isa(),))


def halves(block: Deform, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Whole numbers; offsets and masks are halves, so that products and their sums are exact in float32."""
    tensors = operands(block, shape)
    return {name: (t * 2 if name in ("offset", "mask") else t).to(dtype) for name, t in tensors.items()}


def by_operators(block: Deform, tensors: dict[str, Tensor]) -> Tensor:
    return deform._by_operators(block.conv, *(tensors.get(name) for name in ORDER))


def gradients(output: Tensor, tensors: dict[str, Tensor], **settings: bool) -> dict[str, Tensor]:
    """To all tensors, for a gradient of whole numbers."""
    generator = torch.Generator().manual_seed(7)
    grad = torch.randint(-2, 3, output.shape, generator=generator).to(output.dtype)
    return dict(zip(tensors, torch.autograd.grad(output, list(tensors.values()), grad, **settings), strict=True))


def both(block: Deform, tensors: dict[str, Tensor], exact: dict[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
    """Output and gradients, of the entrance and of plain operators on the same or on more exact tensors."""
    found = []
    for run, given in ((lambda given: compute(block.conv, given), tensors),
                       (lambda given: by_operators(block, given), exact or tensors)):  # fmt: skip
        leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
        output = run(leaves)
        found.append({"output": output.detach(), **gradients(output, leaves)})
    return found


def taken(block: Deform, tensors: dict[str, Tensor]) -> bool:
    """Whether the kernel computes it."""
    return deform_native.refuse(block.conv, *(tensors.get(name) for name in ORDER)) is None


# -- values and gradients -------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_equals_plain_operators_exactly(block, shape, dtype):
    tensors = halves(block, shape, dtype)
    assert taken(block, tensors)
    ours, wanted = both(block, tensors, {name: t.double() for name, t in tensors.items()})
    assert torch.equal(compute(block.conv, tensors), ours["output"])
    for name, value in ours.items():
        assert value.dtype == dtype
        assert torch.equal(value.double(), wanted[name]), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-2)],
                         ids=str)  # fmt: skip
@each_case
def test_any_numbers(block, shape, dtype, tolerance):
    """To rounding: bfloat16 is computed in float32 and rounded once."""
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype)
               for name, t in operands(block, shape).items()}  # fmt: skip
    assert taken(block, tensors)
    ours, wanted = both(block, tensors, {name: t.double() for name, t in tensors.items()})
    scales = {name: max(1.0, float(value.abs().max())) for name, value in wanted.items()}
    parts = [{name: t.double() / scales[name] for name, t in tensors.items()} for tensors in (ours, wanted)]
    torch.testing.assert_close(*parts, rtol=0, atol=tolerance)


@each_case
def test_threads_change_no_bit(block, shape):
    torch.manual_seed(0)
    tensors = {name: torch.randn(t.shape) for name, t in operands(block, (5, *shape[1:])).items()}
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(both(block, tensors)[0])
    finally:
        torch.set_num_threads(before)
    for more in results[1:]:
        assert all(torch.equal(more[name], value) for name, value in results[0].items())


@some("mask", "groups across offset groups", "uneven")
def test_each_gradient_alone(block, shape):
    tensors = halves(block, shape)
    wanted = both(block, tensors)[1]
    for name in tensors:
        leaf = tensors[name].detach().requires_grad_()
        output = compute(block.conv, tensors | {name: leaf})
        assert torch.equal(gradients(output, {name: leaf})[name], wanted[name])


@some("mask", "groups across offset groups", "2d")
def test_second_derivatives(block, shape):
    """Gradients of gradients are PyTorch's, of the plain operators."""
    tensors = {name: t.requires_grad_() for name, t in halves(block, shape, torch.float64).items()}
    found = []
    for output in (compute(block.conv, tensors), by_operators(block, tensors)):
        first = gradients(output, tensors, create_graph=True)
        total = sum(value.square().sum() for value in first.values())
        found.append(torch.autograd.grad(total, list(tensors.values()), materialize_grads=True))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_tensors_computed_from_each_other():
    """The gradients of a gradient must not take an offset's way to the input twice."""
    block, shape = CASES["mask"]
    tensors = halves(block, shape, torch.float64)
    x = tensors["input"].requires_grad_()
    found = []
    for run in (lambda given: compute(block.conv, given), lambda given: by_operators(block, given)):
        made = {"input": x * 2, "offset": tensors["offset"] + 0.3 + x.mean(), "mask": tensors["mask"] * x.sum().sin()}
        [first] = torch.autograd.grad(run(tensors | made).square().sum(), [x], create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), [x])))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_batched_gradients():
    block, shape = CASES["mask"]
    tensors = {name: t.requires_grad_() for name, t in halves(block, shape, torch.float64).items()}
    output = compute(block.conv, tensors)
    grads = torch.randint(-2, 3, (3, *output.shape)).double()
    together = torch.autograd.grad(output, list(tensors.values()), grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        alone = torch.autograd.grad(output, list(tensors.values()), grad, retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(together, alone, strict=True))


def test_backward_under_autocast():
    """The gradients are those of float32: what is lower there was rounded before."""
    block, shape = CASES["mask"]
    tensors = {name: t.requires_grad_() for name, t in halves(block, shape).items()}
    output = compute(block.conv, tensors)
    wanted = gradients(output, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(output, tensors)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


# -- memory ---------------------------------------------------------------------------------------
LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=CL),
    "transposed": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("case", ["mask", "groups", "one-wide map", "pointwise"])
def test_layouts(name, case):
    block, shape = CASES[case]
    tensors = halves(block, shape)
    laid = {key: LAYOUTS[name](t) if t.ndim > 2 else t for key, t in tensors.items()}
    packed = {key: t.contiguous() for key, t in laid.items()}
    ours, wanted = both(block, laid)[0], both(block, packed)[1]
    assert taken(block, laid)
    assert ours["output"].is_contiguous()
    assert all(torch.equal(value, wanted[key]) for key, value in ours.items())


def test_batch_of_none():
    block, shape = CASES["mask"]
    tensors = halves(block, (0, *shape[1:]))
    ours, wanted = both(block, tensors)
    assert all(torch.equal(value, wanted[name]) for name, value in ours.items())
    assert ours["output"].shape[0] == 0


def test_memory_grows_with_the_map_only():
    """Nine samples of each value are never in memory at once: here they would be 1.2 GB."""
    text = f"""
import resource, torch
from reconv.functional import deform_conv2d
from reconv.ops import deform_native
torch.set_num_threads(1)
x, offset = torch.ones(32, 64, 128, 128), torch.zeros(32, 18, 128, 128)
weight = torch.ones(8, 64, 3, 3)
deform_native.MEASURED = ({native_isa()!r},)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
deform_conv2d(x, offset, weight, padding=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (x.numel() * 4))
"""
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 2


# -- what is not finite ---------------------------------------------------------------------------
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e9, -1e30, 2.0**30, 1e30])
@pytest.mark.parametrize("name", ["input", "offset", "weight", "bias", "mask"])
def test_what_is_not_finite(name, value):
    """Goes the same ways as in plain operators."""
    block, shape = parse("deform(ic17oc3k3x3p1, og1, mask)"), (1, 17, 6, 7)
    tensors = halves(block, shape)
    tensors[name].view(-1)[tensors[name].numel() // 2] = value
    ours, wanted = both(block, tensors)
    if name == "mask" and abs(value) == INF:  # a difference times infinity, or the difference of infinities
        assert not any(each.pop("offset").isfinite().all() for each in (ours, wanted))
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0, equal_nan=True)


# -- when it is taken -----------------------------------------------------------------------------
def test_refusals(monkeypatch):
    block, shape = CASES["mask"]
    tensors = halves(block, shape)

    def reason(**changes: Tensor) -> str | None:
        return deform_native.refuse(block.conv, *((tensors | changes).get(name) for name in ORDER))

    assert reason() is None
    assert "dtype" in reason(**{name: t.half() for name, t in tensors.items()})
    assert "ordinary" in reason(input=tensors["input"].double())
    assert "ordinary" in reason(input=tensors["input"].to("meta"))
    assert "compute" in reason(input=tensors["input"][:0])
    assert "two dimensions" in deform_native.refuse(CASES["1d"][0].conv, tensors["input"], *[tensors["offset"]] * 4)
    with torch.autocast("cpu"):
        assert "plain operators" in reason()
    assert "fewer" in reason(input=torch.ones(1).expand(2, 4, 2**15, 2**14))
    monkeypatch.setattr(deform_native, "MEASURED", ())
    assert "measured" in reason()
    monkeypatch.setattr(deform_native, "native_isa", lambda: None)
    assert "without" in reason()


def test_without_kernels_plain_operators_compute(monkeypatch):
    block, shape = CASES["mask"]
    tensors = halves(block, shape)
    monkeypatch.setattr(deform_native, "native_isa", lambda: None)
    assert torch.equal(compute(block.conv, tensors), by_operators(block, tensors))


def test_the_graph_shows_the_kernel():
    block, shape = CASES["mask"]
    tensors = {name: t.requires_grad_() for name, t in halves(block, shape).items()}
    assert "Differentiable" in compute(block.conv, tensors).grad_fn.name()
    with torch.no_grad():
        assert compute(block.conv, tensors).grad_fn is None
    frozen = {name: t.detach() for name, t in tensors.items()}
    assert not compute(block.conv, frozen).requires_grad


def test_a_changed_tensor_is_noticed():
    block, shape = CASES["mask"]
    tensors = {name: t.requires_grad_() for name, t in halves(block, shape).items()}
    output = compute(block.conv, tensors)
    with torch.no_grad():
        tensors["weight"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_mistakes_are_still_told():
    x = torch.ones(1, 2, 4, 4)
    with pytest.raises(ConvError, match="offset must be"):
        functional.deform_conv2d(x, torch.zeros(1, 18, 3, 3), torch.ones(2, 2, 3, 3), padding=1)


EACH_ISA = """
import test_deform_native as t
from reconv.ops import deform_native
from reconv.ops.native import native_isa
deform_native.MEASURED = (native_isa(),)
for block, shape in t.ALL.values():
    ours, wanted = t.both(block, t.halves(block, shape))
    assert all(t.torch.equal(value, wanted[name]) for name, value in ours.items()), block
print(native_isa())
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_other_instruction_sets(isa):
    if native_isa() != "avx512":
        pytest.skip("this processor is an older one itself")
    run = subprocess.run([sys.executable, "-c", EACH_ISA], capture_output=True, text=True, cwd=Path(__file__).parent,
                         env=os.environ | {"RECONV_ISA": isa})  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == isa
