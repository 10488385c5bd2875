"""`combined`: one rule inside of another, as a bottleneck whose core is separable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconv.ruleset.asymmetric import Asymmetric, orders
from reconv.ruleset.asymmetric import full_rank as full_asymmetric
from reconv.ruleset.bottleneck import Bottleneck, thin_ranks
from reconv.ruleset.canonical import dense_weight, float64, once, pack
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.low_rank_pointwise import full_rank as full_pointwise
from reconv.ruleset.offers import cheaper, foreign, must_serve, ranks, unfit
from reconv.ruleset.responses import Responses
from reconv.ruleset.rule import Proposal, Rule, Weights
from reconv.ruleset.separable import Separable, full_terms
from reconv.ruleset.stacked import Stacked, convolved, full_mid, two_kernels
from reconv.spec import Chain, ConvSpec, convs
from reconv.surgery.sites import Site

BOTTLENECK, SEPARABLE, ASYMMETRIC = Bottleneck(), Separable(), Asymmetric()
STACKED, POINTWISE = Stacked(), LowRankPointwise()
PARTS: dict[str, Rule] = {rule.name: rule for rule in (BOTTLENECK, SEPARABLE, ASYMMETRIC, STACKED, POINTWISE)}
ALL = 1.0  # the share at which a form loses nothing
FEW_TERMS = 2  # of a separable inside of another form
Inside = Callable[[Site, float], Proposal | None]  # what a rule makes of a part, with a share of its channels


class Combined:
    """What one rule makes of a convolution, its main part rewritten by another.

        w ≈ outer(…, s, …),   s ≈ inner(…)        1×1 → (k×k depthwise → 1×1);  1×1 → (k×1 → 1×k) → 1×1

    A bottleneck's core made separable or asymmetric, a separable's 1×1 in low rank; for a depthwise kernel, small
    kernels one after the other of which one is asymmetric. Exact where both are. Each part is fitted on its own, the
    outer one first; the error is that of the whole.

    Source:  Kim et al. 2015, arXiv:1511.06530; Guo et al. 2018, arXiv:1808.05517; Sandler et al. 2018, arXiv:1801.04381
    """

    name = "combined"
    group = "smaller"
    source = "Kim et al. 2015, arXiv:1511.06530; Guo et al. 2018, arXiv:1808.05517"

    def refuse(self, site: Site) -> str | None:
        reason = unfit(site)
        if reason:
            return reason
        if site.spec.pointwise:
            return "1×1: see low_rank_pointwise"
        if not any(True for _ in _forms(site, ALL)):
            return "no rule that serves it leaves a part that another one serves"
        return None

    def propose(self, site: Site) -> Iterable[Proposal]:
        must_serve(self, site)
        return cheaper(self.name, site, (form.block for form in _offered(site)))

    def full(self, site: Site) -> tuple[Proposal, ...]:
        """Each pair of rules where neither loses anything."""
        return tuple(self.at(form) for form in _forms(site, ALL))

    def at(self, form: Form) -> Proposal:
        return Proposal(self.name, form.block)

    def init(self, site: Site, proposal: Proposal, activations: Responses | None = None) -> Weights:
        must_serve(self, site)
        form = next((f for f in (*_offered(site), *_forms(site, ALL)) if self.at(f) == proposal), None)
        if form is None:
            raise foreign(self, site, proposal)
        groups = site.spec.groups
        return pack(site, form.block, form.weights(site),
                    lambda *parts: convolved(*(_joined(part, groups) for part in parts)))  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What one rule offers for the site, and what another one does for its part at a position."""

    outer: Proposal
    position: int
    inner: Proposal

    @property
    def specs(self) -> list[ConvSpec]:
        found = _chain(self.outer)
        found[self.position : self.position + 1] = _chain(self.inner)
        return found

    @property
    def block(self) -> Chain:
        return Chain(*self.specs)

    def weights(self, site: Site) -> list[Tensor]:
        """The dense weights of all its convolutions, in float64."""
        exact = once(site, ("float64",), lambda: _exact(site))
        outer = _fitted(exact, self.outer)
        core = _blank(site, _chain(self.outer)[self.position])
        core.tensors["weight"] = outer[self.position]
        outer[self.position : self.position + 1] = _fitted(core, self.inner)
        return [dense_weight(spec, weight) for spec, weight in zip(self.specs, outer, strict=True)]


def _exact(site: Site) -> Site:
    return replace(site, tensors={name: float64(tensor) for name, tensor in site.tensors.items()})


def _fitted(site: Site, proposal: Proposal) -> list[Tensor]:
    """The weights of a chain's convolutions, by the rule that offers it."""
    tensors = PARTS[proposal.rule].init(site, proposal).tensors
    return [tensors[f"{at}.weight"] for at in range(len(_chain(proposal)))]


# -- which pairs --------------------------------------------------------------------------------------
def _offered(site: Site) -> list[Form]:
    """A few pairs at a quarter and at half of the channels, each once."""
    forms = {form.block: form for share in (1 / 4, 1 / 2) for form in _forms(site, share)}
    return [form for form in forms.values() if not any(_scales_only(spec) for spec in form.specs)]


def _forms(site: Site, share: float) -> Iterator[Form]:
    """The pairs of rules, each with this share of the channels at which it loses nothing."""
    spec = site.spec
    if not BOTTLENECK.refuse(site):
        thin_outputs, thin_inputs = (_share(n, share) for n in thin_ranks(spec))
        outputs, inputs = (_share(n // spec.groups, share) for n in (spec.out_channels, spec.in_channels))
        yield from _inside(site, BOTTLENECK.at(site, None, thin_inputs), 1, _separable("depthwise"), share)
        yield from _inside(site, BOTTLENECK.at(site, thin_outputs, None), 0, _separable("pointwise"), share)
        yield from _inside(site, BOTTLENECK.at(site, outputs, inputs), 1, _asymmetric, share)
    if not SEPARABLE.refuse(site):
        terms = full_terms(spec, "depthwise")
        outer = SEPARABLE.at(site, "depthwise", terms if share == ALL else min(FEW_TERMS, terms))
        yield from _inside(site, outer, 1, _pointwise, share)
    elif not STACKED.refuse(site):
        kernels = two_kernels(spec)
        mid = _share(full_mid(spec, kernels), share)
        yield from _inside(site, STACKED.at(site, kernels, mid), 0, _asymmetric, share)


def _inside(site: Site, outer: Proposal, position: int, inside: Inside, share: float) -> Iterator[Form]:
    """The pair, where the inner rule serves the outer one's part at that position."""
    inner = inside(_blank(site, _chain(outer)[position]), share)
    if inner is not None:
        yield Form(outer, position, inner)


def _scales_only(spec: ConvSpec) -> bool:
    """Whether it is a 1×1 that mixes nothing."""
    return spec.pointwise and spec.in_channels == spec.out_channels == spec.groups


def _separable(first: str) -> Inside:
    def proposal(site: Site, share: float) -> Proposal | None:
        if SEPARABLE.refuse(site):
            return None
        terms = full_terms(site.spec, first)
        return SEPARABLE.at(site, first, terms if share == ALL else min(FEW_TERMS, terms))

    return proposal


def _asymmetric(site: Site, share: float) -> Proposal | None:
    if ASYMMETRIC.refuse(site):
        return None
    first = orders(site.spec)[0]
    return ASYMMETRIC.at(site, first, _share(full_asymmetric(site.spec, first), share))


def _pointwise(site: Site, share: float) -> Proposal | None:
    return None if POINTWISE.refuse(site) else POINTWISE.at(site, _share(full_pointwise(site.spec), share))


def _share(channels: int, share: float) -> int:
    """This share of the channels, of a size that CPUs prefer; all of them where there is no smaller one."""
    return next(iter(ranks([share * channels], channels)), channels) if share < ALL else channels


def _chain(proposal: Proposal) -> list[ConvSpec]:
    return list(convs(proposal.block))


def _blank(site: Site, spec: ConvSpec) -> Site:
    """A site of this convolution whose weights are not known yet."""
    tensors = {"weight": torch.zeros((), dtype=torch.float64).expand(spec.weight_shape)}
    if spec.bias:
        tensors["bias"] = torch.zeros((), dtype=torch.float64).expand(spec.out_channels)
    return Site(site.name, spec, tensors)


def _joined(part: Tensor, groups: int) -> Tensor:
    """The dense weight in fewer groups: those that now are one stand on the diagonal."""
    cuts = part.shape[0] // groups
    _, o, i, *k = part.shape
    wide = part.new_zeros(groups, cuts, o, cuts, i, *k)
    diagonal = torch.arange(cuts)
    wide[:, diagonal, :, diagonal] = part.reshape(groups, cuts, o, i, *k).transpose(0, 1)
    return wide.reshape(groups, cuts * o, cuts * i, *k)
