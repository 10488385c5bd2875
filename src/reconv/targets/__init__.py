"""Engines of this machine, which time a block or a network."""

from reconv.targets.cache import LatencyCache
from reconv.targets.engine import TARGETS, Target, get_target, machine
from reconv.targets.layout import LAYOUTS, laid_out, layout_of, layouts_of, to_layout
from reconv.targets.measure import Problem, check_runs, time_blocks, time_networks, try_networks, why_not
from reconv.targets.timing import Timing, interleave

__all__ = [
    "LAYOUTS",
    "TARGETS",
    "LatencyCache",
    "Problem",
    "Target",
    "Timing",
    "check_runs",
    "get_target",
    "interleave",
    "laid_out",
    "layout_of",
    "layouts_of",
    "machine",
    "time_blocks",
    "time_networks",
    "to_layout",
    "try_networks",
    "why_not",
]
