"""One forward pass of a copy, watched: every convolution that really runs, and who consumes its output.

Watching the dispatched operators, not the source, serves modules, functional calls, TorchScript and control flow
alike. What the pass cannot tell for certain (a batch norm behind a branch taken by value) is left unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from reconv.errors import conv_error
from reconv.layers.deform import is_deformable
from reconv.ops.deform import watched_by
from reconv.spec import ConvSpec, macs
from reconv.surgery.alive import Alive, state_of
from reconv.surgery.clone import first_names, not_accepted, user_hooks
from reconv.surgery.outputs import tensors_in
from reconv.surgery.sites import DEFORMABLE, ConvCall

CONVOLUTIONS = ("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
TORCHVISIONS = "torchvision::deform_conv2d"
VALUE_READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")


class Observer(Protocol):
    """Sees every dispatched operator with its result."""

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None: ...


class Field(Observer, Protocol):
    """An observer that knows the receptive field of tensors."""

    def of(self, tensor: Tensor) -> tuple[int, ...] | None: ...


class Run:
    """One convolution call with the live tensors that only the trace needs."""

    def __init__(self, call: ConvCall, module: nn.Module | None, weight: Tensor, bias: Tensor | None,
                 scripted: bool = False) -> None:  # fmt: skip
        self.call, self.module, self.weight, self.bias, self.scripted = call, module, weight, bias, scripted
        self.consumers: list[nn.Module | None] = []  # innermost module of each operator that reads the output
        self.returned = False


class Trace(TorchDispatchMode):
    """Use `Trace.of(model, inputs)`; then read `.runs` and who consumed what."""

    def __init__(self, model: nn.Module, field: Field | None, observers: Iterable[Observer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.model, self.field = model, field
        self.observers = (*([field] if field else []), *observers)
        self.names = first_names(model)
        self.hooked = {m for m in model.modules() if user_hooks(m)}
        self.stack: list[nn.Module] = []
        self.within: dict[nn.Module, list[set[nn.Module]]] = {}  # what was running at each run of a module
        self.runs: list[Run] = []
        self.alive, self.beside = Alive(state_of(model)), 0  # bytes, besides the input of the convolution that runs
        self.reads_values = False
        self.outputs: WeakIdKeyDictionary = WeakIdKeyDictionary()  # conv or norm output -> its Run or norm module
        self.norm_calls: list[tuple[nn.Module, Run | None]] = []
        self.norm_consumers: dict[nn.Module, list[nn.Module | None]] = {}
        self.relu_calls: list[tuple[nn.Module, Run | nn.Module | None]] = []  # and whose output it reads
        self.owners: dict[Tensor, nn.Module] = {
            p: m for m in model.modules() if is_conv(m) for p in m.parameters(recurse=False)
        }
        self.foreign_weights: dict[nn.Module, str] = {}
        self.scripted = {
            tensor.data_ptr(): self.names[m] for m in model.modules() if isinstance(m, torch.jit.ScriptModule)
            for tensor in (*m.parameters(recurse=False), *m.buffers(recurse=False))
        }  # fmt: skip

    @classmethod
    def of(
        cls, model: nn.Module, inputs: tuple[Any, ...], field: Field | None = None, observers: Iterable[Observer] = ()
    ) -> Trace:
        """Runs `model` (a copy that may be thrown away) once in evaluation mode on `inputs`."""
        if torch.is_inference_mode_enabled():
            raise conv_error("reconv", "networks must be read outside of torch.inference_mode, which hides operators",
                             got={"model": type(model).__name__}, do="torch.no_grad() serves as well.",
                             also=RuntimeError)  # fmt: skip
        trace = cls(model.eval(), field, observers)
        handles = [h for m in model.modules() if can_hook(m) for h in trace.watch(m)]
        try:
            trace.alive.see(inputs)
            with torch.no_grad(), watched_by(trace.note_deformable), trace:
                result = model(*inputs)
        except Exception as error:
            raise not_accepted(inputs, error) from error
        finally:
            for handle in handles:
                handle.remove()
        trace.note_shown(result)
        return trace

    # -- modules ----------------------------------------------------------------------------------
    def watch(self, module: nn.Module) -> list[Any]:
        def enter(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.within.setdefault(m, []).append(set(self.stack))
            self.stack.append(m)
            if is_conv(m):
                self.beside = self.alive.see(()) - sum(x.nbytes for x in tensors_in((args, kwargs)))
            if m in self.hooked:
                self.note_shown((args, kwargs))

        def leave(m: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self.stack.pop()
            if m in self.hooked:
                self.note_shown(out)

        return [module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
                module.register_forward_hook(leave, always_call=True)]  # fmt: skip

    def note_shown(self, result: Any) -> None:
        """Notes that somebody outside sees these tensors: the caller, or a user's hook."""
        for tensor in tensors_in(result):
            seen = self.outputs.get(tensor)
            if isinstance(seen, Run):
                seen.returned = True
            elif seen is not None:
                self.norm_consumers[seen].append(None)

    @property
    def inside(self) -> nn.Module | None:
        return self.stack[-1] if self.stack else None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports all of torch.compile, some seconds, to guard against it

    # -- operators --------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.note_inputs(func, args, kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and func._schema.is_mutable:  # no longer what the convolution gave
            self.outputs.pop(out, None)
        self.alive.see(out)
        for observer in self.observers:
            observer.op(func, args, kwargs, out)
        name = func._schema.name
        if name in VALUE_READS:
            self.reads_values = True
        elif name in CONVOLUTIONS:
            self.note_convolution(args, out)
        elif name == TORCHVISIONS:
            x, weight, _, _, bias, sh, sw, ph, pw, dh, dw, groups = args[:12]
            spec = spec_of_call(weight, bias, (sh, sw), (ph, pw), (dh, dw), False, (0, 0), groups)
            self.note_deformable(spec, x, weight, bias, out)
        elif "batch_norm" in name and self.inside is not None:
            self.outputs[out[0] if isinstance(out, tuple) else out] = self.inside
        return out

    def note_inputs(self, func: Any, args: Any, kwargs: Any) -> None:
        """Notes who reads the outputs of convolutions and norms, and weights read outside their module."""
        for x in tree_leaves((args, kwargs)):
            if not isinstance(x, Tensor):
                continue
            producer = self.outputs.get(x)
            if isinstance(producer, Run):
                producer.consumers.append(self.inside)
            elif producer is not None and producer is not self.inside:
                self.norm_consumers[producer].append(self.inside)
            if type(self.inside) is nn.ReLU:
                self.relu_calls.append((self.inside, producer))
            owner = self.owners.get(x)
            if owner is not None and owner not in self.stack:
                self.foreign_weights[owner] = f"{func._schema.name} in {self.name_of(self.inside)}"
        if "batch_norm" in func._schema.name and self.inside is not None:
            producer = self.outputs.get(args[0])
            self.norm_calls.append((self.inside, producer if isinstance(producer, Run) else None))
            self.norm_consumers.setdefault(self.inside, [])

    def name_of(self, module: nn.Module | None) -> str:
        return self.names.get(module, "") if module is not None else ""

    def note_convolution(self, args: Any, out: Tensor) -> None:
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
        spec = spec_of_call(weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        module = self.inside if self.inside is not None and is_conv(self.inside) else None
        shape = tuple(x.shape)
        if module is not None and plain_forward(module) is None:
            applied, spec = spec, ConvSpec.of(module)  # with padding that is an operator of its own
            shape = _unpadded(shape, applied, spec)
        kind = "conv_transpose" if spec.transposed else "conv"
        name = self.name_of(module) if module is not None else self.functional_name(kind, weight)
        self.record(name, spec.kind, spec, shape, weight, bias, out, module)

    def note_deformable(self, spec: ConvSpec, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """A deformable convolution is no site, even as a layer: no rule can rewrite it."""
        shape, layer = tuple(x.shape), self.inside
        if is_deformable(layer):
            applied, spec, name = spec, layer.deform.conv, self.name_of(layer)
            shape = _unpadded(shape, applied, spec)
        else:
            name = self.functional_name("deform_conv", weight)
        self.record(name, DEFORMABLE, spec, shape, weight, bias, out, None)

    def record(self, name: str, kind: str, spec: ConvSpec, shape: tuple[int, ...], weight: Tensor, bias: Tensor | None,
               out: Tensor, module: nn.Module | None) -> None:  # fmt: skip
        beside = self.beside if module is not None else self.alive.see(()) - out.nbytes - prod(shape) * out.itemsize
        call = ConvCall(name, kind, spec, shape, tuple(weight.shape), tuple(out.shape), out.dtype,
                        macs(spec, shape) if shape[0] else 0, functional=module is None,
                        beside_bytes=beside,
                        receptive_field=self.field.of(out) if self.field else None)  # fmt: skip
        run = Run(call, module, weight, bias, self.is_scripted(weight))
        self.runs.append(run)
        self.outputs[out] = run

    def is_scripted(self, weight: Tensor) -> bool:
        return weight.data_ptr() in self.scripted or isinstance(self.model, torch.jit.ScriptModule)

    def functional_name(self, kind: str, weight: Tensor) -> str:
        """`module.conv2d`, numbered from the second call in the same module on; in TorchScript the weight's name."""
        if weight.data_ptr() in self.scripted:
            return self.scripted[weight.data_ptr()]
        base = ".".join(part for part in (self.name_of(self.inside), f"{kind}{weight.ndim - 2}d") if part)
        count = sum(r.call.functional and r.call.name.partition("#")[0] == base for r in self.runs)
        return f"{base}#{count + 1}" if count else base


def spec_of_call(weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> ConvSpec:  # fmt: skip
    """The spec of an operator call, from its weight and arguments."""
    outer, inner = weight.shape[0], weight.shape[1] * groups
    into, out = (outer, inner) if transposed else (inner, outer)
    return ConvSpec(
        in_channels=into, out_channels=out, kernel_size=tuple(weight.shape[2:]), stride=tuple(stride),
        padding=tuple(padding), dilation=tuple(dilation), groups=groups, bias=bias is not None,
        transposed=transposed, output_padding=tuple(output_padding) if transposed else 0,
    )  # fmt: skip


def _unpadded(shape: tuple[int, ...], applied: ConvSpec, spec: ConvSpec) -> tuple[int, ...]:
    """The shape before the padding that `spec` has beyond what the operator itself applied."""
    if spec.transposed:  # what cannot be cropped by the operator is cropped afterwards
        return shape
    extra = (sum(of) - sum(by) for of, by in zip(spec.padding, applied.padding, strict=True))
    return (*shape[:2], *(n - more for n, more in zip(shape[2:], extra, strict=True)))


def is_conv(module: nn.Module) -> bool:
    """Whether a module is a torch.nn convolution (or a subclass), with its weight at hand."""
    return isinstance(module, nn.modules.conv._ConvNd)


def can_hook(module: nn.Module) -> bool:
    """TorchScript's inner modules never come back to Python."""
    return not isinstance(module, torch.jit.ScriptModule)


_PLAIN: tuple[Callable[..., Any], ...] = tuple(
    getattr(cls, method)
    for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for method in ("forward", "_conv_forward")
    if hasattr(cls, method)
)


def plain_forward(module: nn.Module) -> str | None:
    """None where a convolution module computes just its convolution, else which class changes that."""
    for method in ("forward", "_conv_forward"):
        own = getattr(type(module), method, None)
        trusted = own in _PLAIN or getattr(own, "__module__", "").startswith("reconv.layers")
        if (own is not None and not trusted) or method in vars(module):
            return f"{type(module).__name__} does more than convolve (it has its own {method})"
    return None
