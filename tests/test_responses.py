"""Blocks are composed to the kernels that their errors speak of, and the fit on responses never loses."""

from dataclasses import replace

import pytest
import torch
from correlated import SMALLER, SPECS, correlated, seen_of
from handmade import input_of, make_site, run

import reconv
from reconv.errors import ConvError
from reconv.ruleset import RULES, Proposal, refine, responses
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.canonical import dense, relative_error
from reconv.ruleset.composed import NotLinearError, composed
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.refine import refined, started
from reconv.ruleset.responses import Responses
from reconv.ruleset.separable import Separable
from reconv.spec import ConvSpec, parse


# -- kernels of blocks --------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
@pytest.mark.parametrize("text", SPECS)
def test_blocks_are_composed_to_the_kernel_that_their_error_speaks_of(rule, text):
    site = make_site(text)
    if rule.refuse(site):
        assert rule.refuse(site)
        return
    for proposal in [*rule.propose(site), *rule.full(site)]:
        weights = rule.init(site, proposal)
        kernel = composed(proposal.block, weights.tensors, site.spec).kernel
        assert relative_error(dense(site), kernel) == pytest.approx(weights.error, abs=1e-9)


@pytest.mark.parametrize("block, text, reason", [
    ("ic6oc8k3x3p1 -> relu", "ic6oc8k3x3p1", "no kernel by itself"),
    ("se(2) -> ic6oc8k3x3p1", "ic6oc8k3x3p1", "no kernel by itself"),
    ("ic6oc8k5x5p2", "ic6oc8k3x3p1", "taps that the convolution does not have"),
    ("ic6oc8k3x3s2p1", "ic6oc8k3x3p1", "stride"),
    ("ic6oc6k3x3p1 -> ic6oc8k1x1", "ic6oc8k3x3p1g2", "different groups"),
    ("ic6oc8k3x3p1t", "ic6oc8k3x3p1", "transposed"),
    ("(ic6oc8k3x3p1 + ic6oc8k3x3s2p1)", "ic6oc8k3x3p1", "strides"),
])  # fmt: skip
def test_blocks_without_a_kernel_in_the_sites_form_say_why(block, text, reason):
    tensors = make_site(block).tensors if "se(" not in block and "(" not in block else make_tensors(block)
    with pytest.raises(NotLinearError, match=reason):
        composed(parse(block), tensors, ConvSpec.parse(text))


def make_tensors(block: str) -> dict[str, torch.Tensor]:
    return reconv.layers.build(parse(block), dtype=torch.float64).state_dict()


@pytest.mark.parametrize("block, text", [
    ("ic6oc6k1x1g3nb -> shuffle(3) -> ic6oc8k3x3p1g2", "ic6oc8k3x3p1"),
    ("permute(6) -> ic6oc8k3x3p1g2 -> permute(8)", "ic6oc8k3x3p1"),
    ("(ic6oc3k3x3p1 | ic6oc5k1x1nb)", "ic6oc8k3x3p1"),
    ("ic6oc4k2x2s2tnb -> ic4oc8k2x2t", "ic6oc8k3x3s2t"),
    ("(ic6oc8k3x3p1 + ic6oc8k2x1p1x0d2x1nb + ic6oc8k1x1nb)", "ic6oc8k3x3p1"),
])  # fmt: skip
def test_composed_kernels_compute_what_the_block_computes(block, text):
    spec, site = ConvSpec.parse(text), make_site(block)
    found = composed(site.block, site.tensors, spec)
    x = input_of(spec)
    whole = run(spec, {"weight": responses_weight(spec, found.kernel), "bias": found.added}, x)
    torch.testing.assert_close(whole, run(site.block, site.tensors, x))


def responses_weight(spec: ConvSpec, kernel: torch.Tensor) -> torch.Tensor:
    from reconv.ruleset.canonical import torch_weight

    return torch_weight(spec, kernel)


# -- the fit ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
@pytest.mark.parametrize("text", ["ic6oc8k3x3p1", "ic8oc12k3s2g2top1nb", "ic8oc12k1x1s2", "ic4oc4k5x5p2g4"])
def test_the_fit_on_responses_never_loses_and_wins_on_correlated_inputs(rule, text):
    site = make_site(text)
    x = correlated(site.spec)
    for proposal in [] if rule.refuse(site) else list(rule.propose(site))[:3]:
        seen = replace(seen_of(site, x), work=3e9)
        plain, judged = rule.init(site, proposal), refined(site, proposal.block, rule.init(site, proposal),
                                                           replace(seen, work=0.0))  # fmt: skip
        fitted = started(rule, site, proposal, seen)
        assert judged.tensors.keys() == plain.tensors.keys() == fitted.tensors.keys()
        assert fitted.error <= judged.error * (1 + 1e-9)
        assert fitted.error < 0.995 * judged.error or judged.error < 0.05 or rule.name in ("multi_dilated", "remove")
        exact = run(site.block, site.tensors, x)
        apart = [float((run(proposal.block, w.tensors, x) - exact).norm()) for w in (plain, fitted)]
        assert apart[1] <= apart[0] * (1 + 1e-9)


@pytest.mark.parametrize("rule, text", [(Separable(), "ic6oc8k3x3p1"), (Bottleneck(), "ic8oc12k3s2g2top1"),
                                        (LowRankPointwise(), "ic12oc8k1x1")])  # fmt: skip
def test_where_all_inputs_are_alike_the_plain_fit_is_the_best(rule, text):
    site = make_site(text)
    length = responses.patch_length(site.spec)
    white = Responses(site.spec, count=10**9, mean=torch.zeros(site.spec.groups, length, dtype=torch.float64),
                      patches=torch.eye(length, dtype=torch.float64).expand(site.spec.groups, -1, -1))  # fmt: skip
    one_sided = [p for p in rule.propose(site) if len(p.block.blocks) == 2]
    for proposal in one_sided:
        plain, fitted = rule.init(site, proposal), started(rule, site, proposal, white)
        assert fitted.error == pytest.approx(plain.error, rel=1e-6)
        kernels = [composed(proposal.block, w.tensors, site.spec).kernel for w in (plain, fitted)]
        torch.testing.assert_close(*kernels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule, text, at", [
    (LowRankPointwise(), "ic12oc8k1x1s2p1", (3,)),
    (LowRankPointwise(), "ic12oc16k1g2nb", (2,)),
    (Bottleneck(), "ic6oc8k3x3p1", (3, None)),
])  # fmt: skip
def test_the_closed_form_is_where_the_sweeps_end(rule, text, at, monkeypatch):
    site = make_site(text)
    proposal, seen = rule.at(site, *at), seen_of(site, *(correlated(site.spec, s) for s in range(3)))
    closed = refined(site, proposal.block, rule.init(site, proposal, seen), replace(seen, work=0.0))
    for name, value in {"SWEEPS": 200, "STEPS_MOST": 60, "PAYS": 1e-9, "SWEEP_PAYS": 1e-7}.items():
        monkeypatch.setattr(refine, name, value)
    swept = refined(site, proposal.block, rule.init(site, proposal), replace(seen, work=1e13))
    assert swept.error == pytest.approx(closed.error, rel=2e-3)
    again = started(rule, site, proposal, seen)
    assert again.error == pytest.approx(closed.error, rel=1e-6)


@pytest.mark.parametrize("text", ["ic6oc8k3x3p1", "ic8oc12k3s2g2top1", "ic6oc8k3x3p1g2"])
def test_the_bias_takes_up_the_means(text):
    site = make_site(text)
    x = correlated(site.spec)
    dims = [d for d in range(x.ndim) if d != 1]
    for rule in (r for r in SMALLER if not r.refuse(site)):
        for proposal in list(rule.propose(site))[:2]:
            tensors = started(rule, site, proposal, replace(seen_of(site, x), work=0.0)).tensors
            near = run(proposal.block, tensors, x).mean(dims)
            torch.testing.assert_close(near, run(site.block, site.tensors, x).mean(dims), rtol=1e-8, atol=1e-8)


def test_other_rules_and_other_blocks_keep_their_own_fit():
    site = make_site("ic6oc8k3x3p1")
    seen = seen_of(site, correlated(site.spec))
    for rule in (r for r in RULES if r.group == "stronger" and not r.refuse(site)):
        proposal = next(iter(rule.propose(site)))
        one, other = rule.init(site, proposal), started(rule, site, proposal, seen)
        assert one.error == other.error
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    rule = Separable()
    proposal = next(iter(rule.propose(site)))
    nothing = started(rule, site, proposal, Responses(site.spec))
    assert nothing.error == rule.init(site, proposal).error


def test_half_precision_is_fitted_in_float32():
    site = make_site("ic6oc8k3x3p1", torch.bfloat16)
    rule = Separable()
    proposal = next(iter(rule.propose(site)))
    seen = Responses(site.spec)
    seen.add(correlated(site.spec).bfloat16())
    fitted = started(rule, site, proposal, seen)
    assert {t.dtype for t in fitted.tensors.values()} == {torch.bfloat16}
    assert seen.patches.dtype == torch.float32
    assert fitted.error < started(rule, site, proposal, replace(seen, work=0.0)).error


def test_weights_made_in_inference_mode_are_fitted_as_others():
    """They do not say when they change."""
    with torch.inference_mode():
        site = make_site("ic6oc8k3x3p1")
    other, rule = make_site("ic6oc8k3x3p1"), Separable()
    assert site.weight.is_inference()
    assert rule.refuse(site) is None
    proposal, seen = next(iter(rule.propose(site))), seen_of(other, correlated(other.spec))
    near = started(rule, other, proposal, replace(seen, metrics={})).error
    assert started(rule, site, proposal, seen).error == pytest.approx(near, rel=1e-9)
    with torch.inference_mode():
        site.weight[0, 0, 0, 0] = float("nan")
    assert rule.refuse(site) == "its weight holds NaN or Inf"


def test_proposals_are_what_rules_are_asked_with():
    site = make_site("ic6oc8k3x3p1")
    with pytest.raises(ConvError, match="the proposal must be one that the rule makes"):
        started(Separable(), site, Proposal("separable", site.block), seen_of(site, correlated(site.spec)))
