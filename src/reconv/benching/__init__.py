"""Benchmarks of convolutions: problems from text, engines side by side, and the machine's limits."""

from reconv.benching.engines import ENGINES, Engine, engines_of
from reconv.benching.report import Report
from reconv.benching.run import Result, measure
from reconv.benching.task import Task, read_tasks

__all__ = ["ENGINES", "Engine", "Report", "Result", "Task", "engines_of", "measure", "read_tasks"]
