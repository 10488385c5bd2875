"""What notebooks show of a plan and of a result: the first parts of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reconv.costing.summary import Summary
from reconv.planning.plan import Plan
from reconv.reporting.layers import edits
from reconv.reporting.page import costs, figures, verdict
from reconv.reporting.seen import Seen


def plan_html(plan: Plan) -> str:
    """The verdict, and what each layer becomes."""
    return verdict(plan, {}) + edits(None, None, plan)


def result_html(before: Summary | None, after: Summary | None, plan: Plan, settings: Mapping[str, Any],
                error: float | None, seen: Seen | None) -> str:  # fmt: skip
    """The verdict, the figures, both networks as strips, and what each layer became."""
    return (verdict(plan, settings) + figures(before, after, plan, error, settings) + costs(before, after)
            + edits(before, after, plan, seen))  # fmt: skip
