"""`plan`: chooses what each convolution becomes so that the budget holds, by measuring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from reconv.costing.operators import OperatorCount
from reconv.data import Batch, Feed
from reconv.errors import conv_error
from reconv.planning.additions import ADDING, DENSER, additions
from reconv.planning.budget import Budget
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.planning.search import beyond, cheapest, choose
from reconv.planning.table import Candidate, Progress, Table, measure
from reconv.planning.wholes import Wholes, rewrite_wholes
from reconv.planning.workbench import Outcome, Workbench, spent_as_found
from reconv.ruleset import Rule, rules_named
from reconv.surgery import Network, Site, clone, find_sites, tensors_of
from reconv.surgery.fingerprint import structure_hash
from reconv.targets import Target, check_runs, get_target, layout_of

CALIBRATION = 64  # samples on which errors are measured
CORRECTIONS = 4  # times the search is repeated with what the whole network taught
SLACK = 0.93  # a network under this part of its latency budget has given accuracy away
HOPELESS = 1.15  # times the latency in the best memory format: a search in another one is spared
AIM = 0.97  # of the latency budget: what is aimed at, since timing is noisy
Rules = str | Rule | Iterable[str | Rule]


def plan(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    budget: str | Mapping[str, float | str] | Budget | None = None,
    data: object = None,
    target: str | Target = "torch",
    rules: Rules = ("exact", "smaller"),
    sites: str | Sequence[str] = "*",
    seed: int = 0,
    *,
    ref: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Chooses what each convolution of `model` becomes, from measured latencies and measured errors.

    Every proposal of every rule is timed in its site's place, those on the front are probed for how far the network's
    output moves, a multiple-choice knapsack picks one a site, and the whole network is measured and the choice
    corrected until the budget holds. Nothing that measured slower is kept. Without a budget, rules of the groups
    "stronger" and "denser" are applied wherever they are not refused, one a site, the first of them that serves it;
    those of "denser" at the last site alone, unless `sites` names some.

    Args:    budget: "latency=0.4,params=2M", a mapping, or None; see `Budget`.
             data: calibration inputs, on whose responses smaller layers are fitted; None: errors are measured on
             `example_inputs`, and layers are fitted to the weights alone.
             target: the engine that times; rules: names, groups or Rules; sites: globs of module names.
             ref: what the command line calls the network, to be noted. progress: called with (what, done, of how many).
    Returns: a Plan; `met` says whether the budget holds, `reason` why not, `refusals` why sites stay as they are.
    Raises:  ConvError: for a wrong budget, rule, target, network or data. An unmet budget never raises.
    """
    limits, found, engine = Budget.of(budget), rules_named(rules), get_target(target)
    rewriting = [r for r in found if r.group != "exact"]
    _check_budget_given(found, limits)
    inputs, count = tensors_of(example_inputs), OperatorCount()
    calibration = [Batch(inputs)] if data is None else Feed.of(data, inputs).head(CALIBRATION, seed)
    network = find_sites(model, inputs, observers=[count])
    now = spent_as_found(model, network, count)
    wholes = rewrite_wholes(model, inputs, found, _by_name(rules), sites, engine, _forced(rules, limits))
    if wholes.edits:
        count = OperatorCount()
        network = find_sites(wholes.model, inputs, observers=[count])
    meant = _meant(network, sites, wholes)
    check_runs(engine, clone(model), inputs)
    bench = Workbench(model, inputs, meant, found, engine, calibration, data is not None, wholes, network.sites)
    base = spent_as_found(wholes.model, network, count) if wholes.edits else now
    planner = _Planner(bench, limits, now, base, _forced(rules, limits), progress or _silent)
    outcome, tables = planner.search([r for r in rewriting if r.group != DENSER] if limits else [])
    adding = [] if limits else [r for r in rewriting if r.group in ADDING]
    outcome, unserved = planner.added(outcome, adding, every=sites != "*")
    reasons = planner.unmet(outcome)
    refusals = [Refusal(name, "*", reason) for name, reason in network.refusals]
    refusals += wholes.refusals
    if rewriting and not limits:
        used = {edit.rule for edit in wholes.edits}
        refusals += [Refusal("*", r.name, "it needs a budget, such as latency=0.5") for r in rewriting
                     if r not in adding and r.name not in used]  # fmt: skip
    if limits:
        refusals += [Refusal("*", r.name, "it makes nothing cheaper: ask for it without a budget") for r in rewriting
                     if r.group == DENSER]  # fmt: skip
    refusals += [*unserved, *_agreed(tables), *_exact_refusals(bench, outcome)]
    edits = bench.timed(outcome.edits, outcome.layout)
    bench.cache.close()
    return Plan(edits, tuple(refusals), {"ref": ref, "hash": structure_hash(model)}, limits.text, engine.name,
                outcome.layout, not reasons, "; ".join(reasons) or None, outcome.ratio,
                "weights" if data is None else "responses")  # fmt: skip


class _Planner:
    """The search: sums of measured rows choose, the whole network corrects."""

    def __init__(self, bench: Workbench, budget: Budget, now: Mapping[str, float], base: Mapping[str, float],
                 forced: bool, progress: Progress) -> None:  # fmt: skip
        self.bench, self.budget, self.forced, self.progress = bench, budget, forced, progress
        self.now, self.base = now, base  # what the network costs as given, and with the edits of whole modules
        self.apart: dict[str, float] = {}  # what edits of several modules cost together, beyond the sum of the rows

    def search(self, rules: Sequence[Rule]) -> tuple[Outcome, list[Table]]:
        """The best network found, and the tables that it was chosen from, one for each memory format."""
        judged = [self.bench.judge([], layout) for layout in self.bench.layouts]
        starts = [self.spent(start, {}, Table()) for start in judged if start]
        own = layout_of(self.bench.given)
        faster = [s for s in starts if s.ratio < 1 and (s.edits or s.layout != own)]
        best = min(faster, key=lambda s: s.ratio) if faster else self.as_given(starts[0])
        tables: list[Table] = []
        if rules and self.bench.sites:
            gains = () if self.forced else tuple(n for n in self.budget.limits if n != "error") or ("latency",)
            for start in sorted(starts, key=lambda s: s.ratio):
                if tables and self.hopeless(start.layout, best):
                    continue
                tables.append(measure(self.bench, rules, start.layout, gains, self.progress))
                best = self.corrected(tables[-1], start, best)
                if self.doubtful(best) and (alone := tables[-1].alone()):
                    best = self.corrected(alone, start, best)
        return best, tables

    def added(self, without: Outcome, rules: Sequence[Rule], every: bool) -> tuple[Outcome, list[Refusal]]:
        """The network with what these rules add, slower or not, in its fastest memory format; and their refusals."""
        edits, refusals = additions(list(self.bench.sites.values()), rules, every)
        if not edits:
            return without, refusals
        judged = [outcome for layout in self.bench.layouts if (outcome := self.bench.judge(edits, layout))]
        if not judged:
            unable = {(e.site, e.rule): "the network does not run with it" for e in edits} | self.bench.unable
            return without, refusals + [Refusal(e.site, e.rule, unable[e.site, e.rule]) for e in edits]
        return min(judged, key=lambda outcome: outcome.ratio), refusals

    def doubtful(self, best: Outcome) -> bool:
        """Whether edits of several modules, whose rows are estimates where they meet, misled the choice."""
        return not self.forced and (bool(self.unmet(best)) or any(edit.also for edit in best.asked))

    def hopeless(self, layout: str, best: Outcome) -> bool:
        """Whether the best choice so far is so slow in this other memory format that no table for it is worthwhile."""
        if "latency" not in self.budget or self.unmet(best):
            return False
        there = self.bench.judge(best.asked, layout)
        return there is None or there.ratio > HOPELESS * best.ratio

    def corrected(self, table: Table, start: Outcome, best: Outcome) -> Outcome:
        """Chooses, measures the whole network, and chooses again with what the sum of the rows did not say."""
        overhead = start.latency_ms - sum(row[0].latency_ms for row in table.candidates.values())
        seen: set[tuple[Edit, ...]] = set()
        self.apart = {}
        allowed = self.budget.limits["error"].value if "error" in self.budget else None
        for step in range(CORRECTIONS):
            self.progress(f"correcting by the whole network, {table.layout}", step, CORRECTIONS)
            choice = self.pick(table, start, overhead, allowed)
            edits = tuple(c.edit for c in choice.values() if c.edit)
            judged = None if edits in seen else self.bench.judge(edits, table.layout)
            if judged is None:
                break
            seen.add(edits)
            outcome = self.spent(judged, choice, table)
            if not outcome.edits and outcome.layout == layout_of(self.bench.given):
                outcome = self.as_given(outcome)  # what its timing differs by is noise
            best = self.better(outcome, best)
            overhead = outcome.latency_ms * start.original_ms / outcome.original_ms
            overhead -= sum(c.latency_ms for c in choice.values()) + beyond(choice, table.apart).get("latency", 0.0)
            if allowed is not None and outcome.error > self.budget.limits["error"].value:
                expected = sum(c.error**2 for c in choice.values()) ** 0.5
                allowed = 0.95 * min(allowed, expected) * self.budget.limits["error"].value / outcome.error
            if not self.unmet(outcome) and self.tight(outcome):
                break
        self.progress(f"correcting by the whole network, {table.layout}", CORRECTIONS, CORRECTIONS)
        return best

    def as_given(self, start: Outcome) -> Outcome:
        """The original itself, where nothing measured faster; but with the edits that were asked for regardless."""
        if self.bench.wholes.kept:
            return start
        return replace(start, edits=(), asked=(), layout=layout_of(self.bench.given), ratio=1.0,
                       latency_ms=start.original_ms, error=0.0, macs=self.now["macs"], params=self.now["params"],
                       memory=self.now["memory"])  # fmt: skip

    def pick(self, table: Table, start: Outcome, overhead: float,
             allowed: float | None) -> dict[str, Candidate]:  # fmt: skip
        """One candidate a site within the limits; where none are, the cheapest."""
        limits = {}
        for name, limit in self.budget.limits.items():
            if name == "latency":
                limits[name] = AIM * limit.amount(start.original_ms) - overhead
            elif name != "error":
                fixed = self.base[name] - sum(row[0].costs[name] for row in table.candidates.values())
                limits[name] = limit.amount(self.now[name]) - fixed - self.apart.get(name, 0.0)
        if allowed is not None:
            limits["error"] = allowed
        goal = "latency" if self.budget.only_error else "error"
        choice = choose(table.candidates, limits, goal, every=self.forced, apart=table.apart)
        return choice or cheapest(table.candidates, [n for n in limits if n != "error"] or ["latency"], table.apart)

    def spent(self, outcome: Outcome, choice: Mapping[str, Candidate], table: Table) -> Outcome:
        """The outcome with its macs, params and memory."""
        more = beyond(choice, table.apart)
        totals = {name: value + more.get(name, 0.0) for name, value in self.base.items()}
        for site, candidate in choice.items():
            for name in totals:
                totals[name] += candidate.costs[name] - table.candidates[site][0].costs[name]
        if outcome.counted:
            self.apart = {name: outcome.counted[name] - totals[name] for name in totals}
            totals = dict(outcome.counted)
        return replace(outcome, macs=totals["macs"], params=totals["params"], memory=totals["memory"])

    def unmet(self, outcome: Outcome) -> list[str]:
        """Why the budget does not hold; empty where it does."""
        got = {}
        for name, limit in self.budget.limits.items():
            if name == "latency":
                got[name] = outcome.latency_ms if limit.absolute else outcome.ratio
            else:
                got[name] = getattr(outcome, name) / (1 if limit.absolute else self.now[name])
        return self.budget.misses(got)

    def tight(self, outcome: Outcome) -> bool:
        if "latency" not in self.budget:
            return True
        limit = self.budget.limits["latency"]
        return (outcome.latency_ms if limit.absolute else outcome.ratio) >= SLACK * limit.value

    def better(self, one: Outcome, other: Outcome) -> Outcome:
        """Within the budget before outside of it; there the smaller error, else what comes nearest."""
        if "latency" in self.budget and one.ratio > 1:
            return other  # which is not slower than what was given
        misses = [len(self.unmet(o)) for o in (one, other)]
        if misses[0] != misses[1]:
            return one if misses[0] < misses[1] else other
        if self.forced:
            return max(other, one, key=lambda o: (self.bench.changes(o.edits), -o.ratio))
        if self.budget.only_error:
            return min(other, one, key=lambda o: o.ratio)
        if misses[0] == 0:
            return one if one.error < other.error else other
        return one if self.excess(one) < self.excess(other) else other

    def excess(self, outcome: Outcome) -> float:
        """By how much the budget is overrun, the largest factor over all limits."""
        factors = []
        for name, limit in self.budget.limits.items():
            now = outcome.original_ms if name == "latency" else self.now.get(name, 1.0)
            got = outcome.latency_ms if name == "latency" else getattr(outcome, name)
            factors.append(got / limit.amount(now))
        return max(factors)


def _check_budget_given(rules: Sequence[Rule], budget: Budget) -> None:
    if not budget and rules and all(rule.group == "smaller" for rule in rules):
        raise conv_error("plan", "rules of the group 'smaller' need a budget",
                         got={"rules": ", ".join(r.name for r in rules), "budget": None},
                         do="Give one, such as budget='latency=0.5'.", also=ValueError)  # fmt: skip


def _meant(network: Network, patterns: str | Sequence[str], wholes: Wholes) -> list[Site]:
    meant = wholes.open_sites(network.sites, patterns)
    if network.sites and not meant and not wholes.meant:
        names = ", ".join(site.name for site in network.sites)
        raise conv_error("plan", "sites must match at least one convolution", got={"sites": patterns},
                         do=f"The network has {names}.", also=ValueError)  # fmt: skip
    return meant


def _forced(rules: Rules, budget: Budget) -> bool:
    """Rules asked for by name, with nothing but an error budget, are applied wherever they stay within it."""
    asked = [rules] if isinstance(rules, str) or not isinstance(rules, Iterable) else list(rules)
    groups = {"exact", "smaller", "stronger", "denser"}
    return budget.only_error and not any(isinstance(r, str) and r in groups for r in asked)


def _by_name(rules: Rules) -> set[str]:
    """The names of the rules that were asked for by themselves, not with their group."""
    asked = [rules] if isinstance(rules, str) or hasattr(rules, "propose") else list(rules)
    return {one if isinstance(one, str) else getattr(one, "name", "") for one in asked}


def _exact_refusals(bench: Workbench, outcome: Outcome) -> list[Refusal]:
    """Why exact rules did not serve; said also where they served but did not measure faster."""
    edits, refusals = bench.exact_edits(bench.sites, outcome.layout)
    edits = [*bench.wholes.edits, *edits]
    used = {(e.site, e.rule) for e in outcome.edits}
    unused = {(e.site, e.rule): "the network measured no faster with it" for e in edits} | bench.unable
    return refusals + [Refusal(*key, reason) for key, reason in unused.items() if key not in used]


def _agreed(tables: Sequence[Table]) -> list[Refusal]:
    """Refusals that hold in every memory format, as the first table says them."""
    held = [{(r.site, r.rule) for r in table.refusals} for table in tables]
    return [r for r in tables[0].refusals if all((r.site, r.rule) in h for h in held)] if tables else []


def _silent(what: str, done: int, total: int) -> None:
    pass
