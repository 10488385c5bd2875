"""`region`: a whole module as one block, where its forward pass is an expression over blocks.

The pass is traced (torch.fx). Where branches join again the block has branches; where an output is used in another
way, where control flow reads values, or an operation has no block, the reason is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from reconv.errors import ConvError
from reconv.spec import Activation, Block, Branches, Chain, in_channels, out_channels
from reconv.surgery.clone import user_hooks
from reconv.surgery.parts import ADDITIONS, METHODS, NoBlockError, is_leaf, of_function, of_module

IDENTITY = Activation("identity")


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


Path = tuple[_Step, ...]


def region(module: nn.Module, channels: int | None = None) -> Region | str:
    """The block that a module computes in evaluation, or why there is none.

    Average pooling and padding are depthwise convolutions with constant weights in it.

    Args:    channels: of its input, where they are known.
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
    if is_leaf(module):  # which tracing would look into
        whole = region(nn.Sequential(module).train(module.training), channels)
        return whole if isinstance(whole, str) else replace(
            whole, modules=tuple(name.partition(".")[2] for name in whole.modules))  # fmt: skip
    if watched := next((name for name, part in module.named_modules() if name and user_hooks(part)), None):
        return f"a hook watches {watched}"
    own = set(vars(module))
    try:
        graph = _Tracer(module).trace(module)
        walk = _Walk(module, channels)
        path = walk.output(graph)
        _check_used_once(path)
        block, tensors = _assembled(path)
    except (NoBlockError, ConvError) as reason:
        return str(reason)
    except Exception as error:  # whatever a forward pass may raise that is given a proxy
        return f"its forward pass cannot be traced: {' '.join(str(error).split())[:200] or type(error).__name__}"
    finally:
        for name in set(vars(module)) - own:  # tensors that tracing left there
            delattr(module, name)
    return Region(block, _like(module, tensors), tuple(_modules(path)))


def _like(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Constant weights, which have no dtype of their own, as the module's parameters."""
    own = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    of = own[0] if own else torch.empty(0)
    known = {(t.dtype, t.device) for t in own} or {(of.dtype, of.device)}
    return {name: t.to(of) if t.is_floating_point() and (t.dtype, t.device) not in known else t
            for name, t in tensors.items()}  # fmt: skip


class _Tracer(fx.Tracer):
    """Goes into every module that no block names."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        # before tracing, when a look at a parameter becomes a part of the graph
        self.leaves = {module for module in root.modules() if module is not root and is_leaf(module)}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.leaves or super().is_leaf_module(module, name)


class _Walk:
    """Follows a graph from the input to the output; what does not depend on the input is computed on the way."""

    def __init__(self, module: nn.Module, channels: int | None) -> None:
        self.module, self.channels = module, channels
        self.paths: dict[fx.Node, Path] = {}
        self.constants: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def output(self, graph: fx.Graph) -> Path:
        """The way from the input to the output."""
        for node in graph.nodes:
            if node.op == "placeholder":
                if self.paths:
                    raise NoBlockError("it takes several inputs")
                self.paths[node] = ()
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node) or node.args[0] not in self.paths:
                    raise NoBlockError("it does not give one map")
                return self.paths[node.args[0]]
            elif not self.compute(node):
                self.paths[node] = self.followed(node)
        raise NoBlockError("it gives nothing")

    def compute(self, node: fx.Node) -> bool:
        """Computes what a node gives, where that is a constant."""
        if node.op == "get_attr":
            self.constants[node] = _attribute(self.module, str(node.target))
        elif node.op in ("call_function", "call_method") and all(i in self.constants for i in node.all_input_nodes):
            args, kwargs = self.known(node.args), self.known(node.kwargs)
            if node.op == "call_method":
                self.constants[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                self.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return node in self.constants

    def known(self, arguments: Any) -> Any:
        """Arguments with the constants in their places.

        Raises:  NoBlockError: when one is a map.
        """

        def value(node: fx.Node) -> Any:
            if node not in self.constants:
                raise NoBlockError("it computes with something else than maps")
            return self.constants[node]

        return fx.node.map_arg(arguments, value)

    def followed(self, node: fx.Node) -> Path:
        """The way to what a node gives."""
        if node.op == "call_module":
            return self.through(node)
        if node.op == "call_method" and node.target in METHODS and len(node.args) == 1:
            return (*self.given(node), _Step(node, Activation(METHODS[str(node.target)]), {}))
        if node.op == "call_function":
            if node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs:
                return self.joined(node, [a for a in node.args if type(a) not in (int, float) or a != 0], "sum")
            if node.target is torch.cat:
                return self.joined(node, _concatenated(node), "concat")
            path = self.given(node)
            part = of_function(node.target, self.known(node.args[1:]), self.known(node.kwargs),
                               lambda: self.channels_after(path))  # fmt: skip
            return path if part is None else (*path, _Step(node, part.block, dict(part.tensors)))
        raise NoBlockError(f"no block says {getattr(node.target, '__name__', node.target)}")

    def through(self, node: fx.Node) -> Path:
        """The way through a leaf."""
        path, name = self.given(node), str(node.target)
        module = self.module.get_submodule(name)
        if user_hooks(module):
            raise NoBlockError(f"a hook watches {name}")
        steps: list[_Step] = []
        for part in of_module(name, module, lambda: self.channels_after((*path, *steps))):
            modules = () if part.module is None else (part.module,)
            steps.append(_Step(node, part.block, dict(part.tensors), modules, len(steps)))
        return (*path, *steps)

    def joined(self, node: fx.Node, parts: Sequence[Any], join: str) -> Path:
        paths = self.known_paths(parts)
        return paths[0] if len(paths) == 1 else _joined(node, paths, join)

    def given(self, node: fx.Node) -> Path:
        (path,) = self.known_paths(node.args[:1])
        return path

    def known_paths(self, arguments: Sequence[Any]) -> list[Path]:
        if not arguments or not all(isinstance(argument, fx.Node) and argument in self.paths for argument in arguments):
            raise NoBlockError("it computes with something else than maps")
        return [self.paths[argument] for argument in arguments]

    def channels_after(self, path: Path) -> int:
        """Channels of the map at the end of a path."""
        channels = self.channels
        for step in path:
            channels = out_channels(step.block, channels or in_channels(step.block) or 0) or None
        if channels is None:
            raise NoBlockError("the channels of a map inside of it are not known")
        return channels


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _concatenated(node: fx.Node) -> list[Any]:
    """What is joined along the channels."""
    parts, *rest = node.args
    dim = rest[0] if rest else node.kwargs.get("dim", 0)
    if dim != 1 or not isinstance(parts, list | tuple):
        raise NoBlockError(f"no block says cat along axis {dim}")
    return list(parts)


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
        raise NoBlockError(f"what {twice[0]} gives is used in branches that do not join again, or it runs twice")
