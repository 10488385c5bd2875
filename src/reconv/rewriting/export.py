"""`export`: a network as a file that runs without reconv, checked in a process where reconv cannot be imported."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from reconv.errors import ConvError, check_packages, conv_error
from reconv.ops.deform import DEFORM_CONV_OPSET, exported_as_deform_conv
from reconv.rewriting.agreement import agreement
from reconv.surgery import clone, tensors_of
from reconv.targets.exported import quiet
from reconv.writing import replacing, told

MINUTES = 10
OPSET = 20  # what torch's exporter writes by itself


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its outputs were from the network's.

    Args:    max_abs_error, tolerance: over all outputs, of the one that is nearest to its tolerance.
             ops: how often the file holds each operator. opset: ONNX's operator set; None in a .pt2.
             dynamic_batch: whether it takes any batch size; note: why not.
    """

    path: Path
    max_abs_error: float
    tolerance: float
    ops: dict[str, int] = field(default_factory=dict)
    dynamic_batch: bool = False
    note: str = ""
    opset: int | None = None


def export(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], path: str | Path, opset: int | None = None
) -> ExportReport:
    """Writes `model`, in evaluation mode, as .onnx or .pt2 with plain operators, and runs the file to check it.

    Args:    example_inputs: fix every size but the batch, which stays free where the network allows it.
             opset: ONNX's operator set, 20 by default. From 19 on deformable convolutions of two dimensions are its
             operator DeformConv; below, and in every other number of dimensions, they gather by plain operators.
    Returns: an ExportReport.
    Raises:  ConvError: when the network cannot be exported (its own error is quoted), a package is missing, or the
             file computes something else. `path` is then left as it was; `model` always is.
    Example:
             >>> import tempfile, torch
             >>> path = Path(tempfile.mkdtemp(), "net.pt2")
             >>> report = export(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 9, 9), path)
             >>> report.ops, report.dynamic_batch
             ({'aten.conv2d.default': 1}, True)
    """
    path, inputs = Path(path), tuple(x.detach().cpu() for x in tensors_of(example_inputs))
    if path.suffix not in FORMATS:
        raise conv_error("export", f"the file name must end in {' or '.join(FORMATS)}", got={"path": repr(str(path))},
                         also=ValueError)  # fmt: skip
    file_format = FORMATS[path.suffix]
    opset = _opset(file_format, opset)
    check_packages("export", "ONNX", "onnx", file_format.packages)
    with told(path, "export"):
        path.parent.mkdir(parents=True, exist_ok=True)
    copied = clone(model).cpu().eval()
    with quiet(), torch.no_grad():
        expected = _tensors(copied(*inputs))
        with replacing(path, "export") as part:
            with exported_as_deform_conv(opset is not None and opset >= DEFORM_CONV_OPSET):
                ops, note = _written(file_format, copied, inputs, part, opset)
            _check_ops(ops)
            got = _run_elsewhere(file_format, part, inputs)
            try:
                apart, tolerance = agreement(expected, got)
            except ValueError as error:
                raise _unequal(str(error)) from error
    return ExportReport(path, apart, tolerance, ops, not note, note, opset)


def _written(file_format: type[Onnx] | type[Pt2], model: nn.Module, inputs: tuple[Tensor, ...], part: Path,
             opset: int | None) -> tuple[dict[str, int], str]:  # fmt: skip
    """Writes the network for any batch size, or for the given one; the operators, and why not for any."""
    try:
        program = _traced(model, _two_batches(inputs), _any_batch(inputs))
        return file_format.write(program, part, opset), ""
    except (ConvError, OSError):
        raise
    except Exception as error:
        reason = _one_line(_first(error))
    try:
        program = _traced(model, inputs, None)
    except Exception as error:
        raise _failed(model, error) from error
    try:
        return file_format.write(program, part, opset), f"the batch size is fixed at {len(inputs[0])}: {reason}"
    except (ConvError, OSError):
        raise
    except Exception as error:
        raise _inexpressible(program, error) or _failed(model, error) from error


def _traced(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> ExportedProgram:
    program = torch.export.export(model, inputs, dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _any_batch(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """The first axis of every input is the batch."""
    if len({x.shape[:1] for x in inputs}) > 1 or any(x.ndim == 0 for x in inputs):
        raise ValueError("the inputs differ in their first axis")
    batch = Dim("batch", min=1)
    return tuple({0: batch} for _ in inputs)


def _two_batches(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torch.export takes a batch of 0 or 1 to be meant literally; so it sees a larger one."""
    return tuple(torch.cat([x, x]) if x.ndim else x for x in inputs)


class Onnx:
    """ONNX, run by ONNX Runtime."""

    packages = ("onnx", "onnxscript", "onnxruntime")

    @staticmethod
    def write(program: ExportedProgram, path: Path, opset: int | None) -> dict[str, int]:
        import onnx

        torch.onnx.export(program, (), path, opset_version=opset, dynamo=True, verbose=False, external_data=False)
        model = onnx.load(path)
        written = next(each.version for each in model.opset_import if not each.domain)
        if written != opset:  # where ONNX cannot convert the operators, torch leaves them as they are
            raise _opset_error("torch must be able to write the network in this opset", opset, written=written)
        return dict(Counter(f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.node))

    run = """
import numpy, onnxruntime
from safetensors.numpy import load_file, save_file
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
given = load_file(inputs)
outs = session.run(None, {i.name: given[str(n)] for n, i in enumerate(session.get_inputs())})
save_file({str(n): numpy.ascontiguousarray(out).reshape(out.shape) for n, out in enumerate(outs)}, outputs)
"""


class Pt2:
    """torch.export's own format, run by torch."""

    packages = ()

    @staticmethod
    def write(program: ExportedProgram, path: Path, opset: int | None) -> dict[str, int]:
        memory = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.export.save(program, memory)
        path.write_bytes(memory.getbuffer())
        return dict(Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function"))

    run = """
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
given = load_file(inputs)
with torch.no_grad():
    out = torch.export.load(file).module()(*(given[str(n)] for n in range(len(given))))
leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
save_file({str(n): leaf.clone().contiguous() for n, leaf in enumerate(leaves)}, outputs)
"""


FORMATS: dict[str, type[Onnx] | type[Pt2]] = {".onnx": Onnx, ".pt2": Pt2}

# The other process: the same packages, but for reconv. `file` was written by this one a moment ago.
PRELUDE = """
import json, sys, warnings
warnings.simplefilter("ignore")
path, file, inputs, outputs = json.loads(sys.argv[1])
sys.path[:] = path
class NoReconv:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "reconv":
            raise ImportError("the exported file asks for reconv")
sys.meta_path.insert(0, NoReconv())
"""


def _run_elsewhere(file_format: type[Onnx] | type[Pt2], file: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of the written file, computed by a process without reconv."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "inputs.safetensors"), Path(folder, "outputs.safetensors")
        save_file({str(n): x.clone().contiguous() for n, x in enumerate(inputs)}, given)
        path = [entry for entry in sys.path if entry]  # without the working directory
        order = json.dumps([path, str(file.resolve()), str(given), str(out)])
        try:
            done = subprocess.run([sys.executable, "-I", "-c", PRELUDE + file_format.run, order],
                                  capture_output=True, text=True, timeout=60 * MINUTES, check=False)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _unequal(f"its check took more than {MINUTES} minutes") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise _unequal(f"it does not run: {last}")
        held = load_file(out)
        return [held[str(n)] for n in range(len(held))]


def _check_ops(ops: dict[str, int]) -> None:
    ours = [op for op in ops if op.split(".")[0] == "reconv"]
    if ours:
        raise _unequal(f"it holds operators of reconv's own: {', '.join(ours)}")


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output that may be a tuple, a dict, or such within such."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _opset(file_format: type[Onnx] | type[Pt2], given: int | None) -> int | None:
    if file_format is Onnx:
        if given is not None and not isinstance(given, int):
            raise _opset_error("opset must be an integer", repr(given))
        return OPSET if given is None else given
    if given is not None:
        raise _opset_error("only .onnx has an opset", given)
    return None


def _opset_error(must: str, opset: object, **more: object) -> ConvError:
    return conv_error("export", must, got={"opset": opset, **more}, do="Leave opset out.", also=ValueError)


def _inexpressible(program: ExportedProgram, error: BaseException) -> ConvError | None:
    """An operator that torch cannot translate, by name, and the modules that call it; None for other errors."""
    found = re.search(r"call_function\[target=(?:torch\.ops\.)?([\w.:]+)", str(error.__cause__ or error))
    if found is None:
        return None
    operator, error = found[1], _first(error)
    sites = _callers(program, operator) or _callers(program.run_decompositions(), operator)
    return conv_error("export", "ONNX must have each operator of the network", also=RuntimeError,
                      got={"operator": operator, "sites": ", ".join(sites) or "unknown",
                           "error": repr(_one_line(error))}, do="Replace it, or export to .pt2.")  # fmt: skip


def _callers(program: ExportedProgram, operator: str) -> list[str]:
    """Paths of the modules in whose forward the operator is called; the network itself is shown by its class."""
    stacks = [node.meta.get("nn_module_stack") for node in program.graph.nodes if str(node.target) == operator]
    last = [list(stack.values())[-1] for stack in stacks if stack]
    paths = [path.partition("@")[0] or str(kind).rpartition(".")[2] for path, kind in last]
    return list(dict.fromkeys(paths))


def _first(error: BaseException) -> BaseException:
    """The first cause, which is the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _failed(model: nn.Module, error: Exception) -> ConvError:
    return conv_error("export", "torch must be able to export the network", also=RuntimeError,
                      got={"model": type(model).__name__, "error": repr(_one_line(error))})  # fmt: skip


def _unequal(reason: str) -> ConvError:
    return conv_error("export", "the file must compute what the network computes", got={"file": reason},
                      do="Nothing was written.", also=RuntimeError)  # fmt: skip


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition(" For more information")[0] if lines else ""
    return f"{type(error).__name__}: {first}"[:300]
