"""What was measured, as tables and as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reconv.benching.roofline import SIZES, Machine, measured
from reconv.benching.run import Figure, Result
from reconv.ops.native import native_version
from reconv.targets.engine import machine

LOSING = 0.95  # a ratio below it is more than noise
FORMAT = 1


@dataclass
class Report:
    """The results so far, in order."""

    results: list[Result] = field(default_factory=list)

    @property
    def engines(self) -> list[str]:
        """The columns: engines that some result knows."""
        return list(dict.fromkeys(name for result in self.results for name in result.figures))

    @property
    def wrong(self) -> list[str]:
        """A line for each engine that computed something else."""
        return [
            f"{name} is wrong on {result.task} ({result.threads} threads): {figure.wrong}"
            for result in self.results
            for name, figure in result.figures.items()
            if figure.wrong
        ]

    @property
    def heads(self) -> list[str]:
        return ["problem", "threads", "MMACs", *(f"{name} ms" for name in self.engines), "ratio", "% of roofline"]

    @property
    def rows(self) -> list[list[str]]:
        return [
            [str(r.task), str(r.threads), f"{r.task.macs / 1e6:.4g}",
             *(cell(r.figures.get(name)) for name in self.engines), _number(r.ratio, "{:.2f}"),
             _number(r.of_roofline, "{:.0%}")]
            for r in self.results
        ]  # fmt: skip

    @property
    def summaries(self) -> list[str]:
        """A line for each file and number of threads, then for all of them."""
        groups: dict[tuple[str, int], list[float]] = {}
        for result in self.results:
            if result.ratio is not None:
                for name in dict.fromkeys((result.task.group or "given lines", "all")):
                    groups.setdefault((name, result.threads), []).append(result.ratio)
        single = len({name for name, _ in groups}) == 2  # then it is the whole
        keys = sorted((key for key in groups if not (single and key[0] == "all")), key=lambda key: key[0] == "all")
        return [f"{name}, {threads} {'threads' if threads > 1 else 'thread'}: {summary_of(groups[name, threads])}"
                for name, threads in keys]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in four digits."""
        threads = dict.fromkeys(result.threads for result in self.results)
        found: dict[str, Any] = _short({
            "format": FORMAT,
            "machine": machine_of(measured(n) for n in threads),
            "results": [result.to_dict() for result in self.results],
            "summary": self.summaries,
        })  # fmt: skip
        return found


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list) else value


def machine_of(limits: Iterable[Machine]) -> dict[str, Any]:
    """What the figures depend on, and the limits that were measured."""
    return {
        "cpu": machine(),
        "system": platform.system(),
        "torch": torch.__version__,
        "kernels": native_version(),
        "limits": [
            {
                "threads": m.threads,
                "macs_per_s": m.peak,
                "bytes_per_s": dict(zip(map(str, SIZES), m.bandwidth, strict=True)),
            }
            for m in limits
        ],
    }


def cell(figure: Figure | None) -> str:
    """Median ± half the interquartile range, in milliseconds."""
    if figure is None or figure.timing is None:
        return "WRONG" if figure and figure.wrong else "–"
    return f"{figure.timing.median_ms:.3g} ± {figure.timing.spread_ms / 2:.1g}"


def summary_of(ratios: Sequence[float]) -> str:
    below = sum(ratio < LOSING for ratio in ratios)
    return (f"geometric mean {geometric_mean(ratios):.2f}, worst {min(ratios):.2f}, best {max(ratios):.2f}, "
            f"{below} of {len(ratios)} below {LOSING}")  # fmt: skip


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
