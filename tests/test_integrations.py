"""Training goes on over a rewriting: plain PyTorch, Lightning, torch.compile, memory formats, autocast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeTarget, grid
from nets import let_torchvision_import
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reconv
from reconv.errors import ConvError
from reconv.rewriting.carry import for_training
from reconv.targets import layout_of

let_torchvision_import()  # which torchmetrics, and so Lightning, looks for
from pytorch_lightning import Callback, LightningModule, Trainer  # noqa: E402

from reconv.lightning import RewriteCallback  # noqa: E402

Y = torch.arange(24) % 3
X = grid(24, 3, 13, 11) + torch.eye(3)[Y].view(24, 3, 1, 1)  # the class is the brightest colour
SEPARABLE = {"site": "3", "rule": "separable", "block": "ic8oc8k3x3g8nb -> ic8oc12k1x1"}
KERNEL = {"site": "0", "rule": "asymmetric", "block": "ic3oc6k3x1p1:1x0:0nb -> ic6oc8k1x3p0:0x1:1nb"}
FOLD = {"site": "0", "rule": "fold_batch_norm", "block": "ic3oc8k3x3p1", "absorbs": ["1"]}
PLAN = reconv.Plan.from_dict({"format": 1, "edits": [SEPARABLE]})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Weights and all others, as is usual for weight decay."""
    wide = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": wide, "weight_decay": 0.01}, {"params": [p for p in model.parameters() if p.dim() <= 1]}]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model.train()(X), Y)
    loss.backward()
    optimizer.step()
    return loss.item()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.003, centered=True),
}
GROUPS: dict[str, Callable[[nn.Module], Any]] = {
    "one group": lambda model: model.parameters(),
    "two groups": groups_of,
    "with names": lambda model: ((f"net.{name}", p) for name, p in model.named_parameters()),
}


# -- the optimizer ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_survivors_keep_their_state_and_the_loss_goes_on_falling(name, groups):
    model = network()
    optimizer = OPTIMIZERS[name](GROUPS[groups](model))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    losses = [step(model, optimizer) for _ in range(6)]
    schedule.step()
    settings = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    states = {n: copied(optimizer.state[p]) for n, p in model.named_parameters()}

    after = reconv.apply(model, PLAN, X[:1], X)
    fresh = reconv.carry_optimizer(optimizer, model, after)

    assert fresh == ("3.0.weight", "3.1.weight", "3.1.bias")
    now = dict(after.named_parameters())
    for kept in now.keys() - {*fresh}:
        assert same(optimizer.state.get(now[kept], {}), states[kept])
    assert not any(now[n] in optimizer.state for n in fresh)
    assert not any(p in optimizer.state for p in model.parameters())
    assert settings == [{k: v for k, v in g.items() if k not in ("params", "param_names")}
                        for g in optimizer.param_groups]  # fmt: skip
    again = OPTIMIZERS[name](GROUPS[groups](after))  # a new one would have the same groups, in the same order
    for ours, theirs in zip(optimizer.param_groups, again.param_groups, strict=True):
        assert list(map(id, ours["params"])) == list(map(id, theirs["params"]))
        assert ours.get("param_names") == theirs.get("param_names")
    later = [step(after, optimizer) for _ in range(15)]
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(settings[0]["lr"] * 0.98)
    assert later[0] < losses[0]
    assert later[-1] < later[0]
    assert later[-1] < losses[-1]


def test_parameters_of_others_and_those_left_out_stay_so():
    model, head = network(), nn.Linear(3, 2)
    model[3].requires_grad_(False)
    chosen = [*head.parameters(), *(p for p in model.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(chosen, lr=0.1, momentum=0.9)
    after = reconv.apply(model, PLAN, X[:1])
    assert reconv.carry_optimizer(optimizer, model, after) == ()
    wanted = [*head.parameters(), *(p for n, p in after.named_parameters() if not n.startswith("3."))]
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, wanted))
    assert not any(p.requires_grad for p in after[3].parameters())


def test_a_parameter_of_another_shape_starts_anew():
    before, after = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)
    optimizer = torch.optim.Adam(before.parameters())
    before(X).sum().backward()
    optimizer.step()
    assert reconv.carry_optimizer(optimizer, before, after) == ("weight", "bias")
    assert not optimizer.state


def test_a_compiled_network_is_the_one_inside():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    after = reconv.apply(model, PLAN, X[:1])
    compiled = torch.compile(model)
    assert reconv.carry_optimizer(optimizer, compiled, torch.compile(after))[0] == "3.0.weight"
    assert optimizer.param_groups[0]["params"][0] is after[0].weight


@pytest.mark.parametrize(
    "make, said",
    [(lambda model: torch.optim.LBFGS(model.parameters()), "other than LBFGS; got optimizer=LBFGS"),
     (lambda model: "adam", "must be one of torch.optim's kind"),
     (lambda model: torch.optim.SGD(network().parameters(), lr=0.1), "must train parameters of `before`")],
    ids=["lbfgs", "no optimizer", "of another network"],
)  # fmt: skip
def test_what_cannot_be_carried_is_said(make, said):
    model = network()
    with pytest.raises(ConvError, match=said):
        reconv.carry_optimizer(make(model), model, reconv.apply(model, PLAN, X[:1]))


def test_exact_edits_come_behind_a_training():
    model = network().to(memory_format=torch.channels_last)
    made = for_training(reconv.Plan.from_dict({"format": 1, "edits": [KERNEL, SEPARABLE, FOLD]}), model)
    assert [edit.rule for edit in made.edits] == ["asymmetric", "separable"]
    assert made.layout == "channels_last"


# -- torch.compile, memory formats, autocast ----------------------------------------------------------------
def rewritten(model: nn.Module, rules: Sequence[str] | str) -> nn.Module:
    """With exact rules the plan chooses the faster memory format, else it is the model's."""
    budget = "macs=0.5" if rules == "smaller" else "latency=0.4"
    made = reconv.plan(model.eval(), X[:1], budget, X, FakeTarget(channels_last=0.9), rules)
    assert made.edits
    return reconv.apply(model, made, X[:1], X)


@pytest.mark.parametrize("rules", ["smaller", ("exact", "smaller")], ids=str)
def test_rewritten_networks_compile(rules):
    student = rewritten(network(), rules).eval()
    torch.compiler.reset()
    with torch.no_grad():
        assert torch.allclose(torch.compile(student, fullgraph=True)(X), student(X), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("rules", ["smaller", ("exact", "smaller")], ids=str)
def test_memory_format_and_autocast_are_kept(rules):
    model = network().to(memory_format=torch.channels_last)
    student = rewritten(model, rules).eval()
    maps = []
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: maps.append(out))
    assert layout_of(student) == "channels_last"
    with torch.no_grad():
        expected = student(X)
        assert all(out.is_contiguous(memory_format=torch.channels_last) for out in maps)
        with torch.autocast("cpu", torch.bfloat16):
            got = student(X)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() <= 0.05 * expected.abs().max()


# -- Lightning ----------------------------------------------------------------------------------------------
class Classifier(LightningModule):
    """A network and a head of its own, in two groups; keeps the loss of each epoch."""

    def __init__(self, optimizer: str = "adam", compiled: bool = False) -> None:
        super().__init__()
        self.net = torch.compile(network()) if compiled else network()
        self.head, self.kind, self.losses = nn.Linear(3, 3), optimizer, list[float]()

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])
        self.losses.append(loss.item())
        return loss

    def predict_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        return self.head(self.net(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.kind](groups_of(self))
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)]


class Watch(Callback):
    """What is there at the end of each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.layers: list[str] = []
        self.sizes: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.layers.append(type(pl_module.net[3]).__name__)
        self.sizes.append(sum(p.numel() for p in pl_module.net.parameters()))


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=12)


def trainer(tmp_path: Path, epochs: int, *callbacks: Callback) -> Trainer:
    return Trainer(max_epochs=epochs, callbacks=[*callbacks], accelerator="cpu", devices=1, logger=False,
                   enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                   default_root_dir=tmp_path)  # fmt: skip


GIVEN: dict[str, dict[str, Any]] = {
    "plan": {"plan": reconv.Plan.from_dict({"format": 1, "edits": [SEPARABLE, FOLD]})},
    "plan with data": {"plan": PLAN, "data": X},
    "budget": {"budget": "macs=0.6", "data": X, "target": FakeTarget()},
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_lightning_rewrites_at_an_epoch_and_trains_on(tmp_path, optimizer, given):
    module, watch = Classifier(optimizer), Watch()
    callback = RewriteCallback("net", X[:1], epoch=3, **GIVEN[given])
    trainer(tmp_path, 12, callback, watch).fit(module, loader())
    assert [size != watch.sizes[0] for size in watch.sizes] == [False] * 3 + [True] * 9
    assert isinstance(module.net[1], nn.BatchNorm2d)  # the exact edit was left out
    assert watch.rates == pytest.approx([watch.rates[0] * 0.97**i for i in range(12)])
    assert module.losses[6] < module.losses[0]
    assert module.losses[-1] < module.losses[6]


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_checkpoint_goes_on_to_the_same_weights(tmp_path, optimizer):
    """Stopped behind the rewriting and resumed, and never stopped: bit for bit."""
    whole = Classifier(optimizer)
    straight = trainer(tmp_path, 6, RewriteCallback("net", X[:1], PLAN, epoch=2))
    straight.fit(whole, loader())

    stopped = trainer(tmp_path, 4, RewriteCallback("net", X[:1], PLAN, epoch=2))
    stopped.fit(Classifier(optimizer), loader())
    stopped.save_checkpoint(tmp_path / "it.ckpt")
    resumed, again = Classifier(optimizer), trainer(tmp_path, 6, RewriteCallback("net", X[:1], PLAN, epoch=2))
    again.fit(resumed, loader(), ckpt_path=tmp_path / "it.ckpt", weights_only=True)

    assert same(dict(resumed.state_dict()), dict(whole.state_dict()))
    for ours, theirs in zip(again.optimizers, straight.optimizers, strict=True):
        assert same(state_of(ours, resumed), state_of(theirs, whole))
    assert "on_load_checkpoint" not in vars(resumed)


def test_a_checkpoint_is_loaded_to_predict(tmp_path):
    module, callback = Classifier(), RewriteCallback("net", X[:1], PLAN)
    before = trainer(tmp_path, 1, callback)
    before.fit(module, loader())
    before.save_checkpoint(tmp_path / "it.ckpt")
    other = Classifier()
    got = trainer(tmp_path, 1, RewriteCallback("net", X[:1], PLAN)).predict(
        other, loader(), ckpt_path=tmp_path / "it.ckpt", weights_only=True)  # fmt: skip
    assert torch.equal(torch.cat(got), module.eval().head(module.net(X)).detach())


def test_an_earlier_checkpoint_is_loaded_as_it_was(tmp_path):
    early = trainer(tmp_path, 1, RewriteCallback("net", X[:1], PLAN, epoch=2))
    early.fit(Classifier(), loader())
    early.save_checkpoint(tmp_path / "it.ckpt")
    module, watch = Classifier(), Watch()
    late = trainer(tmp_path, 4, RewriteCallback("net", X[:1], PLAN, epoch=2), watch)
    late.fit(module, loader(), ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    assert watch.layers == ["Conv2d", "ChainLayer", "ChainLayer"]


WRONG: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "neither": (Classifier, lambda: RewriteCallback("net", X[:1]), "either a plan or a budget must be given"),
    "both": (Classifier, lambda: RewriteCallback("net", X[:1], PLAN, budget="macs=0.5"), "either a plan or a budget"),
    "no name": (Classifier, lambda: RewriteCallback("", X[:1], PLAN), "module must name a part"),
    "unknown": (Classifier, lambda: RewriteCallback("body", X[:1], PLAN), "It has net, head"),
    "compiled": (lambda: Classifier(compiled=True), lambda: RewriteCallback("net", X[:1], PLAN),
                 "must not be compiled yet"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_rewritten_is_said(tmp_path, name):
    module, callback, said = WRONG[name]
    with pytest.raises(ConvError, match=said):
        trainer(tmp_path, 1, callback()).fit(module(), loader())


def test_without_lightning_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.delitem(sys.modules, "reconv.lightning")
    with pytest.raises(ConvError, match=r"pip install 'reconv\[lightning\]'") as caught:
        importlib.import_module("reconv.lightning")
    assert isinstance(caught.value, ImportError)
