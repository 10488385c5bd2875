"""Whatever the convolution, a rule refuses it with a reason, or what it offers stands in its place."""

import pytest
import torch
from handmade import distance, followed, make_site, randn, random, rewritten, run, site_for
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reconv.errors import ConvError
from reconv.ruleset import RULES, Proposal, Rule, rules_named
from reconv.spec import ConvSpec, output_shape
from reconv.surgery.clone import clone
from reconv.surgery.kin import change
from reconv.surgery.sites import ConvCall, Site

LENGTHS = (11, 12, 13)
(EXPAND,) = rules_named("expand_branches")


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Convolutions of 1 to 3 dimensions with everything that PyTorch allows, that run on `LENGTHS`."""
    dims = draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    groups = draw(st.sampled_from((1, 1, 2, 4)))
    kernel, stride, dilation, low = each(1, 4 if dims < 3 else 3), each(1, 3), each(1, 3), each(0, 3)
    high = draw(st.one_of(st.just(low), st.tuples(*[st.integers(0, 3)] * dims)))
    transposed = draw(st.booleans())
    extra = [draw(st.integers(0, max(s, d) - 1)) if transposed else 0 for s, d in zip(stride, dilation, strict=True)]
    spec = ConvSpec(
        in_channels=groups * draw(st.integers(1, 3)), out_channels=groups * draw(st.integers(1, 3)), groups=groups,
        kernel_size=kernel, stride=stride, dilation=dilation, padding=tuple(zip(low, high, strict=True)),
        bias=draw(st.booleans()), transposed=transposed, output_padding=tuple(extra),
        padding_mode="zeros" if transposed else draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    )  # fmt: skip
    try:
        assume(min(output_shape(spec, (2, spec.in_channels, *LENGTHS[:dims]))) > 0)
    except ConvError:
        assume(False)
    return spec


@pytest.fixture(autouse=True)
def every_kernel_gains(monkeypatch):
    monkeypatch.setattr("reconv.ruleset.kernel._gains", lambda *_: True)


@pytest.mark.parametrize("rule", [r for r in RULES if r.group != "denser"], ids=lambda rule: rule.name)
def test_what_a_rule_offers_stands_in_the_place_of_any_convolution(rule):
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs())
    def holds(spec: ConvSpec) -> None:
        check(rule, spec)

    holds()


def check(rule: Rule, spec: ConvSpec) -> None:
    if rule.name == "fold_branches" and EXPAND.refuse(make_site(spec)):
        return
    shape = (2, spec.in_channels, *LENGTHS[: spec.spatial_dims])
    call = ConvCall("conv", "Conv", spec, shape, spec.weight_shape, output_shape(spec, shape), torch.float64, 1)
    site = site_for(rule, spec, calls=(call,))
    reason = rule.refuse(site)
    if reason is not None:
        assert isinstance(reason, str)
        assert reason
        with pytest.raises(ConvError, match="the rule must be able to serve the site"):
            rule.propose(site)
        return
    input = randn(shape, random("input"))
    offered, full = list(rule.propose(site)), list(rule.full(site))
    for proposal in {*offered[:: max(1, len(offered) // 3)], *offered[-1:]}:
        stands(rule, site, proposal, input)
    for proposal in full:
        assert stands(rule, site, proposal, input) <= 1e-8, proposal.block


def stands(rule: Rule, site: Site, proposal: Proposal, input: Tensor) -> float:
    """How far what is offered is from what is there, each with what follows it in the network."""
    if proposal.also:
        return in_a_network(rule, site, proposal, input)
    was, now = run(site.block, site.tensors, input), rewritten(rule, site, proposal, input)
    assert now.shape == was.shape, proposal.block
    was = followed(site, was) if proposal.absorbs else was
    return distance(was, now) if float(was.norm()) > 1e-9 else 0.0


def in_a_network(rule: Rule, site: Site, proposal: Proposal, input: Tensor) -> float:
    weights = rule.init(site, proposal)
    model = site.around.model
    changed = change(clone(model), ((site.name, str(proposal.block)), *proposal.also),
                     {site.name: weights.tensors, **weights.also})  # fmt: skip
    with torch.no_grad():
        was, now = model(input), changed(input)
    assert now.shape == was.shape
    return distance(was, now)
