"""Deformable convolutions against the same in plain PyTorch, ONNX Runtime and torchvision, interleaved call by call.

    python benchmarks/deform.py [problems/deformable.txt] [threads] [seconds a problem]

A problem is a line: a block, the shape of its input, and perhaps `training`: the forward pass and all gradients. Peers
are a grid_sample for each kernel point (torch), or one for all of them (torch 1), and ONNX Runtime's DeformConv; and
torchvision where its operators can be loaded. A ratio is the peer's time over ours; of torch, the better one's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from reconv import functional
from reconv.spec import Deform, output_shape, parse
from reconv.targets import interleave

ORDER = ("input", "weight", "offset", "bias", "mask")  # ONNX's


def tensors_of(block: Deform, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Offsets of about a sample, as they are learned."""
    spec, torch_seed = block.conv, torch.manual_seed(0)
    points = block.offset_groups * math.prod(spec.kernel_size)
    out = output_shape(block, shape)[2:]
    tensors = {"input": torch.randn(shape, generator=torch_seed),
               "offset": torch.randn(shape[0], 2 * points, *out, generator=torch_seed),
               "weight": torch.randn(spec.weight_shape, generator=torch_seed) / 10}  # fmt: skip
    if spec.bias:
        tensors["bias"] = torch.randn(spec.out_channels, generator=torch_seed)
    if block.modulated:
        tensors["mask"] = torch.rand(shape[0], points, *out, generator=torch_seed)
    return tensors


# -- peers ----------------------------------------------------------------------------------------
def by_grid_sample(block: Deform, given: dict[str, Tensor], at_once: bool) -> Tensor:
    """The matrix of samples by grid_sample, of one kernel point at a time or of all at once, and a product."""
    spec, x, offset = block.conv, given["input"], given["offset"]
    batch, channels, height, width = x.shape
    high, wide = offset.shape[2:]
    groups, taps = block.offset_groups, math.prod(spec.kernel_size)
    offset = offset.view(batch * groups, taps, 2, high, wide)
    grids = []
    for axis, size in ((1, width), (0, height)):  # grid_sample's order
        point = torch.arange(taps) // (1, spec.kernel_size[1])[1 - axis] % spec.kernel_size[axis]
        along = torch.arange(offset.shape[3 + axis]) * spec.stride[axis]
        places = (point * spec.dilation[axis] - spec.padding[axis][0]).view(-1, 1, 1)
        places = places + (along.view(-1, 1) if axis == 0 else along)
        grids.append((offset[:, :, axis] + places) * (2 / (size - 1)) - 1)
    grid = torch.stack(grids, -1)  # (batch · groups, taps, high, wide, 2)
    maps = x.reshape(batch * groups, channels // groups, height, width)
    mask = given.get("mask")
    if at_once:
        samples = F.grid_sample(maps, grid.view(batch * groups, taps * high, wide, 2), align_corners=True)
        samples = samples.view(batch, groups, channels // groups, taps, high * wide)
        if mask is not None:
            samples = samples * mask.view(batch, groups, 1, taps, high * wide)
    else:
        each = [F.grid_sample(maps, grid[:, tap], align_corners=True) for tap in range(taps)]
        if mask is not None:
            shares = mask.view(batch * groups, taps, 1, high, wide)
            each = [sample * shares[:, tap] for tap, sample in enumerate(each)]
        samples = torch.stack(each, 2)
    rows = channels // spec.groups * taps
    bias = given["bias"] if "bias" in given else torch.zeros(spec.out_channels)
    if spec.groups == 1:
        weight = given["weight"].view(1, spec.out_channels, rows).expand(batch, -1, -1)
        output = torch.baddbmm(bias.view(-1, 1), weight, samples.reshape(batch, rows, high * wide))
    else:
        weight = given["weight"].view(spec.groups, -1, rows)
        output = weight @ samples.reshape(batch, spec.groups, rows, high * wide) + bias.view(spec.groups, -1, 1)
    return output.reshape(batch, spec.out_channels, high, wide)


def onnx_runtime(block: Deform, given: dict[str, Tensor], threads: int) -> Callable[[], Tensor]:
    """Inputs and output stay where they are (io binding): only the computation is timed."""
    spec, names = block.conv, [name if name in given else "" for name in ORDER]
    while not names[-1]:
        names.pop()
    pads = [lo for lo, _ in spec.padding] + [hi for _, hi in spec.padding]
    node = helper.make_node("DeformConv", names, ["output"], kernel_shape=spec.kernel_size, strides=spec.stride,
                            dilations=spec.dilation, pads=pads, group=spec.groups,
                            offset_group=block.offset_groups)  # fmt: skip
    weights = [helper.make_tensor(n, TensorProto.FLOAT, given[n].shape, given[n].numpy().tobytes(), raw=True)
               for n in ("weight", "bias") if n in given]  # fmt: skip
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, given[n].shape)
              for n in ("input", "offset", "mask") if n in given]  # fmt: skip
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output], weights), ir_version=9,
                              opset_imports=[helper.make_opsetid("", 19)])  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for value in inputs:
        binding.bind_cpu_input(value.name, given[value.name].numpy())
    result = np.empty(output_shape(block, tuple(given["input"].shape)), np.float32)
    binding.bind_output("output", "cpu", 0, np.float32, result.shape, result.ctypes.data)

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(result)

    return run


def torchvision_or_none() -> Callable[..., Tensor] | None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # a build for CUDA does not import without them
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        from torchvision.ops import deform_conv2d

        deform_conv2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1))
    except (ImportError, RuntimeError):
        return None
    return deform_conv2d


# -- the table ------------------------------------------------------------------------------------
def runners(block: Deform, shape: tuple[int, ...], training: bool, threads: int) -> dict[str, Callable[[], object]]:
    given = tensors_of(block, shape)
    window = {"stride": block.conv.stride, "padding": block.conv.padding, "dilation": block.conv.dilation}
    even = window | {"padding": block.conv.even_padding}
    ways: dict[str, Callable[[], Tensor]] = {
        "reconv": lambda: functional.deform_conv2d(**given, **window),
        "torch": lambda: by_grid_sample(block, given, at_once=False),
        "torch 1": lambda: by_grid_sample(block, given, at_once=True),
    }
    if TORCHVISION is not None:
        ways["torchvision"] = lambda: TORCHVISION(**given, **even)
    if not training:
        ways["ONNX Runtime"] = onnx_runtime(block, given, threads)
    expected = ways["reconv"]()
    for way in ways.values():
        torch.testing.assert_close(way(), expected, rtol=1e-3, atol=1e-3)
    if not training:
        return {name: torch.no_grad()(way) for name, way in ways.items()}
    grad, leaves = torch.randn_like(expected), [tensor.requires_grad_() for tensor in given.values()]
    return {name: lambda way=way: torch.autograd.grad(way(), leaves, grad) for name, way in ways.items()}


def main(file: str, threads: int, seconds: float) -> None:
    torch.set_num_threads(threads)
    if TORCHVISION is None:
        print("torchvision's operators cannot be loaded here")
    names = ["reconv", "torch", "torch 1", "ONNX Runtime", *(["torchvision"] if TORCHVISION else [])]
    print(f"{'ms, medians':62}" + "".join(f"{name:>13}" for name in names) + f"   ratios ({threads} threads)")
    ratios: dict[str, list[float]] = {}
    for line in Path(file).read_text().split("\n"):
        if not (line := line.partition("#")[0].strip()):
            continue
        text, _, rest = line.rpartition(") ")
        size, *words = rest.split()
        block, training = parse(text + ")"), "training" in words
        assert isinstance(block, Deform)
        runs = runners(block, tuple(map(int, size.split("x"))), training, threads)
        timings = interleave(list(runs.values()), seconds, 5, 200)
        ms = {name: timing.median_ms for name, timing in zip(runs, timings, strict=True)}
        peers = {"torch": min(ms["torch"], ms["torch 1"])}
        peers |= {name: ms[name] for name in ("ONNX Runtime", "torchvision") if name in ms}
        found = {name: peer / ms["reconv"] for name, peer in peers.items()}
        for name, ratio in found.items():
            ratios.setdefault(f"{name}, {'training' if training else 'forward'}", []).append(ratio)
        figures = "".join(f"{ms[name]:13.3f}" if name in ms else f"{'':13}" for name in names)
        print(f"{line:62}{figures}   {', '.join(f'{name} {ratio:.2f}' for name, ratio in found.items())}", flush=True)
    for name, each in ratios.items():
        mean = math.exp(sum(map(math.log, each)) / len(each))
        print(f"over {name}: geometric mean {mean:.2f}, {min(each):.2f} to {max(each):.2f}, {len(each)} problems")


TORCHVISION = torchvision_or_none()

if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(given.get(1, str(Path(__file__).parent / "problems" / "deformable.txt")),
         int(given.get(2, torch.get_num_threads())), float(given.get(3, 2)))  # fmt: skip
