"""The table that a plan is chosen from: what each site costs, as it is and with each proposal worth choosing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconv.planning.considered import Considered, Key
from reconv.planning.plan import Edit, Refusal
from reconv.ruleset.rule import Proposal
from reconv.spec import Block, macs, params, peak_bytes
from reconv.surgery import Site

COSTS = ("latency", "macs", "params", "weight_bytes", "peak_bytes")
PARTS = {"memory": ("weight_bytes", "peak_bytes")}  # costs that a budget of another name bounds together


@dataclass(frozen=True)
class Candidate:
    """One row: what a site costs with a proposal in it, over all its runs, or as it is (`edit` None)."""

    site: str
    edit: Edit | None
    costs: dict[str, float]  # latency in ms, macs, params, bytes of weights, most bytes alive while the site runs
    error: float = 0.0

    @property
    def latency_ms(self) -> float:
        return self.costs["latency"]

    def to_dict(self) -> dict[str, Any]:
        return {"site": self.site, "edit": self.edit and self.edit.to_dict(), "costs": self.costs, "error": self.error}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(data["site"], data["edit"] and Edit.from_dict(data["edit"]), data["costs"], data["error"])


@dataclass
class Table:
    """Candidates of each site in one memory format, the untouched one first; and why other rules have none."""

    layout: str = "contiguous"
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    elsewhere: float = 0.0  # the most bytes of activations alive while none of the sites runs
    refusals: list[Refusal] = field(default_factory=list)
    apart: dict[tuple[Edit, Edit], dict[str, float]] = field(default_factory=dict)  # beyond the sum of two edits
    considered: dict[Key, Considered] = field(default_factory=dict)  # every proposal, as far as it came

    def note(self, site: Site, proposal: Proposal, **known: Any) -> None:
        """Figures of a proposal, or the verdict on it."""
        key = (site.name, proposal.rule, proposal.block, proposal.absorbs)
        given = self.considered.get(key) or Considered(site.name, proposal.rule, proposal.block)
        self.considered[key] = replace(given, **known)

    def add(self, other: Table) -> None:
        """Takes over the rows of other sites."""
        self.candidates |= other.candidates
        self.refusals += other.refusals
        self.considered |= other.considered

    def to_dict(self) -> dict[str, Any]:
        """Without `apart`, which is of all sites together."""
        return {
            "layout": self.layout,
            "candidates": {site: [c.to_dict() for c in row] for site, row in self.candidates.items()},
            "refusals": [refusal.to_dict() for refusal in self.refusals],
            "considered": [[list(absorbs), row.to_dict()] for (*_, absorbs), row in self.considered.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        rows = [(tuple(absorbs), Considered.from_dict(row)) for absorbs, row in data["considered"]]
        return cls(
            data["layout"],
            {site: [Candidate.from_dict(c) for c in row] for site, row in data["candidates"].items()},
            refusals=[Refusal(**refusal) for refusal in data["refusals"]],
            considered={(row.site, row.rule, row.block, absorbs): row for absorbs, row in rows},
        )

    def alone(self) -> Table | None:
        """Without the edits that change several modules, of which a sum of rows says less; None where there is none."""
        rows = {name: [c for c in row if not (c.edit and c.edit.also)] for name, row in self.candidates.items()}
        return None if rows == self.candidates else Table(self.layout, rows, self.elsewhere)


def costs(block: Block, site: Site, latency_ms: float) -> dict[str, float]:
    """What a block in a site's place costs over one forward pass of the network."""
    shapes, size = [call.input_shape for call in site.calls], site.dtype.itemsize
    weights = params(block, site.spec.in_channels)
    return {
        "latency": latency_ms,
        "macs": sum(macs(block, shape) for shape in shapes),
        "params": weights,
        "weight_bytes": size * weights,
        "peak_bytes": max(call.beside_bytes + peak_bytes(block, call.input_shape, size) for call in site.calls),
    }
