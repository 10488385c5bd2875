"""The comparison with peers: what needs none of them."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


def room(name: str) -> ModuleType:
    """A module of benchmarks/compress, run as `python -m` runs it from the root."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"benchmarks.compress.{name}")


data, networks, report, store, train = (room(n) for n in ("data", "networks", "report", "store", "train"))


# -- data -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", data.PHOTOS)
def test_no_pixel_of_a_photo_is_on_both_sides(name: str) -> None:
    image = torch.arange(7 * 101).view(1, 7, 101).expand(3, 7, 101)
    left, right = (set(data.part(image, side).unique().tolist()) for side in (data.TRAIN, data.TEST))
    assert left
    assert right
    assert not left & right
    assert min(data.part(data.photo(name), data.TEST).shape[1:]) >= data.SIDES[1]


@pytest.mark.parametrize("draw, shape", [(data.crops, (3, 32, 32)), (data.solids, (1, 16, 16, 16)),
                                         (data.digits, (1, 28, 28))])  # fmt: skip
def test_samples_are_the_same_again_and_others_on_the_other_side(draw, shape) -> None:
    first, again, other, held = (draw(side, 30, data.seeded(seed)).tensors[0]
                                 for side, seed in ((0, 5), (0, 5), (0, 6), (1, 5)))  # fmt: skip
    assert first.shape == (30, *shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seen, unseen = ({sample.numpy().tobytes() for sample in samples} for samples in (first, held))
    assert not seen & unseen


def test_solids_and_digits_split_by_digit() -> None:
    """The two sides hold other images; what is turned and drawn again is the same side's."""
    sides = [{image.numpy().tobytes() for image in side.tensors[0]} for side in data.both_sides()]
    assert not sides[data.TRAIN] & sides[data.TEST]


def test_a_rotation_keeps_lengths() -> None:
    turns = data.rotations(torch.rand(5, 3, generator=data.seeded(0)) * 3)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(5, 3, 3))


# -- networks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", networks.NETWORKS.values(), ids=lambda network: network.name)
def test_a_network_reads_its_samples_and_learns(network) -> None:
    inputs, labels = network.draw(data.TRAIN, 8, data.seeded(3)).tensors
    model = network.build()
    nn.functional.cross_entropy(model.train()(inputs), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert network.tested >= 1000


# -- what is kept -----------------------------------------------------------------------------------
def halved(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(conv.in_channels, 2, 1, bias=False),
                         nn.Conv2d(2, conv.out_channels, conv.kernel_size, conv.stride, conv.padding))  # fmt: skip


@pytest.mark.parametrize("replaced", [(), ("3",), ("0", "3")])
def test_a_student_comes_back_as_it_was(replaced, tmp_path) -> None:
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 7, (1, 3), bias=False)
    original = nn.Sequential(convs[0], nn.BatchNorm2d(5), nn.ReLU(), convs[1], nn.Flatten(), nn.Linear(7 * 5 * 3, 4))
    original.eval()
    student = nn.Sequential(*original)
    for name in replaced:
        setattr(student, name, halved(student.get_submodule(name)))
    store.save(student.eval(), tmp_path)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(store.load(original, tmp_path)(x), student(x))
    assert store.structure(original).keys() == {"0", "1", "3", "5"}


# -- the report -------------------------------------------------------------------------------------
def row(method: str, setting: str, accuracy: float, torch_ms: float, onnx_ms: float) -> dict:
    timing = {"spread_ms": 0.1, "rounds": 9, "low_ms": 1.0}
    return {"method": method, "setting": setting, "accuracy": accuracy, "macs": 7_000_000, "params": 12_345,
            "latency": {"torch:1": {"median_ms": torch_ms, **timing},
                        "onnxruntime:1": {"median_ms": onnx_ms, **timing}}}  # fmt: skip


RESULT = {
    "network": "resnet", "title": "a network", "tested": 1000, "calibration": 100, "epochs": 2,
    "machine": {"cpu": "some", "torch": "2", "threads": 1, "clock": "wall"},
    "rows": [
        row("as trained", "", 0.90, 10.0, 8.0),
        row("batch norms folded", "", 0.90, 8.0, 8.0),
        row("reconv", "latency 0.5, target torch:1", 0.899, 5.0, 9.9),
        row("reconv", "latency 0.5, target onnxruntime:1", 0.895, 9.9, 4.0),
        row("reconv", "latency 0.25, target torch:1", 0.87, 2.6, 9.9),
        {"method": "fasterai Tucker", "setting": "percent_removed 0.5", "refused": "it serves 2D"},
        row("tensorly-torch Tucker", "rank 0.5", 0.88, 4.0, 3.0),
        row("Torch-Pruning loss", "ratio 0.5, over layer", 0.91, 4.0, 5.0),
    ],
}  # fmt: skip


def test_points_of_reconv_are_those_planned_for_the_engine() -> None:
    ours, theirs = report.sides(report.points(RESULT, "torch:1"))
    assert [(p.ratio, round(p.loss, 3)) for p in ours] == [(0.5, 0.1), (0.26, 3.0)]
    assert [(p.method, p.ratio) for p in theirs] == [("tensorly-torch Tucker", 0.4), ("Torch-Pruning loss", 0.4)]


def points(*pairs: tuple[float, float], method: str = "some") -> list:
    return [report.Point(method, "x", ratio, loss) for ratio, loss in pairs]


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], []),
        ([(0.5, 1.0)], [(0.5, 1.0)]),
        ([(0.5, 1.0), (0.4, 1.0)], [(0.4, 1.0)]),  # as accurate, and slower
        ([(0.5, 1.0), (0.5, 0.5)], [(0.5, 0.5)]),
        ([(0.7, 0.1), (0.3, 2.0), (0.5, 3.0), (0.6, 0.5)], [(0.3, 2.0), (0.6, 0.5), (0.7, 0.1)]),
    ],
)
def test_the_front_is_what_nothing_beats(given, expected) -> None:
    assert report.front(points(*given)) == points(*expected)


@pytest.mark.parametrize(
    "ratio, expected",
    [(0.75, (0.5, 0.4)), (0.5, (0.5, 0.4)), (0.48, (0.5, 0.4)), (0.47, (0.3, 1.0)), (0.2, None)],
)
def test_the_best_within_a_latency_and_its_noise(ratio, expected) -> None:
    found = report.within(points((0.5, 0.4), (0.3, 1.0), (0.28, 2.0)), ratio)
    assert (found and (found.ratio, found.loss)) == expected


@pytest.mark.parametrize(
    "theirs, ours, expected",
    [
        ([(0.4, 0.1)], [(0.5, 0.2)], [((0.4, 0.1), (0.5, 0.2))]),
        ([(0.49, 0.1)], [(0.5, 0.2)], []),  # not faster by more than noise
        ([(0.4, 0.2)], [(0.5, 0.2)], []),  # not more accurate
        ([(0.4, 0.1)], [(0.5, 0.2), (0.35, 0.0)], []),  # another of ours has more of both
        ([(0.4, 0.1), (0.3, 0.0)], [(0.5, 0.2)], [((0.3, 0.0), (0.5, 0.2))]),
    ],
)
def test_a_peer_wins_where_it_is_faster_and_more_accurate(theirs, ours, expected) -> None:
    found = report.wins(points(*theirs, method="peer"), points(*ours))
    assert [((peer.ratio, peer.loss), (mine.ratio, mine.loss)) for peer, mine in found] == expected


def test_the_page_and_the_picture(tmp_path) -> None:
    (tmp_path / "compress.md").write_text((ROOT / "docs" / "compress.md").read_text())
    report.write([RESULT], tmp_path)
    text = (tmp_path / "compress.md").read_text()
    assert "| resnet | PyTorch | 0.10 / -1.00 | 0.10 / -1.00 | 3.00 / – | 3.00 / – |" in text
    assert "resnet, PyTorch: Torch-Pruning loss (ratio 0.5, over layer; latency 0.40, -1.00 points lost) beats" in text
    assert "fasterai Tucker: it serves 2D." in text
    picture = ElementTree.fromstring((tmp_path / "compress.svg").read_text())
    assert len(picture.findall(".//{*}circle[@class='dot']")) == 4 + 3
    report.write([RESULT], tmp_path)
    assert (tmp_path / "compress.md").read_text() == text
    (tmp_path / "compress.md").write_text("no marks")
    with pytest.raises(SystemExit, match="short"):
        report.write([RESULT], tmp_path)


RESULTS = sorted(file.stem for file in (ROOT / "benchmarks" / "compress" / "results").glob("*.json"))


def test_there_are_results_of_the_networks() -> None:
    assert set(RESULTS) <= set(report.ORDER) == set(networks.NETWORKS)
    assert RESULTS


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_what_the_report_reads(name) -> None:
    result = json.loads((ROOT / "benchmarks" / "compress" / "results" / f"{name}.json").read_text())
    assert result["rows"][0]["method"] == report.GIVEN
    assert result["network"] == name in networks.NETWORKS
    for each in result["rows"]:
        assert ("refused" in each) != ("latency" in each)
        if "latency" in each:
            assert each["latency"].keys() == report.ENGINES.keys()
            assert all(timing["median_ms"] > 0 for timing in each["latency"].values())
            assert 0 <= each["accuracy"] <= 1
            assert min(each["macs"], each["params"]) > 0
