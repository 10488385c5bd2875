"""Trains the demo network: `python -m reconv.demo.train`. Writes its weights and its log beside this file."""

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.demo.digits import accuracy, digits
from reconv.demo.network import WEIGHTS, DigitsVGG
from reconv.targets import to_layout

EPOCHS, BATCH, PEAK_LR, SEED = 14, 100, 3e-3, 0
LOG = Path(WEIGHTS).with_name("training_log.json")


def shaken(images: Tensor) -> Tensor:
    """Each image turned by up to 12°, scaled by up to 10% and shifted by up to 2 pixels."""
    n = len(images)
    angle = (torch.rand(n) * 2 - 1) * math.radians(12)
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.1
    shift = (torch.rand(n, 2) * 2 - 1) * (2 / 14)
    theta = torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0],
                         scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1).view(n, 2, 3)  # fmt: skip
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def main() -> None:
    torch.manual_seed(SEED)
    train, held_out = digits()
    images, labels = train.tensors
    model = to_layout(DigitsVGG(), "channels_last")
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    log = []
    for epoch in range(EPOCHS):
        model.train()
        started, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(shaken(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        log.append({"epoch": epoch + 1, "loss": round(total / len(images), 4),
                    "held_out_accuracy": round(accuracy(model, held_out), 4),
                    "seconds": round(time.perf_counter() - started, 1)})  # fmt: skip
        print(log[-1], flush=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in half.items()}, WEIGHTS)
    settings = {"epochs": EPOCHS, "batch": BATCH, "peak_lr": PEAK_LR, "seed": SEED, "torch": torch.__version__}
    LOG.write_text(json.dumps({"settings": settings, "epochs": log}, indent=1) + "\n")


if __name__ == "__main__":
    main()
