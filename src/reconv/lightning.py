"""`RewriteCallback`: a network of a LightningModule is rewritten at the start of an epoch, and trained on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reconv.errors import conv_error
from reconv.planning.edits import restructure
from reconv.planning.make import plan as make
from reconv.planning.plan import Plan
from reconv.rewriting.apply import apply
from reconv.rewriting.carry import carry_optimizer, for_training, trained_by
from reconv.surgery import tensors_of

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise conv_error("reconv.lightning", "PyTorch Lightning must be installed", got={"missing": error.name},
                     do="pip install 'reconv[lightning]'.", also=ImportError) from error  # fmt: skip

HOOK = "on_load_checkpoint"


class RewriteCallback(Callback):
    """Rewrites a network of a LightningModule at the start of an epoch, and goes on training it.

    Parameters that the rewriting keeps (same name, shape and dtype) keep the optimizer's state, see
    `reconv.carry_optimizer`; groups and schedulers go on. A checkpoint holds the plan: a trainer with this callback
    first gives the network that structure, then loads it, for `fit` as for `validate`, `test` and `predict`.

    Args:    module: the attribute of the LightningModule that is the network, such as "net" or "model.backbone".
             example_inputs: inputs of that network. plan: what it becomes; its exact edits are left out, since they
             fold batch norms that training wants: apply them behind it. None: one is made then, for `budget`.
             epoch: at whose start it happens, counted from 0. data: as for `reconv.apply`.
             options: further ones of `reconv.plan`: target, sites, rules ("smaller" if none are given), seed …
    Raises:  ConvError: at that epoch, when the network is compiled or trained by several processes, and whatever
             `plan`, `apply` and `carry_optimizer` raise.
    """

    def __init__(self, module: str, example_inputs: Tensor | Sequence[Any], plan: Plan | None = None, *,
                 budget: str | Mapping[str, float | str] | None = None, epoch: int = 0, data: object = None,
                 **options: Any) -> None:  # fmt: skip
        if (plan is None) == (budget is None and not options):
            raise conv_error("RewriteCallback", "either a plan or a budget must be given", also=ValueError,
                             got={"plan": None if plan is None else "given", "budget": budget})  # fmt: skip
        if not module:
            raise conv_error("RewriteCallback", "module must name a part of the LightningModule", also=ValueError,
                             got={"module": repr(module)}, do="Keep the network in an attribute, as net.")  # fmt: skip
        self.module, self.inputs, self.plan = module, tensors_of(example_inputs), plan
        self.budget, self.epoch, self.data, self.options = budget, epoch, data, {"rules": "smaller", **options}
        self.order: list[list[list[str]]] = []  # names of the parameters, by optimizer and group
        self.done = self.restored = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    # -- the rewriting ----------------------------------------------------------------------------
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.done or trainer.current_epoch < self.epoch:
            return
        before = self._network(pl_module)
        _check_alone(trainer, pl_module, before)
        device = next((p.device for p in before.parameters()), torch.device("cpu"))
        inputs = tuple(x.to(device) if isinstance(x, Tensor) else x for x in self.inputs)
        plan = self.plan or make(before, inputs, self.budget, self.data, **self.options)
        self.plan = for_training(plan, before)
        after = apply(before, self.plan, inputs, self.data).train(before.training)
        for optimizer in trainer.optimizers:
            if not trained_by(optimizer).isdisjoint(map(id, before.parameters())):
                carry_optimizer(optimizer, before, after)
        self._put(pl_module, after)
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self.order = [[[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
                      for optimizer in trainer.optimizers]  # fmt: skip

    def _network(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            raise conv_error("RewriteCallback", "module must name a part of the LightningModule", also=ValueError,
                             got={"module": self.module}, do=f"It has {', '.join(dict(pl_module.named_children()))}.",
                             ) from error  # fmt: skip

    def _put(self, pl_module: LightningModule, network: nn.Module) -> None:
        parent, _, leaf = self.module.rpartition(".")
        setattr(pl_module.get_submodule(parent), leaf, network)
        self.done = True

    # -- checkpoints ------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Text and names only, so that `weights_only=True` loads it."""
        if not self.done or self.plan is None:
            return {}
        return {"plan": replace(self.plan, considered=(), refusals=()).text(), "order": self.order}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning loads a module's weights before it asks callbacks, but tells the module first."""
        told = getattr(pl_module, HOOK)
        setattr(pl_module, HOOK, functools.partial(self._restore_first, pl_module, told))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop(HOOK, None)

    def _restore_first(self, pl_module: LightningModule, told: Any, checkpoint: dict[str, Any]) -> None:
        self.restore(pl_module, checkpoint)
        told(checkpoint)

    def restore(self, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Gives the network the structure that a checkpoint of Lightning's says; its weights are not loaded yet."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state and not self.done:
            self.plan, self.order = Plan.from_dict(json.loads(state["plan"])), state["order"]
            before = self._network(pl_module)
            self._put(pl_module, restructure(before, self.plan).train(before.training))
            self.restored = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The states of optimizers are loaded after this, by position: so the parameters come in the order of then."""
        if not self.restored:
            return
        parameters = dict(pl_module.named_parameters())
        for optimizer, names in zip(trainer.optimizers, self.order, strict=True):
            now = [len(group["params"]) for group in optimizer.param_groups]
            if now != list(map(len, names)):
                raise conv_error("RewriteCallback", "configure_optimizers must give the groups of the checkpoint",
                                 got={"groups of": now, "then of": list(map(len, names))}, also=ValueError,
                                 do="Take the groups from the shapes of named_parameters().")  # fmt: skip
            for group, ordered in zip(optimizer.param_groups, names, strict=True):
                group["params"] = [parameters[name] for name in ordered]


def _check_alone(trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> None:
    """Several processes hold the parameters that they were given at the start, and so does what was compiled."""
    if trainer.world_size > 1 or trainer.strategy.model is not pl_module:
        raise conv_error("RewriteCallback", "one process must train the module as it is", also=RuntimeError,
                         got={"processes": trainer.world_size, "strategy": type(trainer.strategy).__name__},
                         do="Rewrite in one process, then train the result in several.")  # fmt: skip
    if hasattr(network, "_orig_mod"):
        raise conv_error("RewriteCallback", "the network must not be compiled yet", also=RuntimeError,
                         got={"module": type(network).__name__}, do="Compile what it becomes.")  # fmt: skip
