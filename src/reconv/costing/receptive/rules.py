"""The rule of each operator."""

from torch import Tag
from torch._ops import OpOverload

from reconv.costing.receptive.call import Rule
from reconv.costing.receptive.elements import ELEMENTS, elementwise
from reconv.costing.receptive.moves import MOVES
from reconv.costing.receptive.windows import WINDOWS

RULES = {**ELEMENTS, **WINDOWS, **MOVES}


def rule_of(func: OpOverload) -> Rule | None:
    """The rule for an operator, None where there is none. An in-place one follows that of its plain twin."""
    if Tag.pointwise in func.tags:
        return elementwise
    name = func._schema.name
    return RULES.get(name) or RULES.get(name.removesuffix("_"))
