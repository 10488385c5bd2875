"""The receptive field of every tensor of one forward pass, from the operators that really ran."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload

from reconv.costing.receptive.call import Call, tensors_in
from reconv.costing.receptive.field import Field
from reconv.costing.receptive.layout import Label
from reconv.costing.receptive.memory import Memory
from reconv.costing.receptive.rules import rule_of
from reconv.costing.receptive.taps import LostError

T = TypeVar("T")


class ReceptiveField:
    """Follows the input samples through the operators of one forward pass.

    The receptive field of a result is, along each spatial axis of the input, the number of samples from the first
    to the last that can change one element of it: the largest over its elements. It is not clipped at the borders
    of the input: padding of any mode counts as more input. Spatial axes are those that convolutions slide along, on
    the way to the tensor or at it. Inputs of one rank share the axes along which they have the same size.

    What an element takes from everywhere, through a global pooling, attention, or the statistics of an instance or
    group norm (or of a batch norm in training), spans the whole map. Unknown is all that depends on an operator without
    a rule, on places that the data decide (deformable convolution), or on a number of floating point that Python read
    out (`item()`); whole numbers read out are control flow, and what went through NumPy counts as a constant.

    Args:    example_inputs: the inputs of the pass; the tensors in tuples, lists and dicts all count.
    Example:
             >>> x = torch.zeros(1, 1, 9)
             >>> field = ReceptiveField((x,))
             >>> y = torch.conv1d(x, torch.ones(1, 1, 3), stride=2)
             >>> args = (x, torch.ones(1, 1, 3), None, [2], [0], [1], False, [0], 1)
             >>> field.op(torch.ops.aten.convolution.default, args, {}, y)
             >>> field.of(y)
             (3,)
    """

    def __init__(self, example_inputs: Any) -> None:
        self._memory = Memory()
        self._leaked = False
        for tensor in tensors_in(example_inputs):
            self._memory.put(tensor, Field.of_input(tensor.shape))

    def op(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any] | None, out: Any) -> None:
        """Takes note of one dispatched operator that has just run."""
        call = Call.of(func, args, kwargs or {}, out, self._memory.get)
        if func._schema.name == "aten::_local_scalar_dense":
            self._leaked |= call.tracked() and tensors_in(args)[0].is_floating_point()
            return
        results = dict(zip(map(id, call.outputs), self._results(func, call), strict=True))
        written = _written(func, call)
        for tensor in written:
            self._memory.write(tensor, results.get(id(tensor)), sources=_sources(call, tensor))
        for tensor in call.outputs:
            if not any(tensor is each for each in written):
                self._memory.put(tensor, results[id(tensor)])

    def of(self, tensor: torch.Tensor) -> tuple[int, ...] | None:
        """Input samples per spatial axis; None where unknown, or where no convolution of the input is seen."""
        return self._of_each_axis(tensor, Field.size)

    def middle(self, tensor: torch.Tensor) -> tuple[tuple[int, int], ...] | None:
        """Per spatial axis the first input sample that the element in the middle sees, and the one behind the last."""
        return self._of_each_axis(tensor, Field.at_middle)

    def _of_each_axis(self, tensor: torch.Tensor, ask: Callable[[Field, Label], T | None]) -> tuple[T, ...] | None:
        field = self._memory.get(tensor)
        if field is None:
            return None
        labels = sorted(field.slid, key=lambda label: label.axis)
        known = [answer for label in labels if (answer := ask(field, label)) is not None]
        one_input = len({label.rank for label in labels}) == 1 and len({label.axis for label in labels}) == len(labels)
        return tuple(known) if one_input and len(known) == len(labels) else None

    def _results(self, func: OpOverload, call: Call) -> list[Field | None]:
        """The field of each output, None where it is not known."""
        if not call.tracked():
            return [Field.of_constant(tensor.shape) for tensor in call.outputs]
        rule = rule_of(func)
        if rule is None or self._leaked:
            return [None] * len(call.outputs)
        try:
            fields = rule(call)
            call.check_asked()
        except LostError:
            return [None] * len(call.outputs)
        each = fields if isinstance(fields, list) else [fields] * len(call.outputs)
        return [f if f.shape == tuple(t.shape) else None for f, t in zip(each, call.outputs, strict=True)]


def _written(func: OpOverload, call: Call) -> list[torch.Tensor]:
    """The tensors that the operator changed in place."""
    names = [each.name for each in func._schema.arguments if each.alias_info and each.alias_info.is_write]
    return [tensor for name in names for tensor in tensors_in(call[name])]


def _sources(call: Call, written: torch.Tensor) -> list[torch.Tensor]:
    return [each for value in call.arguments.values() for each in tensors_in(value) if each is not written]
