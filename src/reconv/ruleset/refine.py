"""Starting weights on real responses: a rule's own fit, then all tensors of its block improved in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from reconv.errors import ConvError
from reconv.ruleset.canonical import dense, rounded
from reconv.ruleset.composed import NotLinearError, composed
from reconv.ruleset.responses import Metric, Responses
from reconv.ruleset.rule import Proposal, Rule, Weights
from reconv.spec import Block, ConvSpec, convs
from reconv.surgery.sites import Site

SWEEPS = 8  # over the tensors of a block, at most
STEPS_LEAST, STEPS_MOST = 3, 12  # of conjugate gradients for a tensor in a sweep
PAYS = 2e-3  # of the squared distance; a step that gains less is a tensor's last
SWEEP_PAYS = 1e-2  # and a sweep that gains less the last one
LARGE = 2e8  # multiply-accumulates to judge a kernel, beyond which float32 does
EXACT = 1e-6  # relative; what is nearer stays as it is
OVERHEAD = 5e7  # of a step, in multiply-accumulates: small kernels cost time, too
Kernel = Callable[[Mapping[str, Tensor]], Tensor]


def started(rule: Rule, site: Site, proposal: Proposal, seen: Responses | None = None) -> Weights:
    """The rule's starting weights; with responses they are made to minimise the distance to them.

        min over all tensors θ_j:  Σ_o s_o² · (w* − ŵ(θ))_o (C + λ) (w* − ŵ(θ))_oᵀ,    ŵ linear in each θ_j

    Tensor after tensor by conjugate gradients, a few steps each; never farther away than the rule's own fit. Blocks
    that are no single kernel (with a nonlinearity inside, say) keep the rule's fit and its error.

    Source:  Zhang et al. 2015, arXiv:1505.06798; Hestenes & Stiefel 1952
    """
    plain = rule.init(site, proposal, seen if _usable(rule, site, seen) else None)
    return improved(rule, site, proposal, plain, seen)


def improved(rule: Rule, site: Site, proposal: Proposal, plain: Weights, seen: Responses | None) -> Weights:
    """A rule's own fit, made to minimise the distance to the responses where these are known and that can be."""
    if seen is None or not _usable(rule, site, seen):
        return plain
    try:
        return refined(site, proposal.block, plain, seen)
    except NotLinearError:
        return plain


def _usable(rule: Rule, site: Site, seen: Responses | None) -> bool:
    return seen is not None and seen.count > 0 and rule.group == "smaller" and isinstance(site.block, ConvSpec)


def metric(site: Site, seen: Responses, dtype: torch.dtype = torch.float64) -> Metric:
    """The metric of a site: the means count only where neither a bias nor a batch norm takes them up."""
    centred = site.bias is not None or site.norm is not None or bool(site.norms)
    return seen.metric(site.weight, centred, dtype, lambda: dense(site).flatten(2))


def refined(site: Site, block: Block, plain: Weights, seen: Responses) -> Weights:
    """These weights, improved; their error is that of the responses.

    Raises:  NotLinearError: when the block has no single kernel in the site's form.
    """
    dtype = torch.float32 if _cost(site.spec, block)[0] > LARGE else torch.float64
    goal = metric(site, seen, dtype)
    given = {name: t.detach().to(dtype) if t.is_floating_point() else t for name, t in plain.tensors.items()}
    free = [name for name in given if name.endswith("weight")]

    def kernel(tensors: Mapping[str, Tensor]) -> Tensor:
        return composed(block, tensors, site.spec).kernel.flatten(2)

    found = dict(plain.tensors)
    start = best = goal.loss(kernel(given)) if seen.work > 0 else 0.0
    if start > 0 and start > EXACT**2 * goal.loss(torch.zeros_like(goal.weight)):
        better = _improved(kernel, given, free, goal, OVERHEAD + sum(_cost(site.spec, block)), seen.work)
        try:
            final = found | {name: rounded(better[name], site) for name in free}
            best = goal.loss(kernel({n: t.to(dtype) if t.is_floating_point() else t for n, t in final.items()}))
        except ConvError:  # the site's dtype cannot hold it
            best = float("inf")
        found = final if best < start else found
    now = {name: t.detach().to(torch.float64) if t.is_floating_point() else t for name, t in found.items()}
    if goal.centred:
        found |= {name: rounded(t, site) for name, t in _biases(site, block, now, seen).items()}
    return replace(plain, tensors=found, error=goal.error(kernel(now)))


def _cost(spec: ConvSpec, block: Block) -> tuple[float, float]:
    """Multiply-accumulates, about, to judge a kernel and to compose it."""
    inputs, taps = spec.in_channels // spec.groups, prod(spec.kernel_size)
    kernel = spec.out_channels * inputs * taps
    mid = max((part.in_channels // part.groups for part in convs(block)), default=1)
    return kernel * inputs * taps, 2 * kernel * mid


def _improved(kernel: Kernel, given: Mapping[str, Tensor], free: list[str], goal: Metric, cost: float,
              work: float) -> dict[str, Tensor]:  # fmt: skip
    """Each tensor in turn, the last first, as long as that pays and the work lasts."""
    tensors = dict(given)
    left = max(STEPS_LEAST * len(free), int(work / cost))
    apart = goal.nearest - kernel(tensors)
    pull = goal.weighted(apart)
    loss = first = float((apart * pull).sum())
    for _ in range(SWEEPS):
        before = loss
        for name in reversed(free):
            steps = min(left, STEPS_MOST)
            tensors[name], apart, pull, loss, used = _stepped(kernel, tensors, name, apart, pull, loss, goal, steps)
            left -= used
        if left <= 0 or loss > (1 - SWEEP_PAYS) * before or loss < EXACT**2 * first:
            break
    return tensors


def _stepped(kernel: Kernel, tensors: Mapping[str, Tensor], name: str, apart: Tensor, pull: Tensor, loss: float,
             goal: Metric, steps: int) -> tuple[Tensor, Tensor, Tensor, float, int]:  # fmt: skip
    """Conjugate gradients for one tensor, from where it stands: it, what the kernel lacks then, that weighted, the
    loss, and the steps taken."""
    leaf = tensors[name].clone().requires_grad_(True)
    with torch.enable_grad():
        now = kernel({**tensors, name: leaf})
    rest = kernel({**tensors, name: torch.zeros_like(tensors[name])})  # of the kernel, what this tensor does not make

    def back(pull: Tensor) -> Tensor:
        return torch.autograd.grad(now, leaf, pull, retain_graph=True)[0]

    value, used = tensors[name], 0
    downhill = back(pull)
    direction, size = downhill, float(downhill.square().sum())
    while used < steps:
        used += 1
        move = kernel({**tensors, name: direction}) - rest
        pulled = goal.weighted(move)
        curvature = float((move * pulled).sum())
        if curvature <= 0 or size == 0:
            break
        step = size / curvature
        value, apart, pull = value + step * direction, apart - step * move, pull - step * pulled
        gain, loss = step * size, loss - step * size
        if gain < PAYS * loss or loss <= 0:
            break
        downhill = back(pull)
        size, last = float(downhill.square().sum()), size
        direction = downhill + (size / last) * direction
    return value, apart, pull, loss, used


def _biases(site: Site, block: Block, tensors: Mapping[str, Tensor], seen: Responses) -> dict[str, Tensor]:
    """The block's bias such that the mean response is the original's, where it has one that can be: a single one."""
    names = [name for name in tensors if name.endswith("bias")]
    now = composed(block, tensors, site.spec)
    if len(names) != 1 or now.added is None or site.bias is None:
        return {}
    lost = ((dense(site) - now.kernel).flatten(2) @ seen.mean.double()[..., None]).flatten()
    wanted = lost + site.bias.detach().double() + (seen.mean_left.double() + torch.zeros_like(lost.view(
        site.spec.groups, -1))).flatten()  # fmt: skip
    leaf = tensors[names[0]].clone().requires_grad_(True)
    with torch.enable_grad():
        added = composed(block, {**tensors, names[0]: leaf}, site.spec).added
    if added is None or leaf.numel() != wanted.numel():
        return {}
    # it is handed on by the rest of the block: in the order of the outputs, or another one
    (change,) = torch.autograd.grad(added, leaf, wanted - now.added)
    fitted = composed(block, {**tensors, names[0]: tensors[names[0]] + change}, site.spec).added
    near = fitted is not None and torch.allclose(fitted, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    return {names[0]: tensors[names[0]] + change} if near else {}
