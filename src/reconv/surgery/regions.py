"""`region`: a whole module as one block, where its forward pass is an expression over blocks.

The pass is traced (torch.fx). Where branches join again the block has branches; where an output is used in another
way, where control flow reads values, or an operation has no block, the reason is told.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reconv.errors import ConvError
from reconv.layers.compose import ChainLayer, block_of
from reconv.layers.described import Described
from reconv.layers.sequence import Absorbed
from reconv.spec import Activation, BatchNorm, Block, Branches, Chain
from reconv.surgery.clone import applied, user_hooks
from reconv.surgery.norms import normalises

EPS = 1e-5  # of a BatchNorm block
IDENTITY = Activation("identity")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SAME = (nn.Identity, Absorbed, *DROPOUTS)  # in evaluation
ADDITIONS = (operator.add, operator.iadd, torch.add)
FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.relu: "relu", torch.relu_: "relu", F.relu: "relu", F.relu6: "relu6", F.leaky_relu: "leaky_relu",
    F.elu: "elu", F.silu: "silu", F.gelu: "gelu", F.hardswish: "hardswish", F.hardsigmoid: "hardsigmoid",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", torch.tanh: "tanh", F.tanh: "tanh",
}  # fmt: skip
METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}


@dataclass(frozen=True)
class Region:
    """A block with its tensors, and the modules whose work it does, by their names in the region."""

    block: Block
    tensors: dict[str, Tensor]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """One operation on the way from the input. Two steps are the same where their node is."""

    node: fx.Node
    block: Block
    tensors: dict[str, Tensor]
    modules: tuple[str, ...] = ()
    place: int = 0  # of several in one node


class _NoBlockError(Exception):
    """Why a module is no block; a refusal, never shown as an error."""


Path = tuple[_Step, ...]


def region(module: nn.Module) -> Region | str:
    """The block that a module computes in evaluation, or why there is none.

    Example:
             >>> class Block(nn.Module):
             ...     def __init__(self):
             ...         super().__init__()
             ...         self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
             ...     def forward(self, x):
             ...         return torch.relu(self.a(x) + self.b(x)) + x
             >>> str(region(Block()).block)
             '((ic4oc4k3x3p1 + ic4oc4k1x1nb) -> relu + identity)'
    """
    if _is_leaf(module):  # which tracing would look into
        whole = region(nn.Sequential(module))
        return whole if isinstance(whole, str) else replace(
            whole, modules=tuple(name.partition(".")[2] for name in whole.modules))  # fmt: skip
    try:
        graph = _Tracer(module).trace(module)
    except Exception as error:  # whatever a forward pass may raise that is given a proxy
        return f"its forward pass cannot be traced: {' '.join(str(error).split())[:200] or type(error).__name__}"
    try:
        path = _output(module, graph)
        _check_used_once(path)
        block, tensors = _assembled(path)
    except (_NoBlockError, ConvError) as reason:
        return str(reason)
    return Region(block, tensors, tuple(_modules(path)))


class _Tracer(fx.Tracer):
    """Goes into every module that no block names."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        # before tracing, when a look at a parameter becomes a part of the graph
        self.leaves = {module for module in root.modules() if module is not root and _is_leaf(module)}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.leaves or super().is_leaf_module(module, name)


def _is_leaf(module: nn.Module) -> bool:
    if isinstance(module, (*SAME, ChainLayer, Described, _BatchNorm)):
        return True
    try:
        block_of(module)
    except ConvError:
        return False
    return True


def _output(module: nn.Module, graph: fx.Graph) -> Path:
    """The way from the input to the output."""
    paths: dict[fx.Node, Path] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            if paths:
                raise _NoBlockError("it takes several inputs")
            paths[node] = ()
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node) or node.args[0] not in paths:
                raise _NoBlockError("it does not give one map")
            return paths[node.args[0]]
        else:
            paths[node] = _followed(module, node, paths)
    raise _NoBlockError("it gives nothing")


def _followed(module: nn.Module, node: fx.Node, paths: dict[fx.Node, Path]) -> Path:
    """The way to what a node gives."""
    if node.op == "call_module":
        return _given(node, paths) + tuple(_steps(node, module.get_submodule(str(node.target))))
    if node.op == "call_method" and node.target in METHODS and len(node.args) == 1:
        return (*_given(node, paths), _Step(node, Activation(METHODS[str(node.target)]), {}))
    if node.op == "call_function":
        if node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs:
            return _joined(node, _paths(node.args, paths), "sum")
        if node.target is torch.cat and (parts := _concatenated(node)) is not None:
            return _joined(node, _paths(parts, paths), "concat")
        if node.target is F.dropout and not node.kwargs.get("training", True):
            return _given(node, paths)
        if node.target in FUNCTIONS and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
            return (*_given(node, paths), _Step(node, Activation(FUNCTIONS[node.target]), {}))
    raise _NoBlockError(f"no block says {getattr(node.target, '__name__', node.target)}")


def _given(node: fx.Node, paths: dict[fx.Node, Path]) -> Path:
    (path,) = _paths(node.args[:1], paths)
    return path


def _paths(arguments: Sequence[Any], paths: dict[fx.Node, Path]) -> list[Path]:
    if not all(isinstance(argument, fx.Node) and argument in paths for argument in arguments):
        raise _NoBlockError("it computes with something else than maps")
    return [paths[argument] for argument in arguments]


def _concatenated(node: fx.Node) -> list[Any] | None:
    """What is joined along the channels."""
    parts, *rest = node.args
    dim = rest[0] if rest else node.kwargs.get("dim", 0)
    return list(parts) if dim == 1 and isinstance(parts, list | tuple) and len(parts) > 1 else None


# -- leaves ---------------------------------------------------------------------------------------
def _steps(node: fx.Node, module: nn.Module) -> Iterator[_Step]:
    """What a leaf computes, one after the other."""
    name = str(node.target)
    if user_hooks(module):
        raise _NoBlockError(f"a hook watches {name}")
    if isinstance(module, ChainLayer):
        parts = [(f"{name}.{key}", part) for key, part in module.named_children()]
    else:
        parts = [(name, module)]
    for place, (of, part) in enumerate(parts):
        if not isinstance(part, SAME):
            block, tensors = _leaf(of, part)
            yield _Step(node, block, tensors, (of,), place)


def _leaf(name: str, module: nn.Module) -> tuple[Block, dict[str, Tensor]]:
    if isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward and normalises(module):
        return BatchNorm(), _norm(name, module)
    return block_of(module), applied(module)


def _norm(name: str, norm: _BatchNorm) -> dict[str, Tensor]:
    """The tensors of a batch norm of any ε as those of a BatchNorm block: √((σ² + 1e-5) / (σ² + ε)) goes to γ."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise _NoBlockError(f"batch norm {name} keeps no running statistics")
    ones = torch.ones_like(mean)
    weight = ones if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    if norm.eps != EPS:
        weight = (weight.double() * ((var.double() + EPS) / (var.double() + norm.eps)).sqrt()).to(weight.dtype)
    seen = norm.num_batches_tracked
    return {"weight": weight.clone(), "bias": bias.clone(), "running_mean": mean.clone(), "running_var": var.clone(),
            "num_batches_tracked": torch.tensor(0) if seen is None else seen.clone()}  # fmt: skip


# -- branches -------------------------------------------------------------------------------------
def _joined(node: fx.Node, paths: Sequence[Path], join: str) -> Path:
    """Branches from where the paths part."""
    common = 0
    while all(len(path) > common for path in paths) and len({_key(path[common]) for path in paths}) == 1:
        common += 1
    branches = [_assembled(path[common:]) for path in paths]
    tensors = {f"{i}.{name}": t for i, (_, inside) in enumerate(branches) for name, t in inside.items()}
    modules = tuple(name for path in paths for name in _modules(path[common:]))
    block = Branches(*(block for block, _ in branches), join=join)
    return (*paths[0][:common], _Step(node, block, tensors, modules))


def _key(step: _Step) -> tuple[fx.Node, int]:
    return step.node, step.place


def _assembled(path: Path) -> tuple[Block, dict[str, Tensor]]:
    if not path:
        return IDENTITY, {}
    if len(path) == 1:
        return path[0].block, path[0].tensors
    blocks, tensors = list[Block](), dict[str, Tensor]()
    for step in path:  # a chain in a chain is one chain: its parts are counted on
        if isinstance(step.block, Chain):
            numbered = [(int(place), rest, t) for (place, _, rest), t in
                        ((name.partition("."), t) for name, t in step.tensors.items())]  # fmt: skip
        else:
            numbered = [(0, name, t) for name, t in step.tensors.items()]
        tensors |= {f"{len(blocks) + place}.{name}": tensor for place, name, tensor in numbered}
        blocks += step.block.blocks if isinstance(step.block, Chain) else [step.block]
    return Chain(*blocks), tensors


def _modules(path: Path) -> Iterator[str]:
    for step in path:
        yield from step.modules


def _check_used_once(path: Path) -> None:
    """What is computed once must not be written twice."""
    twice = [name for name, count in Counter(_modules(path)).items() if count > 1]
    if twice:
        raise _NoBlockError(f"what {twice[0]} gives is used in branches that do not join again, or it runs twice")
