"""`Budget`: what the rewritten network may cost, and the grammar in which users say it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from reconv.errors import ConvError, conv_error

# to milliseconds, to counts, to bytes; an error has no unit
UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3},
    "macs": {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "params": {"K": 1e3, "M": 1e6, "G": 1e9},
    "memory": {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "KB": 1e3, "MB": 1e6, "GB": 1e9},
    "error": {},
}
GRAMMAR = "NAME=VALUE[,NAME=VALUE...], NAME one of latency, macs, params, memory, error; \
VALUE a fraction of now in (0, 1], or a number with its unit (12ms 300us 1.2G 50M 64MiB); error takes a fraction"
_VALUE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Limit:
    """A bound: a fraction of what the network costs now, or an amount in ms, counts or bytes."""

    value: float
    absolute: bool

    def amount(self, now: float) -> float:
        return self.value if self.absolute else self.value * now


@dataclass(frozen=True)
class Budget:
    """Limits by name: latency, macs, params, memory, error.

    `memory` is the bytes of all parameters and of what the convolutions of one forward pass write.
    `error` is ‖student − teacher‖ / ‖teacher‖ of the network's output.
    """

    limits: Mapping[str, Limit]
    text: str | None = None

    @classmethod
    def of(cls, budget: str | Mapping[str, float | str] | Budget | None) -> Budget:
        """Reads a budget from its text, or a mapping of names to values.

        Raises:  ConvError (a ValueError): where it does not follow the grammar, which is shown.
        Example:
                 >>> Budget.of("latency=0.4,params=2M").limits["params"]
                 Limit(value=2000000.0, absolute=True)
        """
        if budget is None or isinstance(budget, Budget):
            return budget or cls({})
        if isinstance(budget, Mapping):
            if not budget:
                return cls({})
            budget = ",".join(f"{name}={value}" for name, value in budget.items())
        if not isinstance(budget, str):
            raise _wrong("a budget must be text", budget)
        limits: dict[str, Limit] = {}
        for part in budget.split(","):
            name, mark, value = (p.strip() for p in part.partition("="))
            if not mark or name not in UNITS or name in limits:
                raise _wrong("each part must be NAME=VALUE, each NAME once", part)
            limits[name] = _limit(name, value)
        return cls(limits, budget)

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __contains__(self, name: str) -> bool:
        return name in self.limits

    def misses(self, got: Mapping[str, float]) -> list[str]:
        """Why the limits do not hold, each beginning with its name and a colon.

        Args:    got: what each costs: an amount where its limit is one, else the fraction of now.
        """
        return [
            f"{name}: asked for {limit.value:.4g}{'' if limit.absolute else ' of what it was'}, reached {got[name]:.4g}"
            for name, limit in self.limits.items() if name in got and got[name] > limit.value
        ]  # fmt: skip

    @property
    def only_error(self) -> bool:
        return set(self.limits) == {"error"}


def _limit(name: str, text: str) -> Limit:
    found = _VALUE.fullmatch(text)
    if not found:
        raise _wrong("VALUE must be a number, with a unit where it is no fraction", f"{name}={text}")
    number, unit = float(found[1]), found[2]
    if unit:
        if unit not in UNITS[name]:
            raise _wrong(f"{name} is given in {', '.join(UNITS[name]) or 'no unit'}", f"{name}={text}")
        amount = number * UNITS[name][unit]
        if not 0 < amount < math.inf:
            raise _wrong("an amount must be positive and finite", f"{name}={text}")
        return Limit(amount, absolute=True)
    if name == "error" and number == 0:
        raise _wrong("an error must be above 0; the rules of the group 'exact' alone make none", f"{name}={text}")
    if not 0 < number <= 1:
        raise _wrong("a number without a unit must be a fraction in (0, 1]", f"{name}={text}")
    return Limit(number, absolute=name == "error")


def _wrong(must: str, got: object) -> ConvError:
    return conv_error("budget", must, got={"budget": repr(got)}, do=f"Write {GRAMMAR}.", also=ValueError)
