"""`plan`: chooses what each convolution becomes so that the budget holds, by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from reconv.costing.operators import OperatorCount
from reconv.data import Batch, Feed
from reconv.errors import conv_error
from reconv.planning.additions import ADDING, DENSER
from reconv.planning.budget import Budget
from reconv.planning.candidates import Table
from reconv.planning.considered import Considered, judged
from reconv.planning.plan import Plan, Refusal
from reconv.planning.planner import Planner, front_of, point
from reconv.planning.remembered import Remembered, job_key
from reconv.planning.table import Progress
from reconv.planning.wholes import Wholes, rewrite_wholes
from reconv.planning.wishes import Wishes, guided, required
from reconv.planning.workbench import Outcome, Workbench, spent_as_found
from reconv.ruleset import GROUPS, Rule, rules_named
from reconv.surgery import Network, Site, clone, find_sites, tensors_of
from reconv.surgery.alive import peak_of, state_bytes
from reconv.surgery.fingerprint import structure_hash
from reconv.surgery.sites import check_sites
from reconv.targets import Target, check_runs, get_target

CALIBRATION = 64  # samples on which errors are measured
FASTEST = 1e-3  # of the latency: what no network reaches
MOST = 64  # plans of a front
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
    wishes: Plan | Wishes | Mapping[str, Any] | None = None,
    front: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    ref: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Chooses what each convolution of `model` becomes, from measured latencies and measured errors.

    Every proposal of every rule is timed in its site's place, those on the front are probed for how far the network's
    output moves, a multiple-choice knapsack picks one a site, and the whole network is measured and the choice
    corrected until the budget holds. Nothing that measured slower is kept. Without a budget, rules of the groups
    "stronger" and "denser" are applied wherever they are not refused, one a site, the first of them that serves it;
    those of "denser" at the last site alone, unless `sites` names some.

    Args:    model: a trained network; it stays as it is. example_inputs: a tensor, or a tuple of what it takes.
             budget: "latency=0.4,params=2M", a mapping, or None; see `Budget`.
             data: calibration inputs, on whose responses smaller layers are fitted; None: errors are measured on
             `example_inputs`, and layers are fitted to the weights alone.
             target: the engine that times; rules: names, groups or Rules; sites: globs of module names.
             wishes: sites that stay, rules that are forbidden, proposals that are forced, slower or not: see `Wishes`;
             of a Plan those that it holds, and what it has at the sites that it pins.
             front: how many plans between the fastest and the network as it is to make besides, as `alternatives`.
             evaluate: a score of a network for these, higher is better.
             ref: what the command line calls the network, to be noted. progress: called with (what, done, of how many).
    Returns: a Plan; `met` says whether the budget holds, `reason` why not, `refusals` why sites stay as they are.
    Raises:  ConvError: for a wrong budget, rule, target, network, wish or data. An unmet budget never raises.
    Example:
             >>> import torch
             >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))
             >>> plan(net, torch.rand(1, 8, 12, 12), budget="params=0.5").met
             True
    """
    limits, engine = Budget.of(budget), get_target(target)
    pinned = wishes.pinned if isinstance(wishes, Plan) else ()
    wished = wishes.wishes if isinstance(wishes, Plan) else Wishes.of(wishes)
    asked = wished.needed(rules_named(rules))
    found = guided(asked, wished, pinned)
    rewriting = [r for r in found if r.group != "exact"]
    _check_asked(front, sites)
    if not (wished or front):
        _check_budget_given(found, limits)
    inputs, count = tensors_of(example_inputs), OperatorCount()
    calibration = [Batch(inputs)] if data is None else Feed.of(data, inputs).head(CALIBRATION, seed)
    network = find_sites(model, inputs, observers=[count])
    wished.check(network.sites, asked)
    own = spent_as_found(model, count)
    wholes = rewrite_wholes(model, inputs, found, _by_name(rules), sites, engine, _forced(rules, limits))
    if wholes.edits:
        count = OperatorCount()
        network = find_sites(wholes.model, inputs, observers=[count])
    meant = _meant(network, sites, wholes)
    bench = Workbench(model, inputs, meant, found, engine, calibration, data is not None, wholes, network.sites,
                      network.calls)  # fmt: skip
    bench.remembered = Remembered(job_key(bench, (wished, pinned, wholes.edits)))
    check_runs(engine, bench.given, inputs)
    base = spent_as_found(wholes.model, count) if wholes.edits else own
    now = own | {"memory": state_bytes(model) + peak_of(clone(bench.given), inputs).most}
    needed = required(list(bench.sites.values()), found, wished, pinned)
    planner = Planner(bench, limits, now, base, _forced(rules, limits), progress or _silent, needed)
    outcome = planner.search([r for r in rewriting if r.group != DENSER] if limits or needed or front else [])
    adding = [] if limits or needed else [r for r in rewriting if r.group in ADDING]
    outcome, unserved = planner.added(outcome, adding, every=sites != "*")
    _check_required(planner, outcome, needed)
    refusals = [Refusal(name, "*", reason) for name, reason in network.refusals]
    refusals += [*wholes.refusals, *_unasked(rewriting, adding, wholes, limits, needed), *unserved]
    if bench.exports:
        refusals += [Refusal("*", r.name, f"{engine.name} runs the network exported, and sees to that itself")
                     for r in found if getattr(r, "eager", False)]  # fmt: skip
    made = Plan((), tuple(refusals), {"ref": ref, "hash": structure_hash(model)}, limits.text, engine.name,
                fit="weights" if data is None else "responses", wishes=wished)  # fmt: skip
    alternatives = _front(planner, made, front, evaluate, progress or _silent)
    made = replace(_finished(planner, made, outcome), alternatives=alternatives)
    made = replace(made, front=front_of([p for p in (*planner.points, *(a.measured for a in alternatives)) if p]))
    bench.cache.close()
    bench.remembered.save()
    return made


def _finished(planner: Planner, made: Plan, outcome: Outcome, score: float | None = None) -> Plan:
    """The plan of an outcome."""
    bench, tables = planner.bench, [table for _, table in planner.tables]
    reasons = planner.reasons(outcome)
    refusals = (*made.refusals, *_agreed(tables), *_exact_refusals(bench, outcome))
    changed = {e.site: str(bench.everywhere[e.site].spec) for e in outcome.edits if not e.whole}
    return replace(made, edits=bench.timed(outcome.edits, outcome.layout), refusals=refusals,
                   model={**made.model, "sites": changed}, layout=outcome.layout, met=not reasons,
                   reason="; ".join(reasons) or None, latency_ratio=outcome.latency_ratio,
                   measured=point(outcome, score), considered=_considered(tables, outcome))  # fmt: skip


def _front(planner: Planner, made: Plan, count: int, evaluate: Callable[[nn.Module], float] | None,
           progress: Progress) -> tuple[Plan, ...]:  # fmt: skip
    """Plans for latencies spread between the fastest that can be had and the network as it is."""
    if not count or not planner.tables:
        return ()
    outcome = planner.within(FASTEST)
    fastest, plans = outcome.latency_ratio, list[Plan]()
    for step in range(count):
        progress("measuring the front", step, count)
        ratio = fastest ** (1 - step / max(count - 1, 1))
        outcome = planner.within(ratio) if step else outcome
        score = None if evaluate is None else float(evaluate(planner.model_of(outcome)))
        budget = replace(made, budget=f"latency={ratio:.3g}")
        plans.append(replace(_finished(planner, budget, outcome, score), considered=()))
    progress("measuring the front", count, count)
    found = {plan.measured: plan for plan in plans if plan.measured}
    return tuple(found[one] for one in front_of(found))


def _considered(tables: Sequence[Table], outcome: Outcome) -> tuple[Considered, ...]:
    """Every proposal, as the table of the outcome's memory format has it."""
    table = next((t for t in tables if t.layout == outcome.layout), tables[0] if tables else Table())
    rows = table.considered
    taken = {e.site: rows.get((e.site, e.rule, e.block, e.absorbs)) for e in outcome.asked}
    return judged(rows.values(), {site: row for site, row in taken.items() if row})


def _unasked(rewriting: Sequence[Rule], adding: Sequence[Rule], wholes: Wholes, limits: Budget,
             needed: Mapping[str, str]) -> list[Refusal]:  # fmt: skip
    """Why rules were not tried at all."""
    if limits:
        return [Refusal("*", r.name, "it makes nothing cheaper: ask for it without a budget") for r in rewriting
                if r.group == DENSER]  # fmt: skip
    used = {edit.rule for edit in wholes.edits} | set(needed.values())
    return [Refusal("*", r.name, "it needs a budget, such as latency=0.5") for r in rewriting
            if r not in adding and r.name not in used]  # fmt: skip


def _check_asked(front: int, sites: str | Sequence[str]) -> None:
    if not isinstance(front, int) or not 0 <= front <= MOST:
        raise conv_error("plan", f"front must be between 0 and {MOST}", got={"front": repr(front)}, also=ValueError)
    check_sites("plan", sites)


def _check_required(planner: Planner, outcome: Outcome, needed: Mapping[str, str]) -> None:
    """What a person forced is in the plan, or it is said why it cannot be."""
    missing = needed.keys() - {edit.site for edit in outcome.asked}
    for site in sorted(missing):
        why = {
            r.reason
            for _, table in planner.tables
            for r in table.refusals
            if r.site == site and r.rule in ("*", needed[site])
        }
        raise conv_error("plan", "a forced proposal must be possible", got={"site": site, "rule": needed[site]},
                         do="; ".join(sorted(why)) or "The network does not run with it, or other edits exclude it.",
                         also=ValueError)  # fmt: skip


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
    return budget.only_error and not any(isinstance(r, str) and r in GROUPS for r in asked)


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
