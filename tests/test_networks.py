"""The field's named networks: counted as their papers count, trainable, and the same as elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeTarget
from nets import let_torchvision_import
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

import reconv
from reconv import networks
from reconv.errors import ConvError
from reconv.layers import ConcatLayer, MultiSizeConv2d, SeparableConv2d, ShuffledGroupConv2d, SqueezeExcite2d, SumLayer
from reconv.layers.deform import is_deformable
from reconv.models import resolve
from reconv.networks import CATALOGUE
from reconv.networks.convert import RENAMES
from reconv.networks.parts import Concat

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """`params`, `macs`: as published, rounded or cut at the last digit; "" where nobody published them."""

    params: str
    macs: str
    source: str
    shape: tuple[int, ...]  # an odd input
    output: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


IMAGE, LITTLE, SCORES = (2, 3, 65, 97), (2, 3, 33, 49), (2, 1000)
CASES = {
    # the paper's 60,000, the second convolution in full (+900), plain poolings (−44), linear outputs (+850)
    "lenet5": Case("61706", "", "LeCun 1998, II.B", (2, 1, 37, 45), (2, 10)),
    "alexnet": Case("60.9M", "724M", "Sze et al. 2017, table II (61M, 724M)", IMAGE, SCORES),
    "vgg11": Case("132863336", "7.609G", "torchvision; 133M in the paper", LITTLE, SCORES),
    "vgg16": Case("138357544", "15.47G", "torchvision; 138M in the paper", LITTLE, SCORES),
    "nin": Case("966986", "", "pytorchcv", (2, 3, 33, 47), (2, 10)),
    "googlenet": Case("6998552", "", "Caffe; 1.5G in the paper, with 34M for 118M at first", IMAGE, SCORES),
    "googlenet, torchvision": Case("6624904", "1.498G", "torchvision", IMAGE, SCORES, {"torchvision": True}),
    "inception_v3": Case("23.83M", "5.713G", "timm; torchvision", (2, 3, 75, 97), SCORES),
    "resnet18": Case("11689512", "1.814G", "torchvision; 1.8G in the paper", IMAGE, SCORES),
    "resnet50": Case("25557032", "4.089G", "torchvision", IMAGE, SCORES),
    "se_resnet50": Case("28088024", "", "timm", IMAGE, SCORES),
    "deform_resnet50": Case("", "", "", IMAGE, SCORES),
    "deform_resnet50, modulated": Case("", "", "", IMAGE, SCORES, {"modulated": True}),
    "deeplab_resnet50": Case("39638869", "168.73G", "torchvision, less its second head", IMAGE, (2, 21, 65, 97)),
    "resnet3d18": Case("33371472", "40.697G", "torchvision; 33.4M in the paper", (2, 3, 5, 33, 49), (2, 400)),
    "densenet121": Case("7978856", "2.834G", "torchvision", IMAGE, SCORES),
    "xception": Case("22855952", "8.4G", "Chollet 2016, table 3; timm", IMAGE, SCORES),
    "mobilenet_v1": Case("4.2M", "569M", "Howard et al. 2017, table 8", IMAGE, SCORES),
    "mobilenet_v2": Case("3504872", "301M", "torchvision; 3.4M and 300M in the paper", IMAGE, SCORES),
    "shufflenet_v1": Case("1865728", "137M", "pytorchcv; Zhang et al. 2017, table 1", IMAGE, SCORES),
    "convnext_tiny": Case("28589128", "4.456G", "torchvision", IMAGE, SCORES),
    "replknet31b": Case("79M", "15.3G", "Ding et al. 2022", (1, 3, 65, 33), (1, 1000)),
    "replknet31b, branched": Case("80M", "15.4G", "", (2, 3, 33, 33), SCORES, {"branched": True}),
    "wavenet": Case("", "", "", (1, 256, 173), (1, 256, 173)),
    "unet": Case("31030658", "", "Ronneberger et al. 2015, figure 1", (1, 1, 189, 205), (1, 2, 4, 20)),
    "unet, padded": Case("31030658", "", "", (1, 1, 37, 53), (1, 2, 32, 48), {"padded": True}),
}  # fmt: skip
each_case = pytest.mark.parametrize("name", CASES)
each_network = pytest.mark.parametrize("name", CATALOGUE)


def made(name: str, **more: Any) -> nn.Module:
    return CATALOGUE[name.partition(",")[0]].make(**CASES[name].arguments, **more)


def counts(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates as PyTorch's own counter has them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(shape, device=next(model.parameters()).device))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def is_printed_as(value: int, text: str) -> bool:
    """Whether rounding the value, or cutting it, gives such a text."""
    digits = re.fullmatch(r"(\d+(?:\.(\d+))?)([MG]?)", text)
    unit = {"": 1, "M": 10**6, "G": 10**9}[digits[3]]
    step = unit / 10 ** len(digits[2] or "")
    return value == int(text) if step == 1 else abs(value - float(digits[1]) * unit) < step


def test_every_network_has_a_case():
    assert {name.partition(",")[0] for name in CASES} == CATALOGUE.keys() == set(networks.__all__) - {
        "CATALOGUE", "Entry", "convert"}  # fmt: skip
    assert reconv.networks is networks


@each_case
def test_counts_are_the_published_ones(name):
    entry, case = CATALOGUE[name.partition(",")[0]], CASES[name]
    if "deform" in name:
        params, macs = deformable_counts(name)
    else:
        with torch.device("meta"):
            params, macs = counts(made(name), entry.input_shape)
    if not case.arguments:
        assert (params, macs) == (entry.params, entry.macs)
    assert not case.params or is_printed_as(params, case.params)
    assert not case.macs or is_printed_as(macs, case.macs)


def deformable_counts(name: str) -> tuple[int, int]:
    """PyTorch's counter does not know deformable convolutions: ResNet-50's and the convolutions of the offsets."""
    plain, per_sample = CATALOGUE["resnet50"], 27 if CASES[name].arguments else 18
    params = sum(p.numel() for p in made(name).parameters())
    assert params == plain.params + 3 * per_sample * (512 * 9 + 1)
    return params, plain.macs + 3 * per_sample * 512 * 9 * 7 * 7


def test_deformable_counts_are_the_summarys():
    with torch.device("cpu"):
        rows = reconv.summary(networks.deform_resnet50(), torch.zeros(1, 3, 64, 64)).rows
    plain = reconv.summary(networks.resnet50(), torch.zeros(1, 3, 64, 64))
    assert sum(row.macs for row in rows) == plain.total.macs + 3 * 18 * 512 * 9 * 2 * 2
    assert sum(row.kind == "deformable" for row in rows) == 3


@each_case
def test_trains_on_an_odd_input(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = made(name).train()
    output = model(torch.randn(case.shape))
    assert output.shape == case.output
    (output * torch.randn(case.output)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@each_network
def test_other_channels_and_classes(name):
    shape, arguments = CATALOGUE[name].input_shape, {"channels": 5, "classes": 7}
    device = "cpu" if "deform" in name else "meta"
    shape = (1, 5, *shape[2:]) if device == "meta" else (1, 5, 33, 33)
    with torch.device(device):
        assert CATALOGUE[name].make(**arguments).eval()(torch.zeros(shape)).shape[1] == 7


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"channels": 0}, {"classes": True}, {"channels": 2.5}], ids=str)
@each_network
def test_wrong_arguments(name, wrong):
    ((argument, value),) = wrong.items()
    said = rf"^networks\.{name}: {argument} must be an integer >= 1; got {argument}={re.escape(str(value))}\.$"
    with pytest.raises(ConvError, match=said):
        CATALOGUE[name].make(**wrong)


# -- what they are made of ---------------------------------------------------------------------------------------
def kinds_in(model: nn.Module) -> set[str]:
    """What the modules themselves show."""
    kinds = set()
    for module in model.modules():
        if isinstance(module, _ConvNd):
            kinds |= conv_kinds(module)
        for kind, shown in SHOWN.items():
            if shown(module):
                kinds.add(kind)
    return kinds


def conv_kinds(conv: _ConvNd) -> set[str]:
    size, depthwise = conv.kernel_size, 1 < conv.groups == conv.in_channels
    asymmetric = len(size) == 2 and 1 in size and max(size) > 1
    kinds = {
        "transposed": isinstance(conv, _ConvTransposeNd), "dilated": max(conv.dilation) > 1,
        "pointwise": max(size) == 1, "depthwise": depthwise, "grouped": conv.groups > 1 and not depthwise,
        "asymmetric": asymmetric, "dimensions": len(size) != 2,
        "standard": max(size) > 1 and conv.groups == 1 and not asymmetric and not isinstance(conv, _ConvTransposeNd),
    }  # fmt: skip
    return {kind for kind, is_one in kinds.items() if is_one}


SHOWN: dict[str, Callable[[nn.Module], bool]] = {
    "separable": lambda m: isinstance(m, SeparableConv2d), "shuffled": lambda m: isinstance(m, ShuffledGroupConv2d),
    "multi_size": lambda m: isinstance(m, MultiSizeConv2d | Concat), "deformable": is_deformable,
    "squeeze_excite": lambda m: isinstance(m, SqueezeExcite2d), "dense": lambda m: type(m) is ConcatLayer,
}  # fmt: skip
ONLY_SEEN_IN_FORWARD = {"skip", "stacked"}


@each_network
def test_kinds_are_those_of_the_modules(name):
    with torch.device("meta"):
        found = kinds_in(CATALOGUE[name].make())
    assert set(CATALOGUE[name].kinds) - ONLY_SEEN_IN_FORWARD == found
    for kind in CATALOGUE[name].kinds:
        assert (ROOT / "docs" / "kinds" / f"{kind}.md").is_file()


@pytest.mark.parametrize("depth", [3, 10])
def test_wavenet_sees_the_past_only(depth):
    """Ten layers see 1,024 samples (van den Oord et al. 2016, section 2.1); the first convolution one more."""
    torch.manual_seed(0)
    model, sees = networks.wavenet(1, 2, width=8, skips=8, depth=depth, repeats=1).double(), 2**depth + 1
    x = torch.randn(1, 1, 2 * sees, dtype=torch.float64, requires_grad=True)
    model(x)[0, :, -7].sum().backward()
    touched = x.grad[0, 0].nonzero().flatten()
    assert (touched.min(), touched.max()) == (2 * sees - 6 - sees, 2 * sees - 7)


def test_branches_of_replknet_merge():
    """What is trained with branches is the same function with one kernel."""
    torch.manual_seed(0)
    block = varied(networks.large._large(6, 7, branched=True)).double()
    x = torch.randn(2, 6, 11, 9, dtype=torch.float64)
    merged = reconv.apply(block, reconv.plan(block, x, rules="fold_branches", target=FakeTarget()), x)
    assert (merged(x) - block(x)).abs().max() < 1e-9
    assert not any(isinstance(module, SumLayer) for module in merged.modules())


# -- the same elsewhere ------------------------------------------------------------------------------------------
SMALL = (2, 3, 65, 97)
THEIRS = {  # the package's own name, its arguments, ours, the input
    "vgg11": ("torchvision", "vgg11", {}, {}, SMALL),
    "vgg16": ("torchvision", "vgg16", {}, {}, SMALL),
    "vgg11, timm": ("timm", "vgg11", {}, {}, SMALL),
    "googlenet": ("torchvision", "googlenet", {"init_weights": False}, {"torchvision": True}, SMALL),
    "inception_v3": ("torchvision", "inception_v3", {"init_weights": False}, {}, (2, 3, 75, 97)),
    "inception_v3, timm": ("timm", "inception_v3", {}, {}, (2, 3, 75, 97)),
    "resnet18": ("torchvision", "resnet18", {"num_classes": 7}, {"classes": 7}, SMALL),
    "resnet18, timm": ("timm", "resnet18", {"in_chans": 1}, {"channels": 1}, (2, 1, 65, 97)),
    "resnet50": ("torchvision", "resnet50", {}, {}, SMALL),
    "resnet50, timm": ("timm", "resnet50", {}, {}, SMALL),
    "se_resnet50, timm": ("timm", "seresnet50", {}, {}, SMALL),
    "deeplab_resnet50": ("torchvision", "deeplabv3_resnet50", {"aux_loss": True, "weights_backbone": None}, {}, SMALL),
    "resnet3d18": ("torchvision", "r3d_18", {}, {}, (2, 3, 5, 33, 49)),
    "densenet121": ("torchvision", "densenet121", {}, {}, SMALL),
    "densenet121, timm": ("timm", "densenet121", {}, {}, SMALL),
    "xception, timm": ("timm", "legacy_xception", {}, {}, SMALL),
    "mobilenet_v1, timm": ("timm", "mobilenetv1_100", {}, {}, SMALL),
    "mobilenet_v2": ("torchvision", "mobilenet_v2", {}, {}, SMALL),
    "mobilenet_v2, timm": ("timm", "mobilenetv2_100", {}, {}, SMALL),
    "convnext_tiny": ("torchvision", "convnext_tiny", {}, {}, SMALL),
    "convnext_tiny, timm": ("timm", "convnext_tiny", {}, {}, SMALL),
}  # fmt: skip


def elsewhere(package: str, name: str, **arguments: Any) -> nn.Module:
    let_torchvision_import()
    if package == "timm":
        import timm

        return timm.create_model(name, **arguments)
    import torchvision

    return torchvision.models.get_model(name, weights=None, **arguments)


def varied(model: nn.Module) -> nn.Module:
    """Random numbers everywhere, so that each tensor counts and outputs stay of the order of one."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(3)
        elif tensor.ndim > 1 and "layer_scale" not in name:
            bound = math.sqrt(6 / tensor[0].numel())
            tensor.uniform_(-bound, bound)
        elif name.endswith(("bias", "running_mean")):
            tensor.uniform_(-0.3, 0.3)
        else:
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def test_every_conversion_has_a_case():
    assert {name.partition(",")[0] for name in THEIRS} == RENAMES.keys()


@pytest.mark.parametrize("name", THEIRS)
def test_weights_of_others_give_their_outputs(name):
    package, other, their_arguments, arguments, shape = THEIRS[name]
    ours = name.partition(",")[0]
    torch.manual_seed(0)
    with torch.device("meta"):
        model = CATALOGUE[ours].make(**arguments).eval()
        theirs = elsewhere(package, other, **their_arguments)
    theirs = varied(theirs.to_empty(device="cpu").double())
    model.load_state_dict(networks.convert(ours, theirs.state_dict(), **arguments), assign=True)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.inference_mode():
        got, want = model(x), theirs(x)
    want = want["out"] if isinstance(want, dict) else want
    largest = want.abs().max()
    assert (want[0] - want[1]).abs().max() > 1e-3 * largest  # the outputs do depend on what goes in
    assert (got - want).abs().max() <= 1e-9 * largest  # in float32, rounding grows with depth


def state(name: str, **arguments: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return elsewhere("torchvision", name, **arguments).state_dict()


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: networks.convert("resnet51", {}),
                r"networks\.convert: name must be one of vgg11, .*convnext_tiny; got name='resnet51'\.$"),
    "nobody else has it": (lambda: networks.convert("lenet5", {}), r"must be one of .*; got name='lenet5'\.$"),
    "empty": (lambda: networks.convert("resnet18", {}),
              r"the tensors must be those of the network; got name='resnet18', missing=\[head\.fc\.bias, "
              r"head\.fc\.weight, … 120 more\]\. Give the arguments that the network is made with\.$"),
    "another network": (lambda: networks.convert("resnet18", state("resnet50")),
                        r"got name='resnet18', unexpected=\[layer1\.0\.body\.conv3\.weight, .* more\]\. Give"),
    "other classes": (lambda: networks.convert("resnet18", state("resnet18", num_classes=7)),
                      r"got name='resnet18', different=\[head\.fc\.bias, head\.fc\.weight\]\. Give"),
    "without batch norms": (lambda: networks.convert("googlenet", state("googlenet", init_weights=False)),
                            r"missing=\[conv1\.conv\.bias, .*unexpected=\[conv1\.norm\.bias, "),
    "wrong arguments": (lambda: networks.convert("resnet18", {}, classes=0),
                        r"^networks\.resnet18: classes must be an integer >= 1; got classes=0\.$"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_converting(name):
    wrong, said = MISTAKES[name]
    with pytest.raises(ConvError, match=said):
        wrong()


# -- the rest of the package takes them --------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lenet5", "resnet18", "mobilenet_v2"])
def test_exact_rules_keep_the_outputs(name):
    torch.manual_seed(0)
    model = varied(CATALOGUE[name].make(classes=5)).double()
    x = torch.randn(1, *CATALOGUE[name].input_shape[1:2], 37, 45, dtype=torch.float64)
    plan = reconv.plan(model, x, rules="fold_batch_norm", target=FakeTarget())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(plan.edits) == norms
    student = reconv.apply(model, plan, x)
    with torch.inference_mode():
        got, want = student(x), model(x)
    assert (got - want).abs().max() <= 1e-9 * want.abs().max()


def test_a_run_needs_no_base_and_no_trust(tmp_path):
    torch.manual_seed(0)
    model, x = resolve("reconv.networks:lenet5"), torch.randn(2, 1, 32, 32)
    result = reconv.rewrite(model, x, rules="fuse_activation", epochs=0, ref="reconv.networks:lenet5")
    result.save(tmp_path / "run")
    assert torch.equal(reconv.load(tmp_path / "run")(x), result.model(x))


# -- the page ----------------------------------------------------------------------------------------------------
def line(name: str) -> str:
    """A network's line in docs/networks.md."""
    entry = CATALOGUE[name]
    kinds = ", ".join(f"[{kind.replace('_', ' ')}](kinds/{kind}.md)" for kind in entry.kinds)
    shape = "×".join(map(str, entry.input_shape[1:]))
    cells = (f"`{name}`", entry.paper, shape, f"{entry.params:,}", f"{entry.macs:,}", entry.published or "—", kinds)
    return "| " + " | ".join(cells) + " |"


def test_the_page_has_every_network():
    lines = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8").splitlines()
    assert [text for text in lines if text.startswith("| `")] == [line(name) for name in CATALOGUE]
