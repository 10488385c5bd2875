"""Pictures as structures: strips whose lengths are costs, blocks and layers that show themselves."""

from __future__ import annotations

import sys
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from cases import BLOCKS
from kinds import KINDS
from PIL import Image
from torch import nn

import reconv
from reconv.drawing.heat import WARM, over
from reconv.drawing.maps import tiles
from reconv.drawing.plot import COLOURS
from reconv.drawing.strip import REST, WIDTH, Cell, Strip, amount, pieces, strip
from reconv.layers import Absorbed
from reconv.planning.plan import Plan
from reconv.spec import parse

SVG = "{http://www.w3.org/2000/svg}"


def cells(*costs: float, kind: str = "standard") -> list[Cell]:
    return [Cell(f"layer{i}", kind, cost) for i, cost in enumerate(costs)]


def drawn(*strips: Strip, unit: str = "ms") -> ElementTree.Element:
    return ElementTree.fromstring(strip(strips, 'the "label" & all', unit))


def areas(root: ElementTree.Element) -> list[tuple[str, float]]:
    """(what a pointer over it says, its width) of all pieces."""
    return [(group.findtext(f"{SVG}title") or "", float(group.find(f"{SVG}rect").get("width", "0")))
            for group in root.iter(f"{SVG}g")]  # fmt: skip


# -- strips ---------------------------------------------------------------------------------------------------
def test_lengths_are_costs_on_one_scale():
    root = drawn(Strip("before", cells(6, 2, 2)), Strip("after", cells(4, 1)))
    assert [width for _, width in areas(root)] == [600, 200, 200, 400, 100]
    assert root.get("aria-label") == 'the "label" & all'
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert "before: 10 ms" in words
    assert "after: 5 ms, 50% of before" in words
    assert "saved 50%" in words
    (frame,) = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "saved"]
    assert float(frame.get("width", "0")) == WIDTH / 2 - 2


def test_what_became_dearer_is_longer():
    root = drawn(Strip("before", cells(1)), Strip("after", cells(1, 3)))
    assert [width for _, width in areas(root)] == [250, 250, 750]
    assert not any("saved" in (text.text or "") for text in root.iter(f"{SVG}text"))


def test_thousands_of_layers_are_gathered_and_it_is_said():
    root = drawn(Strip("before", cells(*[1.0] * 5000)), Strip("after", cells(5000)))
    found = areas(root)
    assert len(found) < 200
    assert sum(width for _, width in found[:-1]) == pytest.approx(WIDTH)
    assert found[0][0] == "30 layers, 30 ms together: layer0, layer1, layer2, layer3, …, layer28, layer29"
    (note,) = [text.text for text in root.iter(f"{SVG}text") if "too thin" in (text.text or "")]
    assert note.startswith("5000 layers too thin to be seen by themselves are drawn together, in 167 pieces.")


@pytest.mark.parametrize(
    "costs, sizes",
    [
        ([], []),
        ([0, 0], [2]),
        ([9, 0, 9], [1, 1, 1]),
        ([1, 1, 1, 1, 1, 1, 1], [6, 1]),
        ([1, 9, 1, 1], [1, 1, 2]),
        ([3, 3], [1, 1]),
    ],
)
def test_only_neighbours_are_gathered(costs, sizes):
    assert [len(piece) for piece in pieces(cells(*costs), 3)] == sizes


@pytest.mark.parametrize(
    "kind, colour",
    [
        ("standard", 0),
        ("pointwise", 1),
        ("depthwise", 2),
        ("dilated depthwise", 2),
        ("grouped", 3),
        ("asymmetric", 4),
        ("dilated", 5),
        ("transposed", 5),
        ("transposed pointwise", 5),
        ("deformable", 5),
        (REST, None),
        ("something new", None),
    ],
)
def test_kinds_have_colours(kind, colour):
    root = drawn(Strip("before", cells(1, kind=kind)))
    fills = {rect.get("fill") for rect in root.iter(f"{SVG}rect")}
    assert fills == {None if colour is None else COLOURS[colour]}


def test_every_kind_of_a_convolution_has_a_colour():
    kinds = {spec.kind for case in BLOCKS.values() for spec in reconv.spec.convs(case.block)}
    for kind in kinds:
        assert "several" not in strip([Strip("", cells(1, kind=kind))], ""), kind


def test_names_are_escaped():
    name = "<script>\"'&"
    root = drawn(Strip(name, [Cell(name, name, 1.0, name, name)]))
    assert areas(root) == [(f"{name}: {name}", WIDTH)]
    assert not list(root.iter(f"{SVG}script"))


@pytest.mark.parametrize(
    "cost, unit, text",
    [
        (0.5123, "ms", "0.512 ms"),
        (1234.5, "ms", "1,234 ms"),
        (1234.5, "MACs", "1.23 k MACs"),
        (4.09e9, "MACs", "4.09 G MACs"),
        (0, "", "0"),
    ],
)
def test_amounts(cost, unit, text):
    assert amount(cost, unit) == text


def test_nothing_to_draw():
    assert areas(drawn(Strip("before", []))) == []
    assert areas(drawn(Strip("before", cells(0)), Strip("after", []))) == [("layer0: 0 ms", 0)]


# -- what layers see --------------------------------------------------------------------------------------------
def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "shape, size", [((9,), (24, 192)), ((9, 12), (144, 192)), ((5, 9, 12), (144, 192)), ((64, 32), (192, 96))]
)
def test_heat_lies_where_it_counts(shape, size):
    heat = np.zeros(shape)
    heat[tuple(n // 2 for n in shape)] = 2.0
    found = pixels(over(np.ones((3, *shape)), heat))
    assert found.shape == (*size, 3)
    warm = (np.abs(found - WARM).max(-1) < 40).mean()
    assert 0.3 / np.prod(shape[-2:]) < warm < 1.7 / np.prod(shape[-2:])


def test_frames_lie_where_they_are_and_may_end_outside():
    grey = np.zeros((1, 16, 16))
    plain = pixels(over(grey, np.zeros((16, 16))))
    found = pixels(over(grey, np.zeros((16, 16)), ((4, 8), (2, 6)), ((-3, 40), (-3, 40))))
    rows, columns = np.nonzero((found != plain).any(-1))
    assert (rows.min(), rows.max() + 1) == (4 * 12, 8 * 12)
    assert (columns.min(), columns.max() + 1) == (2 * 12, 6 * 12)
    thin = pixels(over(grey, np.zeros((16, 16)), ((3, 3), (5, 5))))
    assert (thin != plain).any()


@pytest.mark.parametrize(
    "shape, size", [((7,), (48, 112)), ((7, 14), (36, 72)), ((3, 7, 14), (36, 72)), ((1, 1), (72, 72))]
)
def test_maps_lie_side_by_side(shape, size):
    arrays = [np.random.default_rng(0).random(shape) for _ in range(3)]
    assert pixels(tiles(arrays)).shape[:2] == (size[0], 3 * size[1] + 2 * 2)


def test_a_map_of_one_value_or_of_nothing_that_counts_is_grey():
    for png in (tiles([np.full((4, 4), 7.0)]), tiles([np.full((4, 4), np.nan)])):
        assert len({tuple(colour) for line in pixels(png) for colour in line}) == 1


# -- notebooks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_shows_itself(name):
    root = ElementTree.fromstring(BLOCKS[name].block._repr_svg_())
    assert str(BLOCKS[name].block) in (root.get("aria-label") or "")


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_shows_its_block(name):
    layer = KINDS[name].make()
    assert layer._repr_svg_() == layer.block._repr_svg_()


def test_layers_keep_the_repr_of_torch():
    assert repr(reconv.nn.Conv2d(3, 4, 3)) == repr(nn.Conv2d(3, 4, 3))


def test_a_layer_that_no_block_says_shows_its_repr():
    chain = reconv.nn.SeparableConv2d(3, 4, 3, activation=nn.Softplus)
    assert chain._repr_svg_() is None
    assert not hasattr(Absorbed(), "_repr_svg_")


def test_what_draws_is_entered_when_something_is_shown(monkeypatch):
    monkeypatch.delitem(sys.modules, "reconv.drawing.blocks")
    assert (parse("ic3oc4k3x3")._repr_svg_() or "").startswith("<svg")
    assert "reconv.drawing.blocks" in sys.modules


def test_where_nobody_draws_a_notebook_takes_the_repr(monkeypatch):
    monkeypatch.setattr("reconv.shown._PAINTERS", {})
    assert parse("ic3oc4k3x3")._repr_svg_() is None
    assert Plan()._repr_html_() is None


def test_a_picture_without_an_input_has_no_shapes():
    assert "×9×" not in (parse("ic3oc4k3x3")._repr_svg_() or "")
