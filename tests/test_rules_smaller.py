"""The rules that make a convolution smaller, one by one: what each of them finds, keeps and leaves out."""

import pytest
import torch
from handmade import distance, input_of, make_site, randn, random, rewritten, run

from reconv.errors import ConvError
from reconv.layers import build
from reconv.ruleset import Proposal
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.canonical import chained, dense, torch_weight
from reconv.ruleset.combined import Combined
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.multi_dilated import MultiDilated
from reconv.ruleset.remove import Remove
from reconv.ruleset.stacked import Stacked, convolved, full_mid, small_kernels, two_kernels
from reconv.spec import Chain, ConvSpec, macs, parse

KERNELS = ["ic6oc8k5x5p2", "ic4oc6k7p3", "ic5oc4k5x3s2p2x1", "ic4oc4k5x5p2g4", "ic4oc6k5x5s2p2top1",
           "ic3oc4k5x3x5p2x1x2", "ic4oc6k6x4p3x1:2mcircular", "ic4oc6k7x5s2x1p3x2d2x1mreflect",
           "ic6oc4k7g2"]  # fmt: skip


def planted(text: str, *shapes: tuple[int, ...]):
    """A site whose kernel is a composition of random ones of these dense shapes."""
    site = make_site(text)
    weight = convolved(*[randn(shape, random((text, shape))) for shape in shapes])
    site.tensors["weight"] = torch_weight(site.spec, weight)
    return site


# -- stacked ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, sizes, two", [
    ("ic4oc4k5x5", [(3, 3), (3, 3)], [(3, 3), (3, 3)]),
    ("ic4oc4k7x7", [(3, 3)] * 3, [(5, 5), (3, 3)]),
    ("ic4oc4k11", [(3,)] * 5, [(7,), (5,)]),
    ("ic4oc4k7x3", [(3, 3), (3, 1), (3, 1)], [(5, 3), (3, 1)]),
    ("ic4oc4k3x3", [(2, 2), (2, 2)], [(2, 2), (2, 2)]),
    ("ic4oc4k4x1x3", [(3, 1, 3), (2, 1, 1)], [(3, 1, 3), (2, 1, 1)]),
])  # fmt: skip
def test_small_kernels_make_up_the_large_one(text, sizes, two):
    spec = ConvSpec.parse(text)
    assert (list(small_kernels(spec)), list(two_kernels(spec))) == (sizes, two)
    for kernels in (sizes, two):
        assert tuple(1 + sum(k - 1 for k in axis) for axis in zip(*kernels, strict=True)) == spec.kernel_size


@pytest.mark.parametrize("text", KERNELS)
def test_the_stack_is_the_kernel_that_its_error_speaks_of(text):
    """Borders too: what the chain computes is what one convolution with the composed kernel computes."""
    site, rule = make_site(text), Stacked()
    proposals = list(rule.propose(site))
    assert proposals
    for proposal in proposals:
        weights = rule.init(site, proposal)
        parts = []
        for at, spec in enumerate(proposal.block.blocks):
            parts.append(dense(make_site(spec).after(spec, {"weight": weights.tensors[f"{at}.weight"]})))
        composed = torch_weight(site.spec, convolved(*parts))
        input = torch.nn.functional.pad(input_of(site.block), [2, 3] * site.spec.spatial_dims)
        one = run(site.block, {**site.tensors, "weight": composed}, input)
        assert distance(one, run(proposal.block, weights.tensors, input)) <= 1e-12
        assert weights.error == pytest.approx(distance(site.weight, composed))


@pytest.mark.parametrize("text, shapes", [
    ("ic6oc8k5x5p2", ((1, 3, 6, 3, 3), (1, 8, 3, 3, 3))),
    ("ic6oc8k3x3p1", ((1, 4, 6, 2, 2), (1, 8, 4, 2, 2))),
    ("ic4oc4k5x5p2g4", ((4, 1, 1, 3, 3), (4, 1, 1, 3, 3))),
])  # fmt: skip
def test_two_planted_kernels_are_found(text, shapes):
    site = planted(text, *shapes)
    rule = Stacked()
    assert rule.init(site, rule.at(site, two_kernels(site.spec), shapes[0][1])).error <= 5e-3


def test_more_channels_between_are_closer():
    rule = Stacked()
    for text in ("ic6oc8k5x5p2", "ic4oc12k5s2g2t", "ic4oc4k5x5p2g4"):
        site = make_site(text)
        kernels = two_kernels(site.spec)
        full = full_mid(site.spec, kernels)
        errors = [rule.init(site, rule.at(site, kernels, mid)).error for mid in (1, 1 + full // 3, 1 + full // 2, full)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 0.2
        assert errors[-1] <= 1e-10


def test_the_composition_is_chained_where_no_two_extend_along_the_same_axis():
    first, then = randn((2, 3, 4, 3, 1), random(1)), randn((2, 5, 3, 1, 5), random(2))
    torch.testing.assert_close(convolved(first, then), chained(first, then))


def test_parts_of_a_stack_are_of_like_size():
    site, rule = make_site("ic6oc8k7x7p3"), Stacked()
    site.weight.mul_(1e6)
    for proposal in rule.propose(site):
        norms = [float(t.norm()) for name, t in rule.init(site, proposal).tensors.items() if "weight" in name]
        assert max(norms) / min(norms) < 20


# -- multi_dilated ------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [*KERNELS, "ic4oc6k3x3p1", "ic4oc6k7x7s2", "ic4oc6k5x5s3p1top2"])
def test_dilated_branches_hold_the_kernels_own_taps(text):
    """What they compute is the kernel with the taps that are not covered set to zero."""
    site, rule = make_site(text), MultiDilated()
    proposals = list(rule.propose(site))
    assert proposals or text == "ic6oc4k7g2"
    input = torch.nn.functional.pad(input_of(site.block), [2, 3] * site.spec.spatial_dims)
    for proposal in proposals:
        weights = rule.init(site, proposal)
        impulse = torch.zeros(1, site.spec.in_channels, *[25] * site.spec.spatial_dims, dtype=torch.float64)
        impulse[(0, 0, *[12] * site.spec.spatial_dims)] = 1.0
        exact, near = (run(b, t, impulse) for b, t in ((site.block, site.tensors), (proposal.block, weights.tensors)))
        assert exact.shape == near.shape
        bias = site.bias.reshape(1, -1, *[1] * site.spec.spatial_dims)
        kept = (near - bias).abs() > 1e-14
        assert torch.allclose(near[kept], exact[kept], rtol=1e-12, atol=0)
        assert run(proposal.block, weights.tensors, input).shape == run(site.block, site.tensors, input).shape
        assert 0 < weights.error < 1


def test_kernels_made_of_dilated_ones_are_found_exactly():
    site, rule = make_site("ic4oc6k5x5p2"), MultiDilated()
    kept = torch.zeros(5, 5, dtype=torch.float64)
    kept[1:4, 1:4] = 1.0
    kept[::2, ::2] = 1.0
    site.weight.mul_(kept)
    errors = {str(p.block): rule.init(site, p).error for p in rule.propose(site)}
    assert min(errors.values()) == 0
    assert errors["(ic4oc6k3x3p1 + ic4oc6k3x3p2d2nb)"] == 0


# -- low_rank_pointwise -------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["ic12oc8k1x1s2p1", "ic12oc16k1g2", "ic8oc12k1x1x1s2top1"])
def test_the_error_of_two_pointwise_falls_with_rank(text):
    site, rule = make_site(text), LowRankPointwise()
    errors = [rule.init(site, rule.at(site, rank)).error for rank in (1, 3, 5)]
    assert errors == sorted(errors, reverse=True)
    assert rule.init(site, *rule.full(site)).error <= 1e-12
    left, right = (randn(shape, random(shape)) for shape in ((site.spec.groups, 4, 2), (site.spec.groups, 2, 6)))
    if text == "ic12oc16k1g2":
        weight = torch.cat([left, left], 1) @ right
        site.tensors["weight"] = torch_weight(site.spec, weight[..., None])
        assert rule.init(site, rule.at(site, 2)).error <= 1e-12


def test_a_pointwise_is_no_bottleneck():
    assert Bottleneck().refuse(make_site("ic8oc8k1x1")) == "1×1: see low_rank_pointwise"
    assert LowRankPointwise().refuse(make_site("ic8oc8k3x3")) == "it is no 1×1: see bottleneck"
    alone = "one input and one output channel a group: its rank is one already"
    assert LowRankPointwise().refuse(make_site("ic8oc8k1x1g8")) == alone


# -- remove -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, block", [
    ("ic6oc8k3x3p1", "ic6oc8k1x1"),
    ("ic6oc8k5x3s2x1p2x1mreflect", "ic6oc8k1x1s2x1mreflect"),
    ("ic6oc8k4x4p1:2g2nb", "ic6oc8k1x1g2nb"),
    ("ic6oc8k3s2p1d1t", "ic6oc8k1s2t"),
    ("ic6oc8k3s3p1top1", "ic6oc8k1s3top1"),
    ("ic6oc8k3x3x3p3d2", "ic6oc8k1x1x1p1"),
])  # fmt: skip
def test_a_pointwise_gives_the_size_that_the_kernel_gave(text, block):
    site, rule = make_site(text), Remove()
    (proposal,) = rule.propose(site)
    assert str(proposal.block) == block
    for longer in range(4):
        input = torch.nn.functional.pad(input_of(site.block), [0, longer] * site.spec.spatial_dims)
        assert rewritten(rule, site, proposal, input).shape == run(site.block, site.tensors, input).shape


def test_the_sum_of_the_taps_stays_where_it_is_nearer_than_nothing():
    site, rule = make_site("ic4oc6k3x3p1"), Remove()
    site.weight[:3] = site.weight[:3, :, :1, :1].abs() + 0.01 * site.weight[:3]  # all taps alike: blurs
    site.weight[:3, :, 1, 1] += 9 * site.weight[:3, :, 1, 1]
    (proposal,) = rule.propose(site)
    weights = rule.init(site, proposal)
    taps = weights.tensors["weight"][..., 0, 0]
    torch.testing.assert_close(taps[:3], site.weight[:3].sum((-2, -1)))
    torch.testing.assert_close(taps[3:], site.weight[3:, :, 1, 1])
    assert 0 < weights.error < 1


def test_a_kernel_of_one_tap_loses_nothing():
    site, rule = make_site("ic4oc6k5x3s2p2x1"), Remove()
    kept = site.weight[..., 2, 1].clone()
    site.weight.zero_()[..., 2, 1] = kept
    (proposal,) = rule.full(site)
    assert rule.init(site, proposal).error == 0
    input = input_of(site.block)
    assert distance(run(site.block, site.tensors, input), rewritten(rule, site, proposal, input)) <= 1e-14


def test_the_activation_may_go_as_well_where_it_serves_nobody_else():
    rule = Remove()
    kept, gone = rule.propose(make_site("ic4oc6k3x3p1", activation="relu", activation_kind="relu"))
    assert (kept.absorbs, gone.absorbs, kept.block) == ((), ("relu",), gone.block)
    shared = make_site("ic4oc6k3x3p1", activation="shared")
    assert len(list(rule.propose(shared))) == 1
    with pytest.raises(ConvError, match="the proposal must be one that the rule makes for the site"):
        rule.init(shared, Proposal("remove", kept.block, absorbs=("shared",)))


# -- combined -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["ic16oc24k3x3p1", "ic12oc16k3s2g2top1", "ic8oc8k5x5p2g8", "ic8oc8k3x3x3p1"])
def test_pairs_of_rules_are_few_different_and_cheaper(text):
    site, rule = make_site(text), Combined()
    proposals = list(rule.propose(site))
    shape = (1, site.spec.in_channels, *[20] * site.spec.spatial_dims)
    assert 0 < len(proposals) <= 8
    assert all(macs(proposal.block, shape) < macs(site.spec, shape) for proposal in proposals)
    for proposal in proposals:
        weights = rule.init(site, proposal)
        assert weights.tensors.keys() == build(proposal.block).state_dict().keys()
        assert 0 < weights.error < 1


def test_a_planted_pair_is_found():
    """A separable core between two subspaces."""
    shapes = (1, 2, 8, 1, 1), (2, 1, 1, 3, 3), (1, 12, 2, 1, 1)
    front, core, back = (randn(shape, random(shape)) for shape in shapes)
    wide = torch.zeros(1, 2, 2, 3, 3, dtype=torch.float64)
    for channel in range(2):
        wide[0, channel, channel] = core[channel, 0, 0]
    site, rule = make_site("ic8oc12k3x3p1"), Combined()
    site.tensors["weight"] = torch_weight(site.spec, convolved(front, wide, back))
    errors = [rule.init(site, proposal).error for proposal in rule.propose(site)]
    assert min(errors) <= 1e-12


def test_a_pair_of_another_make_is_an_error():
    site = make_site("ic16oc24k3x3p1")
    block = Chain(parse("ic16oc5k1x1nb"), parse("ic5oc5k3x3p1g5nb"), parse("ic5oc24k1x1"))
    with pytest.raises(ConvError, match="the proposal must be one that the rule makes for the site"):
        Combined().init(site, Proposal("combined", block))
