"""Moments are those of all patches, and the metric that they make tells how far responses are apart."""

import pytest
import torch
from correlated import SMALLER, SPECS, correlated, patches_by_hand, seen_of
from handmade import make_site, randn, random, run

from reconv.ruleset import responses
from reconv.ruleset.canonical import dense, relative_error
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.refine import metric, started
from reconv.ruleset.responses import Responses
from reconv.ruleset.separable import Separable
from reconv.spec import ConvSpec, parse


# -- moments ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", SPECS)
def test_moments_are_those_of_all_patches(text):
    site = make_site(text)
    inputs = [correlated(site.spec, seed) for seed in (0, 1)]
    p = torch.cat([patches_by_hand(site.spec, x) for x in inputs])
    seen, centred = seen_of(site, *inputs), p - p.mean(0)
    assert seen.count == len(p)
    torch.testing.assert_close(seen.mean, p.mean(0))
    torch.testing.assert_close(seen.patches, torch.einsum("sgd,sge->gde", centred, centred), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["ic6oc8k3x3p1", "ic8oc12k3s2g2top1"])
def test_chunks_give_the_same_moments(text, monkeypatch):
    site = make_site(text)
    x, left = correlated(site.spec), run(parse(text), make_site(text).tensors, correlated(site.spec, 2))
    whole, parts = Responses(site.spec), Responses(site.spec)
    whole.add(x, left)
    monkeypatch.setattr(responses, "CHUNK", 1000)
    for some, short in zip(x.split(1), left.split(1), strict=True):
        parts.add(some, short)
    for name in ("mean", "mean_left", "patches", "left", "energy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert parts.count == whole.count


def test_few_positions_are_drawn_the_same_ones_each_time():
    site = make_site("ic6oc8k3x3p1")
    one, other, all_of_them = (Responses(site.spec) for _ in range(3))
    for seen, most in ((one, 50), (other, 50), (all_of_them, 10**6)):
        seen.add(correlated(site.spec), most=most)
    assert (one.count, all_of_them.count) == (50, 3 * 9 * 11)
    assert torch.equal(one.patches, other.patches)


@pytest.mark.parametrize("text", ["ic6oc8k3x3p1", "ic8oc12k5g2nb"])
def test_long_patches_keep_channels_and_taps_apart(text, monkeypatch):
    """Their moment is the product of both, of the same trace; solving takes it back."""
    monkeypatch.setattr(responses, "LONGEST", 1)
    site = make_site(text)
    p = patches_by_hand(site.spec, correlated(site.spec))
    seen = seen_of(site, correlated(site.spec))
    g, o = site.spec.groups, site.spec.out_channels // site.spec.groups
    c = (p - p.mean(0)).reshape(len(p), g, site.spec.in_channels // g, -1)
    channels, taps = torch.einsum("sgik,sgjk->gij", c, c), torch.einsum("sgik,sgil->gkl", c, c)
    torch.testing.assert_close(seen.channels, channels, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen.taps, taps, rtol=1e-9, atol=1e-9)
    goal = metric(site, seen)
    x = randn((g, o, p.shape[-1]), random("x"))
    product = torch.stack([torch.kron(a, b) / a.trace() for a, b in zip(channels, taps, strict=True)])
    if site.bias is None:
        product += len(p) * p.mean(0)[:, :, None] * p.mean(0)[:, None, :]
    torch.testing.assert_close(goal.times(x, ridge=False), x @ product, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(goal.solve(goal.times(x)), x, rtol=1e-6, atol=1e-8)
    assert moments_fit(site.spec, seen)


def moments_fit(spec: ConvSpec, seen: Responses) -> bool:
    kept = [t for t in (seen.patches, seen.channels, seen.taps) if t is not None]
    return sum(t.nbytes for t in kept) <= responses.moment_bytes(spec, torch.float64)


# -- the metric ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", SPECS)
def test_the_nearest_kernel_is_the_one_that_gave_the_responses(text, monkeypatch):
    monkeypatch.setattr(responses, "RIDGE", 1e-12)
    monkeypatch.setattr(responses, "RIDGE_FEW", 0.0)
    site, teacher = make_site(text), make_site(text)
    teacher.tensors["weight"] = randn(site.weight.shape, random("teacher"))
    seen = Responses(site.spec)
    for seed in range(12):
        x = correlated(site.spec, seed) + randn(correlated(site.spec).shape, random(seed))
        seen.add(x, run(site.block, teacher.tensors, x) - run(site.block, site.tensors, x))
    assert relative_error(dense(teacher).flatten(2), metric(site, seen).nearest) <= 1e-5


def test_where_patches_say_nothing_the_trained_kernel_stays():
    site = make_site("ic6oc8k3x3p1")
    x = correlated(site.spec)
    x[:, 4] = 0.0
    seen = Responses(site.spec)
    seen.add(x, randn((3, 8, 9, 11), random("left")))
    nearest = metric(site, seen).nearest.reshape(8, 6, 9)
    torch.testing.assert_close(nearest[:, 4], site.weight.reshape(8, 6, 9)[:, 4])
    assert not torch.allclose(nearest[:, 3], site.weight.reshape(8, 6, 9)[:, 3])


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("norm", [False, True])
def test_the_error_is_that_of_the_responses(text, norm):
    """Of the centred ones where a bias or a batch norm takes the means; outputs as the batch norm scales them."""
    site = make_site(text, norm=norm)
    rule = next(r for r in (Separable(), LowRankPointwise(), *SMALLER) if not r.refuse(site))
    proposal = next(iter(rule.propose(site)))
    x = correlated(site.spec)
    seen = seen_of(site, x)
    scale = 1.0
    if norm:
        seen.outputs = site.norm.scale.square().reshape(site.spec.groups, -1)
        scale = site.norm.scale.reshape(-1, *[1] * site.spec.spatial_dims)
    weights = started(rule, site, proposal, seen)
    exact, near = scale * run(site.block, site.tensors, x), scale * run(proposal.block, weights.tensors, x)
    if site.bias is not None or norm:
        dims = [d for d in range(x.ndim) if d != 1]
        exact, near = (y - y.mean(dims, keepdim=True) for y in (exact, near))
    assert weights.error == pytest.approx(float((exact - near).norm() / exact.norm()), rel=1e-6)


def test_outputs_count_as_their_batch_norms_scale_them():
    """An output that is scaled up is fitted more closely, one that is scaled away less."""
    site, rule = make_site("ic6oc8k1"), LowRankPointwise()
    x, proposal = correlated(site.spec), rule.at(site, 2)
    errors = []
    for first, last in ((10.0, 0.1), (0.1, 10.0)):
        seen = seen_of(site, x)
        seen.outputs = torch.tensor([[first] * 4 + [last] * 4], dtype=torch.float64).square()
        apart = run(proposal.block, started(rule, site, proposal, seen).tensors, x) - run(site.block, site.tensors, x)
        errors.append(float(apart[:, :4].square().sum() / apart[:, 4:].square().sum()))
    assert errors[0] < 0.2 * errors[1]
