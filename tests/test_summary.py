"""What each convolution costs: counted as PyTorch counts, known values, and every way to show it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import torch
from fakes import FakeTarget
from nets import NETS, SCRIPTED, let_torchvision_import
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reconv.costing.render import COLUMNS, human
from reconv.costing.summary import summary
from reconv.errors import ConvError

IMAGE = (2, 3, 17, 15)


class Functional(nn.Module):
    """A module run twice, and a functional convolution between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.kernel = nn.Parameter(torch.ones(3, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(self.conv(x), self.kernel, stride=2, groups=3))


def timm_network(name: str, **options: Any) -> nn.Module:
    let_torchvision_import()
    import timm

    return timm.create_model(name, **options).eval()


NETWORKS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "one": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=(2, 1)), (IMAGE,)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, dilation=2), ((1, 6, 9, 11),)),
    "1d": (lambda: nn.Conv1d(3, 5, 4, stride=3, padding=2, padding_mode="circular"), ((2, 3, 29),)),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=1), ((1, 2, 5, 6, 7),)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (IMAGE,)),
    "transposed, grouped, 1d": (lambda: nn.ConvTranspose1d(4, 6, 5, stride=3, groups=2, dilation=2), ((2, 4, 9),)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), ((1, 2, 3, 4, 5),)),
    "padding modes": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
                              nn.Conv2d(4, 2, 4, padding="same")),
        (IMAGE,),
    ),
    "unbatched": (lambda: nn.Conv2d(3, 4, 3), ((3, 9, 7),)),
    "shared and functional": (Functional, (IMAGE,)),
    "empty batch": (lambda: nn.Conv2d(3, 4, 3), ((0, 3, 9, 7),)),
    "resnet18": (lambda: timm_network("resnet18"), ((1, 3, 64, 64),)),
    "convnext": (lambda: timm_network("convnext_atto"), ((1, 3, 64, 64),)),
    "mobilenetv3": (lambda: timm_network("mobilenetv3_small_050"), ((1, 3, 64, 64),)),
    "vit": (lambda: timm_network("vit_tiny_patch16_224", img_size=32), ((1, 3, 32, 32),)),
    "regnet": (lambda: timm_network("regnety_002"), ((1, 3, 64, 64),)),
    "inception": (lambda: timm_network("inception_next_atto"), ((1, 3, 64, 64),)),
}  # fmt: skip


def counted(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Multiply-accumulates of the convolutions, as PyTorch's own counter has them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    by_operator = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in by_operator.items() if "convolution" in str(operator)) // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_pytorchs_counter(name):
    make, shapes = NETWORKS[name]
    model, inputs = make(), tuple(torch.zeros(shape) for shape in shapes)
    s = summary(model, inputs)
    assert s.total.macs == sum(row.macs for row in s.rows) == counted(model, inputs)
    assert s.network.macs >= s.total.macs
    assert s.network.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("net", [*NETS, SCRIPTED], ids=str)
def test_macs_of_trained_networks(net):
    model, inputs = net.load(), net.example()
    s = summary(model, inputs)
    assert s.total.macs == counted(model, inputs) > 0
    assert s.total.params <= s.network.params or net is SCRIPTED
    assert all(row.activation_bytes == 4 * torch.Size(row.output_shape).numel() for row in s.rows)
    modules = dict(model.named_modules())
    assert all(row.name in modules for row in s.rows)


def test_torchscript_and_plain_modules_say_the_same():
    scripted, plain = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval() for _ in range(2))
    rows = [summary(m, torch.zeros(IMAGE)).rows for m in (torch.jit.script(scripted), plain)]
    assert [str(r) for r in rows[0]] == [str(r) for r in rows[1]]


def test_rows_are_calls_in_their_order():
    s = summary(Functional(), torch.zeros(IMAGE))
    assert [row.name for row in s.rows] == ["conv", "conv2d", "conv"]
    assert [row.kind for row in s.rows] == ["standard", "depthwise", "standard"]
    assert [row.params for row in s.rows] == [84, 75, 84]
    assert [str(row.spec) for row in s.rows] == ["ic3oc3k3x3p1", "ic3oc3k5x5s2g3nb", "ic3oc3k3x3p1"]
    assert [row.weight_shape for row in s.rows] == [(3, 3, 3, 3), (3, 1, 5, 5), (3, 3, 3, 3)]
    assert [row.output_shape for row in s.rows] == [(2, 3, 17, 15), (2, 3, 7, 6), (2, 3, 7, 6)]
    assert [row.receptive_field for row in s.rows] == [(3, 3), (7, 7), (11, 11)]
    assert (s.total.params, s.network.params) == (84 + 75 + 84, 84 + 75)


@pytest.mark.parametrize(
    "model, shape, fields",
    [
        (nn.Conv2d(1, 1, (3, 5), dilation=(1, 2)), (1, 1, 20, 20), [(3, 9)]),
        (nn.Sequential(nn.Conv1d(1, 1, 3, stride=2), nn.Conv1d(1, 1, 3, stride=2), nn.Conv1d(1, 1, 3)), (1, 1, 40),
         [(3,), (7,), (15,)]),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)), (1, 1, 20, 20), [(3, 3), (8, 8)]),
    ],
)  # fmt: skip
def test_receptive_fields_of_simple_networks(model, shape, fields):
    assert [row.receptive_field for row in summary(model, torch.zeros(shape)).rows] == fields


def test_linear_layers_count_in_the_network_only():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 4 * 4, 5))
    s = summary(model, torch.zeros(3, 3, 4, 4))
    assert (s.total.macs, s.network.macs) == (3 * 16 * 6, 3 * 16 * 6 + 3 * 32 * 5)
    assert (s.total.activation_bytes, s.network.activation_bytes) == (3 * 32 * 4, 3 * 32 * 4 + 3 * 5 * 4)


# states ------------------------------------------------------------------------------------------


def test_an_untimed_summary_says_that_latencies_are_unavailable():
    s = summary(nn.Conv2d(3, 4, 3), torch.zeros(IMAGE))
    data = s.to_dict()
    unknown = {"value": None, "state": "unavailable", "spread": None}
    assert data["target"] is None
    assert data["rows"][0]["latency_ms"] == data["total"]["latency_ms"] == data["network"]["latency_ms"] == unknown
    assert data["rows"][0]["receptive_field"] == {"value": [3, 3], "state": "complete", "spread": None}
    assert data["total"]["macs"] == {"value": s.total.macs, "state": "complete", "spread": None}


def test_operators_from_elsewhere_make_the_count_a_lower_bound():
    with torch.library._scoped_library("reconv_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")

        class Foreign(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                return torch.ops.reconv_test.twice(self.conv(x))

        s = summary(Foreign(), torch.zeros(IMAGE))
    assert s.to_dict()["network"]["macs"]["state"] == "partial"
    assert s.to_dict()["total"]["macs"]["state"] == "complete"
    assert "≥ " in s.to_markdown()


@pytest.mark.parametrize("target", [FakeTarget(), "torch"], ids=["fake", "torch"])
def test_a_timed_summary(target):
    model, random = Functional().train(), torch.get_rng_state()
    s = summary(model, torch.zeros(IMAGE), target)
    assert s.target == (target if isinstance(target, str) else "fake")
    assert all(row.latency_ms > 0 and row.latency_spread_ms >= 0 for row in s.rows)
    assert s.total.latency_ms == pytest.approx(sum(row.latency_ms for row in s.rows))
    assert s.network.latency_ms > 0
    assert {v["state"] for part in ("total", "network") for k, v in s.to_dict()[part].items() if k != "params"} == {
        "complete"
    }
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_timed_summary_leaves_the_example_as_it_was():
    class Writes(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x = torch.ones(IMAGE)
    summary(Writes(3, 4, 3), x, FakeTarget())
    assert float(x.mean()) == 1


# showing it --------------------------------------------------------------------------------------

AWKWARD = "<script>|x [bold]"


@pytest.fixture(params=[None, FakeTarget()], ids=["untimed", "timed"])
def awkward(request):
    model = nn.Sequential()
    model.add_module(AWKWARD, nn.Conv2d(3, 4, 3))
    return summary(model, torch.zeros(IMAGE), request.param)


def test_json(awkward):
    data = json.loads(json.dumps(awkward.to_dict()))
    assert data == awkward.to_dict()
    assert data["rows"][0]["name"] == AWKWARD
    assert list(data["rows"][0]) == list(COLUMNS)


def test_csv(awkward):
    rows = list(csv.DictReader(io.StringIO(awkward.to_csv())))
    assert [row["name"] for row in rows] == [AWKWARD]
    assert (rows[0]["macs"], rows[0]["input_shape"]) == (str(awkward.rows[0].macs), "2×3×17×15")
    assert (rows[0]["latency_ms"] == "") == (awkward.target is None)


def test_markdown(awkward):
    lines = awkward.to_markdown().splitlines()
    assert len(lines) == 2 + 1 + 2
    assert "&lt;script>\\|x" in lines[2]
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(COLUMNS) + 1}


def test_html(awkward):
    page = awkward._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == page.count("</tr>") == 1 + 1 + 2


def test_terminal(awkward):
    console = Console(width=200, file=io.StringIO())
    console.print(awkward)
    shown = console.file.getvalue()
    assert AWKWARD in shown  # nor is markup taken out of names
    assert ("fake" in shown) == (awkward.target is not None)
    assert "whole network" in shown


@pytest.mark.parametrize("count, text", [(0, "0"), (999, "999"), (1000, "1 k"), (1234567, "1.23 M"), (2e9, "2 G")])
def test_large_numbers_for_people(count, text):
    assert human(count) == text


@pytest.mark.parametrize("target", ["openvono", "", "Torch"])
def test_an_unknown_target_is_refused(target):
    with pytest.raises(ConvError, match="target must be one of torch"):
        summary(nn.Conv2d(3, 4, 3), torch.zeros(IMAGE), target)
