"""What modules lose when channels that they take are gone, and how their weights take it up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reconv.ruleset.canonical import dense_weight, float64, torch_weight
from reconv.spec import ConvSpec
from reconv.surgery.channels import leaf_kind
from reconv.surgery.clone import applied, fresh
from reconv.surgery.coupled import Channels, Numbers
from reconv.surgery.norms import evaluating
from reconv.surgery.surroundings import SAMPLES, Surroundings

ROWS = 2, 1024, 4096  # samples of a module's inputs: so many a channel, at least, at most
RIDGE = 1e-3  # of the mean of the diagonal, added to it


@dataclass
class Reader:
    """A module that computes with channels: its weight as (groups, outputs, channels of the group, taps).

    Args:    roots: of the channels, (groups, channels of the group).
             second: E[x·xᵀ] of the channels of each group, about `mean` where that is given.
             taps: positions that one channel takes of a linear layer's inputs.
    """

    name: str
    module: nn.Module
    weight: Tensor
    roots: Numbers
    second: Tensor
    mean: Tensor | None
    spec: ConvSpec | None

    def gram(self) -> Tensor:
        """Σ_o,k w[o, c, k] · w[o, d, k], of each group."""
        flat = self.weight.transpose(1, 2).flatten(2)
        return flat @ flat.mT

    def energy(self) -> float:
        """E‖response‖², taps taken as alike."""
        return float((self.gram() * self.second).sum())

    def refitted(self, keep: Callable[[Numbers], Any]) -> dict[str, Tensor]:
        """Its tensors, as many as before, where those channels that go weigh 0 and the others do their work.

        W'[K] = W[K] + W[R] · A,    A = C[R, K] · C[K, K]⁻¹,    b' = b + W[R] · (μ[R] − A · μ[K])
        """
        weight, tensors = self.weight.clone(), applied(self.module)
        shift = torch.zeros(weight.shape[:2], dtype=weight.dtype)
        for g, roots in enumerate(self.roots):
            stays = torch.from_numpy(keep(roots))
            kept, gone = stays.nonzero().flatten(), (~stays).nonzero().flatten()
            if not len(gone):
                continue
            second = self.second[g]
            fit = torch.linalg.solve(_ridged(second[kept][:, kept]), second[kept][:, gone]).mT
            lost = weight[g][:, gone]
            weight[g][:, kept] += torch.einsum("ort,rk->okt", lost, fit)
            if self.mean is not None:
                rest = self.mean[g][gone] - fit @ self.mean[g][kept]
                shift[g] = torch.einsum("ort,r->o", lost, rest)
            weight[g][:, gone] = 0
        like = tensors["weight"]
        tensors["weight"] = self._packed(weight).to(like)
        if "bias" in tensors and self.mean is not None:
            tensors["bias"] = (float64(tensors["bias"]) + shift.flatten()).to(tensors["bias"])
        return tensors

    def _packed(self, weight: Tensor) -> Tensor:
        if self.spec is None:
            return weight[0].flatten(1)
        return torch_weight(self.spec, weight.reshape(*weight.shape[:3], *self.spec.kernel_size))


def reader(name: str, around: Surroundings, ins: Numbers, weight_of: Numbers | None = None) -> Reader:
    """A module's weight and what is known of its inputs: all alike, where there are no samples.

    Args:    ins: the roots of its inputs; weight_of: by root, how large such a channel is, where there are no samples.
    """
    module = around.model.get_submodule(name)
    if isinstance(module, nn.Linear):
        spec, taps = None, taps_of(ins)
        weight = float64(module.weight).reshape(1, module.out_features, -1, taps)
        roots = ins[::taps].reshape(1, -1)
    else:
        spec = ConvSpec.of(module)
        weight = dense_weight(spec, applied(module)["weight"]).cpu().flatten(3)
        roots = ins.reshape(spec.groups, -1)
    groups, count = roots.shape
    columns = around.columns.get(name)
    if columns is None or columns.shape[1] != roots.size:
        sizes = torch.ones(roots.size) if weight_of is None else torch.from_numpy(weight_of[roots].reshape(-1))
        return Reader(name, module, weight.cpu(), roots, torch.diag_embed(sizes.double().reshape(groups, count)), None,
                      spec)  # fmt: skip
    samples = columns.double().reshape(len(columns), groups, count).transpose(0, 1)
    mean = samples.mean(1) if module.bias is not None else None
    if mean is not None:
        samples = samples - mean[:, None]
    return Reader(name, module, weight.cpu(), roots, samples.mT @ samples / samples.shape[1], mean, spec)


def taps_of(ins: Numbers) -> int:
    """How many inputs in a row are one channel, the same for all."""
    ends = [0, *((ins[1:] != ins[:-1]).nonzero()[0] + 1).tolist(), len(ins)]
    lengths = {b - a for a, b in pairwise(ends)}
    return lengths.pop() if len(lengths) == 1 else 1


def _ridged(second: Tensor) -> Tensor:
    diagonal = second.diagonal()
    return second + (RIDGE * diagonal.mean() + 1e-12) * torch.eye(len(second), dtype=second.dtype)


# -- samples --------------------------------------------------------------------------------------
def gather(around: Surroundings, channels: Channels, readers: Iterable[str]) -> None:
    """Draws samples of what the readers take from the calibration data; where some are missing, of all there are."""
    taps = {n: taps_of(leaf.ins) for n, leaf in channels.leaves.items() if leaf.kind in ("conv", "linear")
            and leaf_kind(around.model.get_submodule(n))}  # fmt: skip
    missing = [n for n in taps if not _gathered(around, channels, n)]
    if not around.batches or not set(missing) & set(readers):
        return
    rows: dict[str, list[Tensor]] = {name: [] for name in missing}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows[name].append(_columns(module, args[0].detach(), taps[name]))

        return hook

    model = around.model
    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in missing]
    try:
        with torch.no_grad(), evaluating(model):
            left = SAMPLES
            for batch in around.batches:
                model(*fresh(batch.rows(slice(left)).inputs))
                left -= len(batch)
                if left <= 0:
                    break
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in rows.items():
        if parts:  # else it runs in another way through the network's decisions
            around.columns[name] = _thinned(torch.cat(parts))


def _gathered(around: Surroundings, channels: Channels, name: str) -> bool:
    ins = channels.leaves[name].ins
    return name in around.columns and around.columns[name].shape[1] == len(ins) // taps_of(ins)


def _columns(module: nn.Module, x: Tensor, taps: int) -> Tensor:
    """(positions, channels)."""
    if isinstance(module, nn.Linear):
        x = x.reshape(-1, x.shape[-1] // taps, taps).movedim(1, -1)
    else:
        dims = len(module.kernel_size)  # type: ignore[arg-type]
        x = x.movedim(x.ndim - 1 - dims, -1)
    return _thinned(x.reshape(-1, x.shape[-1])).float().cpu()


def _thinned(rows: Tensor) -> Tensor:
    """Some of the rows, evenly over all."""
    per, least, most = ROWS
    wanted = min(max(per * rows.shape[1], least), most)
    return rows[torch.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().long()]
