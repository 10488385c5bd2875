"""Every rule that adds capacity, in whole networks: the same function, trained, stored and exported."""

import functools
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from handmade import distance
from nets import let_torchvision_import
from torch import Tensor, nn

import reconv
from reconv.planning.edits import restructure
from reconv.ruleset import Rule, rules_named
from reconv.surgery import find_sites

STRONGER = rules_named("stronger")
EXPAND, FOLD, FOLD_NORM = rules_named("expand_branches", "fold_branches", "fold_batch_norm")


# -- networks ----------------------------------------------------------------------------------------------
def timms(name: str) -> nn.Module:
    let_torchvision_import()
    return pytest.importorskip("timm").create_model(name, num_classes=5)


def sound() -> nn.Module:
    """1D: strided, dilated, grouped, circular, depthwise, transposed."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2), nn.BatchNorm1d(8), nn.GELU(),
        nn.Conv1d(8, 8, 5, padding=2, groups=8, padding_mode="circular"), nn.Conv1d(8, 12, 1), nn.ReLU(),
        nn.ConvTranspose1d(12, 6, 4, stride=2, padding=1, bias=False), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Conv1d(6, 3, 3, padding="same"),
    )  # fmt: skip


class Volume(nn.Module):
    """3D: uneven kernels, a residual, a map made smaller and larger again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 6, (3, 3, 1), padding=(1, 1, 0), padding_mode="replicate")
        self.down = nn.Conv3d(6, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.mix = nn.Conv3d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose3d(8, 6, 2, stride=2)
        self.head = nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norm(self.down(x)).relu()
        y = self.up(self.mix(y).relu() + y)
        return self.head((x + y).relu())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (functools.partial(timms, "resnet18"), (3, 47, 45)),
    "mobilenetv3_small_050": (functools.partial(timms, "mobilenetv3_small_050"), (3, 49, 47)),
    "convnext_atto": (functools.partial(timms, "convnext_atto"), (3, 65, 67)),
    "1D": (sound, (2, 46)),
    "3D": (Volume, (1, 8, 10, 6)),
}
IN_EACH = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """In evaluation mode, its norms as after some training; and an input of two samples."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, input = make(), torch.randn(2, *shape)
        with torch.no_grad():
            for norm in model.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):  # ResNet's last ones begin with 0
                    norm.weight.uniform_(0.5, 1.5)
            for _ in range(8):
                model.train()(torch.randn(4, *shape))
    return model.eval(), input


def planned(model: nn.Module, input: Tensor, *rules: Rule) -> reconv.Plan:
    """The rules in turn at every convolution that they serve, their proposals in turn."""
    edits, turn, step = [], cycle(rules), 0
    for site in find_sites(model, input).sites:
        rule = next(turn)
        if rule.refuse(site) is None:
            offers = list(rule.propose(site))
            chosen = offers[step % len(offers)]
            edits.append(reconv.Edit(site.name, rule.name, chosen.block, absorbs=chosen.absorbs))
            step += 1
    return reconv.Plan.from_dict(reconv.Plan(edits=tuple(edits)).to_dict())


def out(model: nn.Module, input: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input)


# -- the tests ---------------------------------------------------------------------------------------------
@IN_EACH
@pytest.mark.parametrize("rule", STRONGER, ids=lambda rule: rule.name)
def test_a_network_made_stronger(rule, name):
    model, input = network(name)
    plan = planned(model, input, rule)
    sites = find_sites(model, input).sites
    transposed = sum(site.spec.transposed for site in sites)
    assert len(plan.edits) == len(sites) - (transposed if rule.name == "deform" else 0)
    student = reconv.apply(model, plan, input)
    expected = out(model, input)
    assert distance(expected, out(student, input)) <= 1e-5
    again = restructure(model, plan)
    again.load_state_dict(student.state_dict())
    assert torch.equal(out(again, input), out(student, input))
    new = {f"{e.site}.{n}": p for e in plan.edits for n, p in student.get_submodule(e.site).named_parameters()}
    assert not learning(student.eval(), input, new)
    learning(again.train(), torch.cat([input, input.roll(1, -1), -input]), {})
    assert bool(out(again, input).isfinite().all())


def learning(model: nn.Module, input: Tensor, watched: dict[str, nn.Parameter]) -> set[str]:
    """Two steps of training; the parameters that had a gradient in none of them."""
    still = set(watched)
    step = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in range(2):
        output = model(input)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
        step.zero_grad()
        (output - target).square().mean().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        still -= {name for name, p in watched.items() if p.grad is not None and bool(p.grad.any())}
        step.step()
    return still


EXPORTS = [("onnx", name) for name in NETWORKS] + [("pt2", "1D"), ("pt2", "3D")]


@pytest.mark.parametrize("suffix, name", EXPORTS)
def test_all_rules_in_one_network_are_exported(suffix, name, tmp_path):
    model, input = network(name)
    plan = planned(model, input, *STRONGER)
    student = reconv.apply(model, plan, input)
    assert distance(out(model, input), out(student, input)) <= 1e-5
    report = reconv.export(student, input, tmp_path / f"net.{suffix}")
    assert report.max_abs_error <= report.tolerance
