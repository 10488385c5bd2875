"""Pictures of convolutions: what is drawn is what is computed."""

import re
import struct
import xml.etree.ElementTree as ElementTree
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import reconv
from reconv.cli import app as cli
from reconv.drawing import example
from reconv.drawing.flow import flow_of
from reconv.layers.compose import build
from reconv.ops import reference
from reconv.reporting.drawn import OFFSETS, moves_of
from reconv.spec import Block, ConvSpec, Deform, in_channels, output_shape, parse

ROOT = Path(__file__).parents[1]

# name: (block, input size)
KINDS = {
    "standard": ("ic3oc4k3x3p1", (6, 7)),
    "standard 1D": ("ic3oc4k3p1", (9,)),
    "standard 3D": ("ic2oc2k3x2x3p1x0x1", (4, 5, 3)),
    "strided": ("ic2oc3k3x3s2x3p1", (7, 8)),
    "uneven padding": ("ic2oc3k4x3p1:2x0:1", (6, 5)),
    "reflecting": ("ic2oc2k3x3p2x1mreflect", (5, 6)),
    "replicating": ("ic2oc2k3x3p2x1mreplicate", (5, 6)),
    "circular": ("ic2oc2k3x3p2x1mcircular", (5, 6)),
    "pointwise": ("ic3oc4k1x1", (4, 5)),
    "grouped": ("ic6oc4k3x3p1g2", (5, 6)),
    "depthwise": ("ic4oc4k3x3p1g4", (5, 6)),
    "multiplier": ("ic3oc6k3p1g3", (8,)),
    "dilated": ("ic2oc2k3x3p2d2", (7, 8)),
    "asymmetric": ("ic3oc3k3x1p1x0 -> ic3oc4k1x3p0x1", (6, 7)),
    "separable": ("ic3oc3k3x3p1g3nb -> relu -> ic3oc5k1x1", (6, 7)),
    "stacked": ("ic2oc3k3x3p1 -> bn -> relu -> ic3oc2k3x3p1", (7, 8)),
    "transposed": ("ic2oc3k3x3s2p1top1x1", (4, 5)),
    "transposed 1D dilated": ("ic3oc2k4s3p2d2t", (5,)),
    "transposed 3D": ("ic2oc2k2x3x2s2t", (2, 3, 2)),
    "transposed grouped": ("ic4oc4k3x3s2p1g2t", (4, 4)),
    "shuffled": ("ic6oc6k1x1g3 -> shuffle(3) -> ic6oc6k3x3p1g6", (5, 4)),
    "shuffle": ("shuffle(2)", (3, 4)),
    "pixel shuffle": ("ic2oc4k3x3p1 -> pixel_shuffle(2x2)", (4, 5)),
    "multi-size": ("(ic3oc2k1x1 | ic3oc2k3x3p1 | ic3oc2k5x5p2)", (6, 7)),
    "skip": ("(ic3oc3k3x3p1 + identity)", (5, 6)),
    "dense": ("(ic3oc2k3x3p1 | identity)", (5, 6)),
    "squeeze-excite": ("ic3oc4k3x3p1 -> se(2)", (5, 6)),
    "deformable": ("deform(ic2oc3k3x3p1, og1)", (6, 7)),
    "deformable 1D": ("deform(ic2oc2k3p1, og1, mask)", (8,)),
    "deformable 3D": ("deform(ic1oc2k2x2x2, og1)", (4, 4, 4)),
    "large kernel": ("ic2oc2k13x13p6g2", (17, 15)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def shape_of(block: Block, size: tuple[int, ...]) -> tuple[int, ...]:
    return (in_channels(block) or 4, *size)


def positive(block: Block) -> nn.Module:
    """The layer with weights that hide nothing."""
    layer = build(block).double().eval()
    with torch.no_grad():
        for value in layer.parameters():
            value.fill_(1.0)
    return layer


def depends(block: Block, shape: tuple[int, ...], cell: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The input cells that move an output cell: where the gradient is not 0. Channel weights are held."""
    if isinstance(block, Deform):
        return deformed(block, shape, cell)
    x = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
    layer = positive(block)
    for name, part in list(layer.named_children()):
        if isinstance(part, reconv.nn.SqueezeExcite2d):
            setattr(layer, name, nn.Identity())
    layer(x)[(0, *cell)].backward()
    assert x.grad is not None
    return {tuple(i) for i in x.grad[0].nonzero().tolist()}


def deformed(block: Deform, shape: tuple[int, ...], cell: tuple[int, ...]) -> set[tuple[int, ...]]:
    spec, dims = block.conv, block.conv.spatial_dims
    out = output_shape(spec, (1, *shape))[2:]
    moves = torch.tensor(moves_of(block, "random"), dtype=torch.float64).flatten()
    offset = moves.view(1, -1, *[1] * dims).expand(1, -1, *out)
    x = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
    convolve = getattr(reconv.functional, f"deform_conv{dims}d")
    weight = torch.ones(spec.weight_shape, dtype=torch.float64)
    convolve(x, offset.contiguous(), weight, None, spec.stride, spec.padding, spec.dilation)[(0, *cell)].backward()
    assert x.grad is not None
    return {tuple(i) for i in x.grad[0].nonzero().tolist()}


# -- reading a drawing back -----------------------------------------------------------------------------------
def read(svg: str, index: int, kind: str, frame: int | None = None) -> set[tuple[int, ...]]:
    """The cells of a map that are marked, from the places of the squares themselves."""
    root = ElementTree.fromstring(svg)
    spot = next(g for g in root.iter() if g.get("data-map") == str(index))
    shape = [int(n) for n in spot.attrib["data-shape"].split("×")]
    found = set()
    for plane in (g for g in spot.iter() if (g.get("class") or "").startswith("plane")):
        key = tuple(int(plane.attrib[name]) for name in ("data-channel", "data-depth") if name in plane.attrib)
        for path in plane:
            classes = (path.get("class") or "").split()
            if kind in classes and "point" not in classes and (frame is None or f"f{frame}" in classes):
                squares = re.findall(r"M(-?\d+) (-?\d+)h1v1h-1z", path.attrib["d"])
                found |= {(*key, int(y), int(x)) if len(shape) > 2 else (int(y), int(x)) for x, y in squares}
    return found


def on_map(block: Block, cells: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """A transposed convolution's input is drawn with the zeros put in: back to its own places."""
    if isinstance(block, ConvSpec) and block.transposed:
        assert all(p % s == 0 for c in cells for p, s in zip(c[1:], block.stride, strict=True))
        return {(c[0], *(p // s for p, s in zip(c[1:], block.stride, strict=True))) for c in cells}
    return cells


def check(block: Block, shape: tuple[int, ...], cell: tuple[int, ...]) -> None:
    svg = reconv.draw(block, input_size=shape[1:], at=cell)
    assert "drawn" not in svg.split("<style>")[0]  # nothing left out
    last = int(re.findall(r'data-map="(\d+)"', svg)[-1])
    assert on_map(block, read(svg, 0, "read")) == depends(block, shape, cell)
    assert read(svg, last, "made") == {cell}


@each_kind
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_what_is_marked_is_what_the_output_cell_depends_on(kind, data):
    text, size = KINDS[kind]
    block = parse(text)
    shape = shape_of(block, size)
    out = output_shape(block, (1, *shape))[1:]
    check(block, shape, tuple(data.draw(st.integers(0, n - 1)) for n in out))


@st.composite
def conv_and_cell(draw):
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    axis = st.tuples(*[st.integers(1, 3)] * dims)
    groups = draw(st.integers(1, 2))
    spec = ConvSpec(
        in_channels=groups * draw(st.integers(1, 2)), out_channels=groups * draw(st.integers(1, 2)), groups=groups,
        kernel_size=draw(axis), stride=draw(axis), dilation=draw(axis), transposed=transposed,
        padding=draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * dims)),
    )  # fmt: skip
    least = [1 if transposed else max(1, d * (k - 1) + 1 - sum(pad))
             for k, d, pad in zip(spec.kernel_size, spec.dilation, spec.padding, strict=True)]  # fmt: skip
    size = tuple(n + draw(st.integers(5, 6)) if transposed else n + draw(st.integers(0, 3)) for n in least)
    shape = (spec.in_channels, *size)
    return spec, shape, tuple(draw(st.integers(0, n - 1)) for n in output_shape(spec, (1, *shape))[1:])


@given(conv_and_cell())
@settings(max_examples=80, deadline=None)
def test_any_convolution(case):
    check(*case)


# -- what a file holds ----------------------------------------------------------------------------------------
@each_kind
def test_a_drawing_is_whole(kind):
    text, size = KINDS[kind]
    svg = reconv.draw(text, input_size=size, animate=True)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith(str(parse(text)))
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "script" not in svg
    words = "".join(root.itertext())
    told = reconv.spec.describe(parse(text), (1, *shape_of(parse(text), size)))
    assert f"{told.params:,} parameters · {told.macs:,} multiply-accumulates" in words
    assert len(svg) < 400_000


def test_every_kind_of_block_is_drawn():
    drawn = {type(part) for text, _ in KINDS.values() for part in parts(parse(text))}
    assert drawn >= set(Block.__args__) - {reconv.spec.Permute}
    reconv.draw(reconv.spec.Permute(5), input_size=(3, 3))


def parts(block: Block):
    yield block
    for part in getattr(block, "blocks", ()):
        yield from parts(part)


@pytest.mark.parametrize("kind", ["standard", "depthwise", "transposed 1D dilated", "shuffled"])
def test_each_frame_of_an_animation_is_the_still_of_its_cell(kind):
    text, size = KINDS[kind]
    svg = reconv.draw(text, input_size=size, animate=True)
    last = int(re.findall(r'data-map="(\d+)"', svg)[-1])
    count = svg.count("made-text f f")
    assert count > 5
    for frame in range(0, count, 4):
        (cell,) = read(svg, last, "made", frame)
        still = reconv.draw(text, input_size=size, at=cell)
        assert read(svg, 0, "read", frame) == read(still, 0, "read")
        assert read(svg, 0, "void", frame) == read(still, 0, "void")


WORKED = [("ic2oc3k3x3s2p1", (5, 6)), ("ic2oc2k3x3s2p1t", (3, 4)), ("ic4oc4k3p2d2g2", (7,)),
          ("ic2oc3k2x3p0x1 -> relu -> ic3oc1k1x1", (4, 4))]  # fmt: skip


@pytest.mark.parametrize("text, size", WORKED)
def test_worked_numbers_are_right(text, size):
    block = parse(text)
    flow = flow_of(block, shape_of(block, size))
    values = example.worked(flow)
    x = tensor(values[0], flow.maps[0].shape)
    for step, found in zip(flow.steps, values[1:], strict=True):
        spec = step.block
        weight = torch.zeros(spec.weight_shape, dtype=torch.float64)
        each = spec.in_channels // spec.groups
        for index in torch.ones(weight.shape).nonzero().tolist():
            first, second, *tap = index
            if spec.transposed:
                out = first // each * (spec.out_channels // spec.groups) + second
                weight[tuple(index)] = example.weight(out, first % each, tap)
            else:
                weight[tuple(index)] = example.weight(first, second, tap)
        convolve = reference.conv_transpose if spec.transposed else reference.conv
        x = torch.from_numpy(convolve(spec, x[None].numpy(), weight.numpy(), np.zeros(spec.out_channels)))[0]
        x = x.relu() if step.after else x
        assert torch.equal(x, tensor(found, flow.maps[step.target].shape))
    svg = reconv.draw(text, input_size=size, numbers=True)
    total = re.search(r"= (−?\d+)</text>", svg)
    assert total is not None
    assert int(total[1].replace("−", "-")) in set(values[-1].values())


def tensor(values: dict, shape: tuple[int, ...]) -> torch.Tensor:
    out = torch.zeros(shape, dtype=torch.float64)
    for cell, value in values.items():
        out[cell] = value
    return out


def test_what_is_too_large_is_drawn_in_part_and_says_so():
    svg = reconv.draw("ic64oc128k3x3p1", input_size=224)
    assert "6 of 64 channels drawn" in svg
    assert "the first 40 cells drawn" in svg
    assert "drawn in part" in svg
    assert len(svg) < 100_000


def test_a_layer_is_drawn_as_its_block():
    assert reconv.draw(nn.Conv2d(3, 4, 3, padding=1)) == reconv.draw("ic3oc4k3x3p1")
    assert reconv.draw(reconv.nn.SeparableConv2d(3, 4, 3)) == reconv.draw(reconv.nn.SeparableConv2d(3, 4, 3).block)


@pytest.mark.parametrize("offsets", [way for way in OFFSETS if way != "none"])
def test_offsets_move_the_taps(offsets):
    still = reconv.draw("deform(ic2oc2k3x3p1, og1)", offsets="none")
    moved = reconv.draw("deform(ic2oc2k3x3p1, og1)", offsets=offsets)
    assert still.count("M") != moved.count("M")


def test_files(tmp_path):
    svg = reconv.draw("ic2oc2k3p1", tmp_path / "a.svg", input_size=4)
    assert (tmp_path / "a.svg").read_text() == svg
    reconv.draw("ic2oc2k3p1", tmp_path / "a.png", input_size=4)
    head = (tmp_path / "a.png").read_bytes()
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width = re.search(r'width="(\d+)"', svg)
    assert width is not None
    assert struct.unpack(">I", head[16:20])[0] == 2 * int(width[1])
    reconv.draw("ic2oc2k3p1", tmp_path / "a.gif", input_size=4)
    from PIL import Image

    assert Image.open(BytesIO((tmp_path / "a.gif").read_bytes())).n_frames == 4


WRONG = {
    "suffix": (dict(what="ic2oc2k3", path="a.bmp"), r"path must end in .svg, .png, .gif; got path=a.bmp"),
    "text": (dict(what="ic2oc2"), "parse"),
    "size": (dict(what="ic2oc2k3", input_size=(4, 4)), "input_size must be an integer from 1 to 4096, or 1 of them"),
    "too small": (dict(what="ic2oc2k5", input_size=3), "at least as large as the dilated kernel"),
    "far too large": (dict(what="ic2oc2k5", input_size=5000), "1 to 4096"),
    "cell": (dict(what="ic2oc2k3p1", at=(0, 99)), "at must be .channel, .position. inside the output"),
    "offsets": (dict(what="deform(ic2oc2k3x3p1, og1)", offsets="shear"), "none, scale, rotate, random"),
    "too few offsets": (dict(what="deform(ic2oc2k3x3p1, og1)", offsets=[(0.0, 0.0)]), "9 displacements of 2 numbers"),
    "one axis": (dict(what="deform(ic2oc2k3p1, og1)", offsets="rotate"), "cannot be rotated"),
    "numbers of a gate": (dict(what="ic2oc4k1x1 -> se(2)", numbers=True), "worked example takes"),
    "too many numbers": (dict(what="ic32oc32k3x3", numbers=True), "at most 6000 products"),
    "too many places": (dict(what="ic2oc1k1x1s64", numbers=True, input_size=(224, 224)), "at most 30000 cells"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    arguments, message = WRONG[name]
    with pytest.raises(reconv.ConvError, match=message):
        reconv.draw(**arguments)


def test_the_readme_shows_what_its_command_draws(tmp_path):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r'reconv draw "(.*)" --animate -o (docs/\S+)', readme)
    assert command is not None
    assert f"({command[2]})" in readme
    assert (ROOT / command[2]).read_text() == reconv.draw(command[1], animate=True)


def test_the_command_draws(tmp_path):
    done = CliRunner().invoke(cli, ["draw", "ic2oc2k3p1", "-o", str(tmp_path / "a.svg"), "--input", "5", "--at", "0,2"])
    assert done.exit_code == 0
    assert (tmp_path / "a.svg").read_text() == reconv.draw("ic2oc2k3p1", input_size=5, at=(0, 2))
    for wrong in (["--input", "axb"], ["--at", "1;2"]):
        assert CliRunner().invoke(cli, ["draw", "ic2oc2k3p1", "-o", str(tmp_path / "a.svg"), *wrong]).exit_code == 2
    assert CliRunner().invoke(cli, ["draw", "nonsense", "-o", str(tmp_path / "a.svg")]).exit_code == 1
