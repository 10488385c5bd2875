"""reconv gives every layer of a convolutional network the right convolution.

It shows what each convolution costs, knows what else it could be, rewrites a trained network while keeping what it
has learned, and measures that the result is faster on the engine that will run it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from reconv.shown import shown_by

if TYPE_CHECKING:
    from reconv import classic as classic
    from reconv import functional as functional
    from reconv import networks as networks
    from reconv import nn as nn
    from reconv import tensorflow as tensorflow
    from reconv.costing.summary import Summary as Summary
    from reconv.costing.summary import summary as summary
    from reconv.errors import ConvError as ConvError
    from reconv.planning.make import plan as plan
    from reconv.planning.plan import Edit as Edit
    from reconv.planning.plan import Plan as Plan
    from reconv.reporting.drawn import draw as draw
    from reconv.rewriting.apply import apply as apply
    from reconv.rewriting.carry import carry_optimizer as carry_optimizer
    from reconv.rewriting.export import export as export
    from reconv.rewriting.hub import HubModel as HubModel
    from reconv.rewriting.job import Result as Result
    from reconv.rewriting.job import rewrite as rewrite
    from reconv.rewriting.recovery import recover as recover
    from reconv.rewriting.store import load as load
    from reconv.ruleset import RULES as rules  # noqa: F401, N811
    from reconv.spec import Block as Block
    from reconv.spec import ConvSpec as ConvSpec
    from reconv.spec import parse as parse
    from reconv.surgery.features import feature_maps as feature_maps

__version__ = "0.1.0"

# where each public name lives; a room is entered when its name is first asked for, so that `import reconv` is light
_HOMES = {
    "Block": "reconv.spec",
    "ConvError": "reconv.errors",
    "ConvSpec": "reconv.spec",
    "Edit": "reconv.planning.plan",
    "HubModel": "reconv.rewriting.hub",
    "Plan": "reconv.planning.plan",
    "Result": "reconv.rewriting.job",
    "Summary": "reconv.costing.summary",
    "apply": "reconv.rewriting.apply",
    "carry_optimizer": "reconv.rewriting.carry",
    "classic": "reconv.classic",
    "draw": "reconv.reporting.drawn",
    "export": "reconv.rewriting.export",
    "feature_maps": "reconv.surgery.features",
    "functional": "reconv.functional",
    "load": "reconv.rewriting.store",
    "networks": "reconv.networks",
    "nn": "reconv.nn",
    "parse": "reconv.spec",
    "plan": "reconv.planning.make",
    "recover": "reconv.rewriting.recovery",
    "rewrite": "reconv.rewriting.job",
    "rules": "reconv.ruleset",
    "summary": "reconv.costing.summary",
    "tensorflow": "reconv.tensorflow",
}
_SHOWN = {"block": ("reconv.drawing.blocks", "block_svg"), "plan": ("reconv.reporting.brief", "plan_html")}
_OTHER_NAMES = {"rules": "RULES"}

__all__ = [*_HOMES]


def _painter(home: str, name: str) -> Callable[[Any], str | None]:
    """What is in a room, which is entered when something is shown for the first time."""
    return lambda thing: getattr(import_module(home), name)(thing)


for _kind, _where in _SHOWN.items():
    shown_by(_kind, _painter(*_where))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reconv' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if _HOMES[name] == f"reconv.{name}" else getattr(home, _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
