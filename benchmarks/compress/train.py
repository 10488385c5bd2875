"""Trains a network of the comparison, once: python -m benchmarks.compress.train NAME --cache FOLDER"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from reconv.demo.digits import accuracy
from reconv.targets import to_layout

from .data import TRAIN, seeded
from .networks import NETWORKS, Network

SAMPLES, BATCH, DECAY, SEED = 4000, 100, 0.02, 0


def trained(network: Network, cache: Path) -> nn.Module:
    """The network with its trained weights, which are made where the cache lacks them."""
    model = network.build()
    if network.trained:
        return model.eval()
    weights = cache / network.name / "trained.safetensors"
    if not weights.is_file():
        train(network, weights)
    model.load_state_dict(load_file(weights))
    return model.eval()


def train(network: Network, weights: Path) -> None:
    """Each epoch draws samples of its own."""
    torch.manual_seed(SEED)
    model, layout = network.build(), "channels_last"
    model = to_layout(model, layout)
    steps = network.training_epochs * math.ceil(SAMPLES / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.peak_lr, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.peak_lr, steps)
    test, log = network.test_data(), []
    for epoch in range(network.training_epochs):
        started, loss = time.perf_counter(), epoch_of(model, network, epoch, optimizer, schedule)
        log.append({"epoch": epoch + 1, "loss": round(loss, 4), "test_accuracy": round(accuracy(model, test), 4),
                    "seconds": round(time.perf_counter() - started, 1)})  # fmt: skip
        print(network.name, log[-1], flush=True)
    weights.parent.mkdir(parents=True, exist_ok=True)
    (weights.parent / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)


def epoch_of(model: nn.Module, network: Network, epoch: int, optimizer: torch.optim.Optimizer,
             schedule: torch.optim.lr_scheduler.LRScheduler) -> float:  # fmt: skip
    """Mean loss of one pass over fresh samples."""
    inputs, labels = samples(network, epoch).tensors
    total = 0.0
    model.train()
    for batch in torch.randperm(len(inputs)).split(BATCH):
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(batch)
    return total / len(inputs)


def samples(network: Network, epoch: int) -> TensorDataset:
    return network.draw(TRAIN, SAMPLES, seeded(100 + epoch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    for name in given.names:
        model = trained(NETWORKS[name], given.cache)
        print(f"{name}: {100 * accuracy(model, NETWORKS[name].test_data()):.2f} % of the test samples")


if __name__ == "__main__":
    main()
