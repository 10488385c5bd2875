"""`.pt2` files of torch.export as networks of modules, read as plain data.

torch.export.load unpickles, imports and evaluates what a file says. Here its graph is read as JSON and its tensors as
numbers; operators are ATen's only, and no word of the file becomes code. Convolutions, batch norms and ReLUs become
modules again under their old names, so that they can be rewritten.
"""

from __future__ import annotations

import io
import json
import operator
import re
import zipfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from reconv.errors import ConvError, conv_error
from reconv.files import check_stored
from reconv.rewriting.raised import layer_of

MAJOR = 8  # of the schema that torch.export.save has written since PyTorch 2.8
DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
          7: torch.float32, 8: torch.float64, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
          13: torch.bfloat16}  # fmt: skip
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
STRIDED = 7
SMALL = 2**24  # bytes of a tensor that may repeat its numbers
ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)  # fx writes it into source code
NUMBERS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge")
FUNCTIONS = {f"_operator.{name}": getattr(operator, name) for name in (*NUMBERS, "getitem", "and_", "or_")}
FUNCTIONS |= {f"torch.sym_{name}": getattr(torch, f"sym_{name}") for name in ("max", "min", "int", "float", "not")}
CHECKS = ("_assert_", "sym_constrain_range")  # what they check is checked at the entrance
# any other word might be the name of a file
WORDS = {"same", "valid", "constant", "reflect", "replicate", "circular", "none", "tanh", "floor", "trunc", "ij", "xy"}
EQUATION = re.compile(r"[A-Za-z ,.>-]*")


def read_pt2(path: Path) -> nn.Module:
    """The network of a .pt2 file, in evaluation mode, on the CPU.

    Raises:  ConvError: when the file is missing, cut short, of another format, changes its own buffers, takes or gives
             what are no tensors, or has operators other than ATen's (the first is named).
    """
    try:
        if not path.exists():
            raise conv_error("pt2", "the file must exist", got={"file": path}, also=FileNotFoundError)
        check_stored(path)
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).network()
    except ConvError:
        raise
    except Exception as error:  # whatever a damaged file brings about
        raise conv_error("pt2", "the file must be whole, and written by torch.export.save of PyTorch 2.8 or later",
                         got={"file": path, "error": repr(f"{type(error).__name__}: {error}"[:200])},
                         also=ValueError) from error  # fmt: skip


class _Reader:
    """An open file, the network's parts, and what each name of the file stands for in the new graph."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.root, self.graph = archive, nn.Module(), fx.Graph()
        self.held: dict[str, Any] = {}  # a name of the file: its node, or the number that it is
        self.stored: dict[str, str] = {}  # a name of the file: the path of the tensor
        (model,) = (name for name in archive.namelist() if name.endswith("/models/model.json"))
        self.prefix = model.removesuffix("models/model.json")
        self.program = json.loads(archive.read(model))
        self.module = self.program["graph_module"]
        self.tensors = self.module["graph"]["tensor_values"]
        if self.program["schema_version"]["major"] != MAJOR:
            raise conv_error("pt2", f"the schema of the file must be {MAJOR}.x",
                             got={"schema": self.program["schema_version"]["major"]},
                             do="Export it again with this PyTorch.", also=ValueError)  # fmt: skip

    def network(self) -> nn.Module:
        shapes = self.inputs()
        for node in self.module["graph"]["nodes"]:
            self.node(node)
        self.graph.output(self.output())
        network = fx.GraphModule(self.root, self.graph, "Exported")
        network.register_forward_pre_hook(Sizes(shapes, self.program.get("range_constraints") or {}))
        return network.eval()

    def inputs(self) -> list[list[Any]]:
        """Stores the tensors, makes a placeholder for each input; the inputs' shapes, as the file has them."""
        held = self.payload("weights") | self.payload("constants")
        shapes = []
        for spec in self.module["signature"]["input_specs"]:
            ((kind, told),) = spec.items()
            if kind == "user_input" and "as_tensor" in told["arg"]:
                name = told["arg"]["as_tensor"]["name"]
                self.held[name] = self.graph.placeholder(name)
                shapes.append(self.tensors[name]["sizes"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self.store(told["arg"]["name"], told[f"{kind}_name"], held, kind)
            else:
                raise conv_error("pt2", "every input must be a tensor", got={"input": kind}, also=TypeError)
        return shapes

    def payload(self, folder: str) -> dict[str, Tensor]:
        """The tensors of a folder of the file, by their names in the network."""
        base = f"{self.prefix}data/{folder}/"
        config = json.loads(self.archive.read(f"{base}model_{folder}_config.json"))["config"]
        return {name: self.tensor(base + meta["path_name"], meta) for name, meta in config.items()}

    def tensor(self, entry: str, meta: Mapping[str, Any]) -> Tensor:
        data = self.archive.read(entry)
        if meta["use_pickle"]:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if not isinstance(loaded, Tensor):
                raise conv_error("pt2", "what the file holds must be tensors", got={"entry": entry}, also=TypeError)
            return loaded.detach()
        told = meta["tensor_meta"]
        size, stride = ([each["as_int"] for each in told[axis]] for axis in ("sizes", "strides"))
        dtype = DTYPES[told["dtype"]]
        if prod(size) * dtype.itemsize > max(len(data), SMALL):  # by strides of 0
            raise ValueError(f"{entry!r} has {len(data):,} bytes, and claims a tensor of {size}")
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
        return flat.as_strided(size, stride, told["storage_offset"]["as_int"])

    def store(self, name: str, path: str, held: Mapping[str, Tensor], kind: str) -> None:
        tensor = held[path]
        parent, _, last = path.rpartition(".")
        holder = self.holder(parent)
        if kind == "parameter":
            holder.register_parameter(last, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            holder.register_buffer(last, tensor)
        self.stored[name] = path

    def holder(self, path: str) -> nn.Module:
        """The module at a path, made where there is none."""
        if path and not PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no name of a module")
        module = self.root
        for part in path.split(".") if path else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        return module

    def node(self, node: Mapping[str, Any]) -> None:
        if node["target"].startswith(tuple(f"torch.ops.aten.{check}" for check in CHECKS)):
            return
        target = _function(node)
        given = [(each, self.value(each["arg"], node)) for each in node["inputs"]]
        self.check_unchanged(target, {each["name"]: value for each, value in given})
        args = tuple(value for each, value in given if each.get("kind") != 2)
        kwargs = {each["name"]: value for each, value in given if each.get("kind") == 2}
        if isinstance(target, torch._ops.OpOverload) and (raised := self.raised(node, target, {each["name"]: each["arg"]
                                                          for each in node["inputs"]})):  # fmt: skip
            made = self.graph.call_module(raised, args[:1])
        else:
            made = self.graph.call_function(target, self.loaded(args), self.loaded(kwargs))
        self.name_outputs(node["outputs"], made)

    def check_unchanged(self, target: Any, given: Mapping[str, Any]) -> None:
        """The operator writes into no tensor of the network, as batch norms in training do."""
        if not isinstance(target, torch._ops.OpOverload):
            return
        written = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if any(isinstance(given.get(name), _Stored) for name in written) or given.get("training") is True:
            raise _changing(str(target))

    def raised(self, node: Mapping[str, Any], target: Any, given: Mapping[str, Any]) -> str | None:
        """The path of the module that does what the operator does, put in its place; None where it has no module."""
        stack = (node.get("metadata") or {}).get("nn_module_stack", "").rpartition(";")[2].split(",")
        tensors = {
            key: self.stored.get(arg["as_tensor"]["name"], "") for key, arg in given.items() if "as_tensor" in arg
        }
        first = given.get("input") or given.get("self") or {}
        sizes = self.tensors[first["as_tensor"]["name"]]["sizes"] if "as_tensor" in first else []
        numbers = {key: next(iter(arg.values())) for key, arg in given.items() if key not in tensors}
        found = layer_of(self.root, target, tensors, numbers, len(sizes), stack[1] if len(stack) > 2 else "")
        if found is None:
            return None
        path, layer = found
        parent, _, last = path.rpartition(".")
        self.holder(parent)._modules[last] = layer
        return path

    def loaded(self, given: Any) -> Any:
        """Stored tensors as nodes of the graph, made where they are used."""
        return fx.node.map_aggregate(given, lambda x: self.graph.get_attr(x.path) if isinstance(x, _Stored) else x)

    def value(self, arg: Mapping[str, Any], node: Mapping[str, Any] | None = None) -> Any:
        """An argument of the file."""
        ((kind, held),) = arg.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self.named(held["name"])
            case "as_tensors":
                return [self.named(each["name"]) for each in held]
            case "as_sym_int" | "as_sym_bool" | "as_sym_float" | "as_optional_tensor":
                return self.value(held)
            case "as_name":
                return self.named(held)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools" | "as_optional_tensors":
                return [self.value(each) for each in held]
            case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_floats":
                return held
            case "as_float":
                return float(held)
            case "as_scalar_type":
                return DTYPES[held]
            case "as_memory_format":
                return FORMATS[held]
            case "as_device":
                return torch.device("cpu")
            case "as_layout" if held == STRIDED:
                return torch.strided
            case "as_string" if held in WORDS or (node and "einsum" in node["target"] and EQUATION.fullmatch(held)):
                return held
        raise _foreign(node, argument=repr(str(held)[:40]))

    def named(self, name: str) -> Any:
        return _Stored(self.stored[name]) if name in self.stored else self.held[name]

    def name_outputs(self, outputs: Sequence[Mapping[str, Any]], made: fx.Node) -> None:
        """The file's names for what an operator gives: one value, or several."""
        several = len(outputs) > 1
        for place, output in enumerate(outputs):
            ((kind, held),) = output.items()
            if kind == "as_tensors":
                for index, each in enumerate(held):
                    self.held[each["name"]] = self.graph.call_function(operator.getitem, (made, index))
            elif kind != "as_none":
                name = held["name"] if "name" in held else held["as_name"]
                self.held[name] = self.graph.call_function(operator.getitem, (made, place)) if several else made

    def output(self) -> Any:
        specs = self.module["signature"]["output_specs"]
        if kinds := {kind for spec in specs for kind in spec} - {"user_output"}:
            raise _changing(", ".join(kinds))
        leaves = [self.value(spec["user_output"]["arg"]) for spec in specs]
        told = json.loads(self.module["module_call_graph"][0]["signature"]["out_spec"])[1]
        return _assembled(told, iter(self.loaded(leaves)))


class _Stored:
    """A tensor of the file that is an attribute of the network."""

    def __init__(self, path: str) -> None:
        self.path = path


class Sizes:
    """Refuses inputs of other sizes than the file was exported for: its graph may hold them as numbers."""

    def __init__(self, shapes: list[list[Any]], ranges: Mapping[str, Any]) -> None:
        self.shapes = [[_size(size) for size in shape] for shape in shapes]
        self.ranges = {name: (each.get("min_val"), each.get("max_val")) for name, each in ranges.items()}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        known: dict[str, int] = {}
        fits = len(inputs) == len(self.shapes) and all(
            x.ndim == len(shape) and all(map(lambda size, wanted: self.fits(size, wanted, known), x.shape, shape))
            for x, shape in zip(inputs, self.shapes, strict=True)
        )
        if not fits:
            raise conv_error("pt2", "inputs must have the sizes that the file was exported for",
                             got={"sizes": ", ".join(str(tuple(x.shape)) for x in inputs), "exported": str(self)},
                             do="Export it with dynamic_shapes for others.", also=ValueError)  # fmt: skip

    def fits(self, size: int, wanted: int | str | None, known: dict[str, int]) -> bool:
        if not isinstance(wanted, str):
            return wanted is None or size == wanted
        lo, hi = self.ranges.get(wanted, (None, None))
        return known.setdefault(wanted, size) == size and (lo is None or size >= lo) and (hi is None or size <= hi)

    def __str__(self) -> str:
        return ", ".join("(" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + ")"
                         for shape in self.shapes)  # fmt: skip


def _size(told: Mapping[str, Any]) -> int | str | None:
    """A number, the name of a size that may vary, or None for one that follows from others."""
    if "as_int" in told:
        return int(told["as_int"])
    found = re.match(r"(?:Symbol\('(\w+)'|(\w+)$)", told["as_expr"]["expr_str"])
    return (found[1] or found[2]) if found else None


def _function(node: Mapping[str, Any]) -> Any:
    """What an operator's name stands for: ATen's, or arithmetic of sizes."""
    target = node["target"]
    if target in FUNCTIONS:
        return FUNCTIONS[target]
    found = ATEN.fullmatch(target)
    packet = getattr(torch.ops.aten, found[1], None) if found else None
    if found is None or packet is None or found[2] not in packet.overloads():
        raise _foreign(node)
    return getattr(packet, found[2])


def _foreign(node: Mapping[str, Any] | None, **more: object) -> ConvError:
    """An operator, or an argument of one, that is not read."""
    told = node or {}
    stack = (told.get("metadata") or {}).get("nn_module_stack", "").rpartition(";")[2].split(",")
    site = {"site": stack[1]} if len(stack) > 1 and stack[1] else {}
    return conv_error("pt2", "every operator must be one of PyTorch's own (ATen) with plain arguments",
                      got={"operator": told.get("target", "output"), **site, **more},
                      do="Give the network's code instead: file.py:callable.", also=ValueError)  # fmt: skip


def _changing(operator: str) -> ConvError:
    return conv_error("pt2", "the network must not change its own tensors", got={"operator": operator},
                      do="Export it in evaluation mode: model.eval().", also=ValueError)  # fmt: skip


def _assembled(told: Mapping[str, Any], leaves: Any) -> Any:
    """The outputs in the tuples, lists and dicts in which the network gave them."""
    kind, children = told["type"], told["children_spec"]
    if kind is None:
        return next(leaves)
    if kind in ("builtins.dict", "collections.OrderedDict"):
        return {str(key): _assembled(child, leaves)
                for key, child in zip(json.loads(told["context"]), children, strict=True)}  # fmt: skip
    if kind not in ("builtins.tuple", "builtins.list"):
        raise conv_error("pt2", "outputs must be tensors, alone or in tuples, lists and dicts", got={"output": kind},
                         also=TypeError)  # fmt: skip
    made = [_assembled(child, leaves) for child in children]
    return tuple(made) if kind == "builtins.tuple" else made
