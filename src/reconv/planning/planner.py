"""`Planner`: sums of measured rows choose, the whole network corrects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from reconv.planning.additions import additions
from reconv.planning.budget import Budget, Limit
from reconv.planning.candidates import PARTS, Candidate, Table, costs
from reconv.planning.plan import Point, Refusal
from reconv.planning.search import beyond, cheapest, choose
from reconv.planning.table import Progress, measure
from reconv.planning.workbench import Outcome, Workbench
from reconv.ruleset import Rule
from reconv.surgery.outputs import tensors_in
from reconv.targets import layout_of

CORRECTIONS = 6  # times the search is repeated with what the whole network taught
SLACK = 0.93  # a network under this part of its budget has given accuracy away
HOPELESS = 1.15  # times the latency in the best memory format: a search in another one is spared
AIM = 0.97  # of the latency budget: what is aimed at, since timing is noisy
NEAR = 1.05  # times the least that can be had: where a budget is out of reach, the last of it is not worth a network


@dataclass
class Line:
    """What whole networks measured, by the sum of their rows: near enough a line.

    Args:    points: (sum of the rows, whole network), in ms.
    Example:
             >>> Line([(8.0, 10.0)]).rows_for(5.0)  # of one point all that is known is that the rest stays
             3.0
             >>> Line([(8.0, 10.0), (4.0, 4.0)]).rows_for(7.0)
             6.0
    """

    points: list[tuple[float, float]]

    def rows_for(self, whole_ms: float) -> float:
        """The sum of rows at which a network is expected to take so long: between the nearest measured ones.

        Where one side is missed again and again, the point on the other side counts as half as far away each time, else
        it would hold the line back (the Illinois rule: Dowell and Jarratt 1971).
        """
        below = max((p for p in self.points if p[1] <= whole_ms), key=lambda p: p[1], default=None)
        above = min((p for p in self.points if p[1] > whole_ms), key=lambda p: p[1], default=None)
        near = min(self.points, key=lambda p: abs(p[1] - whole_ms))
        other = (below if near is above else above) or min((p for p in self.points if p is not near), default=near,
                                                           key=lambda p: abs(p[1] - whole_ms))  # fmt: skip
        sides = [whole <= whole_ms for _, whole in self.points]
        again = next((i for i, side in enumerate(reversed(sides)) if side is not sides[-1]), len(sides)) - 1
        away = (other[1] - whole_ms) * 0.5 ** max(0, again) if below and above else other[1] - whole_ms
        rows, whole = near[0] - other[0], near[1] - whole_ms - away
        slope = whole / rows if rows * whole > 0 else 1.0  # else noise is all there is between them
        return near[0] + (whole_ms - near[1]) / slope


class Planner:
    """The search.

    Args:    now, base: what the network costs as given, and with the edits of whole modules.
             forced: whether proposals are taken wherever the error budget allows.
             required: sites that must change.
    """

    def __init__(self, bench: Workbench, budget: Budget, now: Mapping[str, float], base: Mapping[str, float],
                 forced: bool, progress: Progress, required: Collection[str] = ()) -> None:  # fmt: skip
        self.bench, self.budget, self.forced, self.progress = bench, budget, forced, progress
        self.now, self.base, self.required = now, base, frozenset(required)
        self.apart: dict[str, float] = {}  # what edits of several modules cost together, beyond the sum of the rows
        self.starts: list[Outcome] = []  # the network with nothing but exact rules, for each memory format
        self.tables: list[tuple[Outcome, Table]] = []  # what was searched, each with where it starts from
        self.points: list[Point] = []  # every whole network that was measured

    def search(self, rules: Sequence[Rule]) -> Outcome:
        """The best network found; `tables` are what it was chosen from, one for each memory format."""
        judged = [self.bench.judge([], layout) for layout in self.bench.layouts]
        starts = (self.spent(start, {}, Table()) for start in judged if start)
        self.starts = sorted(starts, key=lambda start: start.latency_ratio)
        best = self.unchanged()
        if not rules or not self.bench.sites:
            return best
        wanted = [n for n in self.budget.limits if n != "error"] or ["latency"]
        gains = () if self.forced else tuple(part for n in wanted for part in PARTS.get(n, (n,)))
        for start in self.starts:
            if self.tables and self.hopeless(start.layout, best):
                continue
            table = measure(self.bench, rules, start.layout, gains, self.progress, self.required, start.elsewhere)
            self.tables.append((start, table))
            best = self.chosen(table, start, best)
        return best

    def unchanged(self) -> Outcome:
        """The original, with what exact rules make faster."""
        own = layout_of(self.bench.given)
        faster = [s for s in self.starts if s.latency_ratio < 1 and (s.edits or s.layout != own)]
        return faster[0] if faster else self.as_given(self.starts[0])

    def chosen(self, table: Table, start: Outcome, best: Outcome) -> Outcome:
        best = self.corrected(table, start, best)
        if self.doubtful(best) and (alone := table.alone()):
            best = self.corrected(alone, start, best)
        return best

    def within(self, ratio: float) -> Outcome:
        """The best network found of so much of the latency, from the tables that there are."""
        latency = {"latency": Limit(ratio, absolute=False)}
        budget, self.budget = self.budget, Budget({**self.budget.limits, **latency})
        best = self.unchanged()
        try:
            for start, table in self.tables:
                best = self.corrected(table, start, best)
        finally:
            self.budget = budget
        return best

    def model_of(self, outcome: Outcome) -> nn.Module:
        """The network of an outcome, which an earlier plan may have measured."""
        if not outcome.edits and outcome.layout == layout_of(self.bench.given):
            return self.bench.given
        again = outcome if outcome.model else self.bench.judge(outcome.asked, outcome.layout, again=True)
        assert again is not None  # it ran before
        assert again.model is not None
        return again.model

    def added(self, without: Outcome, rules: Sequence[Rule], every: bool) -> tuple[Outcome, list[Refusal]]:
        """The network with what these rules add, slower or not, in its fastest memory format; and their refusals."""
        edits, refusals = additions(list(self.bench.sites.values()), rules, every)
        if not edits:
            return without, refusals
        judged = [outcome for layout in self.bench.layouts if (outcome := self.bench.judge(edits, layout))]
        if not judged:
            unable = {(e.site, e.rule): "the network does not run with it" for e in edits} | self.bench.unable
            return without, refusals + [Refusal(e.site, e.rule, unable[e.site, e.rule]) for e in edits]
        return min(judged, key=lambda outcome: outcome.latency_ratio), refusals

    def doubtful(self, best: Outcome) -> bool:
        """Whether edits of several modules, whose rows are estimates where they meet, misled the choice."""
        return not self.forced and (bool(self.unmet(best)) or any(edit.also for edit in best.asked))

    def hopeless(self, layout: str, best: Outcome) -> bool:
        """Whether the best choice so far is so slow in this other memory format that no table for it is worthwhile."""
        if "latency" not in self.budget or self.unmet(best) or self.lacks(best):
            return False
        there = self.bench.judge(best.asked, layout)
        return there is None or there.latency_ratio > HOPELESS * best.latency_ratio

    def corrected(self, table: Table, start: Outcome, best: Outcome) -> Outcome:
        """Chooses, measures the whole network, and chooses again with what the sum of the rows did not say."""
        line = Line([(sum(row[0].latency_ms for row in table.candidates.values()), start.latency_ms)])
        tried: list[dict[str, Candidate]] = []
        nearest: Outcome | None = None  # of what missed the budget
        kept = {site: row[0] for site, row in table.candidates.items()}
        self.apart = {"memory": start.memory - self.foreseen(kept, table)["memory"]}
        allowed = self.budget.limits["error"].value if "error" in self.budget else None
        for step in range(CORRECTIONS):
            self.progress(f"correcting by the whole network, {table.layout}", step, CORRECTIONS)
            choice = self.pick(table, start, line, allowed, tried)
            if choice in tried and nearest:
                choice = self.pick(table, start, line, allowed, tried, nearest)
            edits = tuple(c.edit for c in choice.values() if c.edit)
            judged = None if choice in tried else self.bench.judge(edits, table.layout)
            if judged is None:
                break
            tried.append(choice)
            outcome = self.spent(judged, choice, table)
            if not outcome.edits and outcome.layout == layout_of(self.bench.given):
                outcome = self.as_given(outcome)  # what its timing differs by is noise
            best = self.better(outcome, best)
            rows = sum(c.latency_ms for c in choice.values()) + beyond(choice, table.apart).get("latency", 0.0)
            line.points.append((rows, outcome.latency_ms * start.original_ms / outcome.original_ms))
            if allowed is not None and outcome.error > self.budget.limits["error"].value:
                expected = sum(c.error**2 for c in choice.values()) ** 0.5
                allowed = 0.95 * min(allowed, expected) * self.budget.limits["error"].value / outcome.error
            if not self.unmet(outcome) and self.tight(outcome):
                break
            nearest = outcome if nearest is None or self.excess(outcome) < self.excess(nearest) else nearest
        self.progress(f"correcting by the whole network, {table.layout}", CORRECTIONS, CORRECTIONS)
        return best

    def as_given(self, start: Outcome) -> Outcome:
        """The original itself, where nothing measured faster; but with the edits that were asked for regardless."""
        if self.bench.wholes.kept:
            return start
        return replace(start, edits=(), asked=(), layout=layout_of(self.bench.given), latency_ratio=1.0,
                       latency_ms=start.original_ms, error=0.0, macs=self.now["macs"], params=self.now["params"],
                       memory=self.now["memory"])  # fmt: skip

    def pick(
        self, table: Table, start: Outcome, line: Line, allowed: float | None,
        tried: Sequence[Mapping[str, Candidate]], nearest: Outcome | None = None,
    ) -> dict[str, Candidate]:  # fmt: skip
        """One candidate a site within the limits, none of what was tried; where none are, the cheapest.

        Of the nearest network that can be had all limits are taken to be what it has, and a little more.
        """
        limits = {}
        for name, limit in self.budget.limits.items():
            if name == "latency":
                least = NEAR * nearest.latency_ratio * start.original_ms if nearest else 0.0
                limits[name] = line.rows_for(max(AIM * limit.amount(start.original_ms), least))
            elif name != "error":
                adds = "weight_bytes" if name == "memory" else name
                fixed = self.base[adds] - sum(row[0].costs[adds] for row in table.candidates.values())
                least = NEAR * getattr(nearest, name) if nearest else 0.0
                limits[name] = max(limit.amount(self.now[name]), least) - fixed - self.apart.get(name, 0.0)
        if allowed is not None:
            limits["error"] = allowed
        goal = "latency" if self.budget.only_error else "error"
        rows = {site: row[1:] if site in self.required and row[1:] else row for site, row in table.candidates.items()}
        choice = choose(rows, limits, goal, self.forced, table.apart, table.elsewhere, tried)
        return choice or cheapest(rows, [n for n in limits if n != "error"] or ["latency"], table.apart)

    def spent(self, outcome: Outcome, choice: Mapping[str, Candidate], table: Table) -> Outcome:
        """The outcome with its macs and params; what the sum of the rows does not tell is kept for the next choice."""
        totals = self.foreseen(choice, table)
        known = {**(outcome.counted or {}), "memory": outcome.memory}
        self.apart |= {name: value - totals[name] for name, value in known.items()}
        totals |= known
        outcome = replace(outcome, macs=totals["macs"], params=totals["params"])
        self.points.append(point(outcome))
        return outcome

    def foreseen(self, choice: Mapping[str, Candidate], table: Table) -> dict[str, float]:
        """What the rows say of the whole network: macs, params and bytes of weights add up, peaks of memory do not."""
        more = beyond(choice, table.apart)
        totals = {name: value + more.get(name, 0.0) for name, value in self.base.items()}
        for site, candidate in choice.items():
            for name in totals:
                totals[name] += candidate.costs[name] - table.candidates[site][0].costs[name]
        peak = max([table.elsewhere, *(c.costs["peak_bytes"] for c in choice.values())])
        return totals | {"memory": totals["weight_bytes"] + peak}

    def unmet(self, outcome: Outcome) -> list[str]:
        """Why the budget does not hold; empty where it does."""
        return self.budget.misses(self.reached(outcome))

    def reached(self, outcome: Outcome | Point) -> dict[str, float]:
        """What each limit bounds: an amount where it is one, else the fraction of now."""
        got = {}
        for name, limit in self.budget.limits.items():
            if name == "latency":
                got[name] = outcome.latency_ms if limit.absolute else outcome.latency_ratio
            else:
                got[name] = getattr(outcome, name) / (1 if limit.absolute else self.now[name])
        return got

    def reasons(self, outcome: Outcome) -> list[str]:
        """The same, and where no choice could have kept a limit."""
        least, told = self.outside(), []
        for reason in self.unmet(outcome):
            name = reason.partition(":")[0]
            limit, floor = self.budget.limits[name], least.get(name, 0.0)
            if floor > limit.amount(self.now.get(name, 0.0)):
                share = f"{floor:.3g}" if limit.absolute else f"{floor / self.now[name]:.3g} of it"
                reason += f", and at least {share} lies outside the sites that can change"
            told.append(reason)
        return told

    def outside(self) -> dict[str, float]:
        """What is no site's and changes with none: macs, params and memory that stay whatever is chosen."""
        if not self.tables:
            return {}
        edits = [c.edit for _, table in self.tables for row in table.candidates.values() for c in row if c.edit]
        names = {*self.bench.sites, *(name for edit in edits for name, _ in edit.also)}
        reached = [costs_of(self.bench, name) for name in names]
        least = {name: value - sum(one.get(name, 0.0) for one in reached) for name, value in self.base.items()}
        least["memory"] = least.pop("weight_bytes") + sum(x.nbytes for x in tensors_in(self.bench.inputs))
        return least if all("macs" in one for one in reached) else {k: v for k, v in least.items() if k != "macs"}

    def tight(self, outcome: Outcome) -> bool:
        """Whether a limit is used up, of those that the rows tell of only roughly."""
        got, rough = self.reached(outcome), [name for name in ("latency", "memory") if name in self.budget]
        return not rough or any(got[name] >= SLACK * self.budget.limits[name].value for name in rough)

    def better(self, one: Outcome, other: Outcome) -> Outcome:
        """Within the budget before outside of it; there the smaller error, and so among what comes nearest."""
        lacking = [self.lacks(o) for o in (one, other)]
        if lacking[0] != lacking[1]:
            return one if lacking[0] < lacking[1] else other
        if "latency" in self.budget and one.latency_ratio > 1 and not self.required:
            return other  # which is not slower than what was given
        misses = [len(self.unmet(o)) for o in (one, other)]
        if misses[0] != misses[1]:
            return one if misses[0] < misses[1] else other
        if self.forced:
            return max(other, one, key=lambda o: (self.bench.changes(o.edits), -o.latency_ratio))
        if self.budget.only_error:
            return min(other, one, key=lambda o: o.latency_ratio)
        over = [self.excess(o) if misses[0] else 0.0 for o in (one, other)]
        if not misses[0] or max(over) <= NEAR * min([*over, *map(self.excess, self.points)]):
            return one if one.error < other.error else other
        return one if over[0] < over[1] else other

    def excess(self, outcome: Outcome | Point) -> float:
        """By how much the budget is overrun, the largest factor over all limits."""
        return max(got / self.budget.limits[name].value for name, got in self.reached(outcome).items())

    def lacks(self, outcome: Outcome) -> int:
        """How many of the sites that must change do not."""
        return len(self.required - {edit.site for edit in outcome.asked})


def costs_of(bench: Workbench, name: str) -> dict[str, float]:
    """What a module costs as it is; of one that is no convolution the parameters alone are known."""
    if site := bench.everywhere.get(name):
        return costs(site.block, site, 0.0)
    parameters = list(bench.original.get_submodule(name).parameters())
    return {"params": sum(p.numel() for p in parameters), "weight_bytes": sum(p.nbytes for p in parameters)}


def point(outcome: Outcome, score: float | None = None) -> Point:
    """What a whole network measured."""
    return Point(outcome.latency_ratio, outcome.latency_ms, outcome.error, outcome.macs, outcome.params, outcome.memory,
                 len({edit.site for edit in outcome.edits}), score)  # fmt: skip


def front_of(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats in both latency and error, from fast to slow."""
    found: list[Point] = []
    for one in sorted(points, key=lambda p: (p.latency_ratio, p.error, p.score is None)):
        if not found or one.error < found[-1].error:
            found.append(one)
    return tuple(found)
