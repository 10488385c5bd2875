"""The trade-off of a plan as a picture: latency against the error of the output, and against the score."""

from __future__ import annotations

from reconv.drawing.plot import Panel, Series, plot
from reconv.planning.plan import Plan, Point

LATENCY = "latency, of what it was"


def front_svg(plan: Plan) -> str:
    """All that the search found worth having, before any recovery; a ring is around the plan itself."""
    points = list(plan.front)
    if plan.measured is not None and plan.measured not in points:
        points = sorted([*points, plan.measured], key=lambda p: p.latency_ratio)
    chosen = [i for i, p in enumerate(points) if p == plan.measured]
    errors = Series("", [(p.latency_ratio, p.error, _told(p)) for p in points], joined=True, ringed=chosen)
    panels = [Panel("Error of the output, before recovery", LATENCY, "‖student − teacher‖ / ‖teacher‖", [errors])]
    scored = [(p.latency_ratio, p.score, _told(p)) for p in points if p.score is not None]
    if scored:
        panels.append(Panel("Score, before recovery", LATENCY, "evaluate", [Series("", scored, joined=True, colour=1)]))
    return plot(panels, f"Latency against error of {len(points)} rewritten networks")


def _told(point: Point) -> str:
    score = "" if point.score is None else f", score {point.score:.4g}"
    return (f"latency ×{point.latency_ratio:.3g} ({point.latency_ms:.3g} ms), error {point.error:.3g}{score}, "
            f"{point.layers} {'layer' if point.layers == 1 else 'layers'} changed")  # fmt: skip
