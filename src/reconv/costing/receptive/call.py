"""One dispatched operator: its arguments by name, with the fields of those that are tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from reconv.costing.receptive.field import Field
from reconv.costing.receptive.taps import LostError

FieldOf = Callable[[torch.Tensor], Field | None]


@dataclass
class Call:
    """What a rule sees. Each tensor that it does not ask for must see nothing of the input."""

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[torch.Tensor, ...]
    field_of: FieldOf
    _asked: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, field_of: FieldOf
    ) -> "Call":
        bound = {}
        for i, parameter in enumerate(func._schema.arguments):
            if i < len(args):
                bound[parameter.name] = args[i]
            else:
                bound[parameter.name] = kwargs.get(parameter.name, parameter.default_value)
        return cls(func._schema.name, bound, tuple(tensors_in(out)), field_of)

    def __getitem__(self, name: str) -> Any:
        if name not in self.arguments:
            raise LostError(f"an overload of {self.name} without {name}")
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operator has."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.outputs[0].shape)

    def field(self, *names: str) -> Field:
        """The field of the first of these arguments that is a tensor; without names, of the first tensor of all."""
        for name in names or self.arguments:
            if isinstance(self.arguments.get(name), torch.Tensor):
                return self.fields(name)[0]
        raise LostError(f"{self.name} without a tensor")

    def fields(self, *names: str) -> list[Field]:
        """The fields of all tensors in these arguments, or in all."""
        found = []
        for name in names or self.arguments:
            self._asked.add(name)
            found += [self._known(tensor) for tensor in tensors_in(self.arguments[name])]
        return found

    def ignore(self, *names: str) -> None:
        """Of these arguments nothing but the shape matters."""
        self._asked.update(names)

    def tracked(self) -> bool:
        """Whether any argument sees something of the input, or might."""
        fields = [self.field_of(tensor) for value in self.arguments.values() for tensor in tensors_in(value)]
        return any(field is None or field.tracked for field in fields)

    def check_asked(self) -> None:
        for name in self.arguments.keys() - self._asked:
            if any(self._known(tensor).tracked for tensor in tensors_in(self.arguments[name])):
                raise LostError(f"{self.name} with a {name} computed from the input")

    def _known(self, tensor: torch.Tensor) -> Field:
        found = self.field_of(tensor)
        if found is None:
            raise LostError("an operand that is not known")
        return found


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument or a result: itself, or those of its list."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


Rule = Callable[[Call], Field | list[Field]]  # one field stands for every output of its shape


class Rules(dict[str, Rule]):
    """Rules by the full name of the operator."""

    def rule(self, names: str) -> Callable[[Rule], Rule]:
        """Enters the decorated rule under these names of ATen operators, spaces between them."""

        def enter(rule: Rule) -> Rule:
            self.update({f"aten::{name}": rule for name in names.split()})
            return rule

        return enter
