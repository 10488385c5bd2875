"""Accuracy of the demo's network in ONNX Runtime's 8-bit integers: as it was, rewritten, and both quantised.

    reconv demo && python benchmarks/quantise.py [RUN] [--images 512]

Static quantisation in QDQ form, a scale for each channel of the weights, calibrated on training images; the accuracy is
that of the 1,000 held-out digits. Nothing is timed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import reconv
from reconv.demo.digits import digits
from reconv.demo.network import digits_vgg

BATCH = 64


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images, a batch at a time."""

    def __init__(self, images: Tensor, name: str) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: x.numpy()} for x in images.split(BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def quantised(path: Path, images: Tensor) -> Path:
    """The 8-bit twin of an ONNX file, beside it."""
    prepared, made = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(path, prepared)
    reader = Images(images, session(path).get_inputs()[0].name)
    quantize_static(prepared, made, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    return made


def accuracy(path: Path, images: Tensor, labels: Tensor) -> float:
    run = session(path)
    name = run.get_inputs()[0].name
    guesses = np.concatenate([run.run(None, {name: x.numpy()})[0].argmax(1) for x in images.split(250)])
    return float((guesses == labels.numpy()).mean())


def in_integers(path: Path) -> int:
    """Convolutions whose input and weight are both dequantised: those that an engine computes in integers."""
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return sum(node.op_type == "Conv" and {makers.get(x) for x in node.input[:2]} == {"DequantizeLinear"}
               for node in graph.node)  # fmt: skip


def rows(networks: dict[str, nn.Module], calibration: int, folder: Path) -> list[Sequence[object]]:
    """Name, convolutions in integers, size of the file, accuracy: of each network in float32 and in 8 bits."""
    train, held_out = digits()
    images = train.tensors[0][torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:calibration]]
    made: list[Sequence[object]] = []
    for name, model in networks.items():
        path = reconv.export(model, images[:1], folder / f"{name}.onnx").path
        for label, file in ((name, path), (f"{name}, 8 bits", quantised(path, images))):
            made.append((label, in_integers(file), file.stat().st_size, accuracy(file, *held_out.tensors)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo", help="the run folder of the rewritten network")
    parser.add_argument("--images", type=int, default=512, help="training images to calibrate on")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    networks = {"as it was": digits_vgg(), "rewritten": reconv.load(given.run)}
    print("| network | convolutions in integers | file, KiB | accuracy |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, convs, size, right in rows(networks, given.images, Path(folder)):
            print(f"| {name} | {convs} | {int(str(size)) / 1024:.0f} | {right:.1%} |")


if __name__ == "__main__":
    main()
