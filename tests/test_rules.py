"""Every rule against the convolution that it rewrites: exact where it says so, or refused with its reason."""

import pytest
import torch
from handmade import TEXTS, distance, followed, input_of, make_site, randn, random, run, site_for

from reconv.errors import ConvError
from reconv.layers import build
from reconv.ruleset import RULES, rules_named
from reconv.ruleset.asymmetric import Asymmetric
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.canonical import dense, torch_weight
from reconv.ruleset.separable import Separable
from reconv.ruleset.shuffled_group import Mixed, Permuted, ShuffledGroup
from reconv.spec import ConvSpec, convs, macs, output_shape
from reconv.surgery.sites import ConvCall, Site

IN_PLACE = tuple(rule for rule in RULES if rule.group != "denser")  # their blocks give as many positions as before
SMALLER = tuple(rule for rule in rules_named("smaller") if rule.name != "prune_channels")  # it needs a network
FOLD, FUSE, KERNEL = rules_named("fold_batch_norm", "fuse_activation", "kernel")

CASES = {
    "1D": "ic6oc8k5p2",
    "2D": "ic6oc8k3x3p1",
    "3D": "ic4oc6k3x2x3p1x0x1",
    "stride (2, 1)": "ic6oc9k3x3s2x1p1",
    "dilation (2, 3)": "ic6oc8k3x3p2x3d2x3",
    "groups": "ic6oc9k3x3p1g3",
    "groups, stride, 1D": "ic8oc4k4s3p1g2",
    "even kernel, 'same'": "ic6oc7k4x2p1:2x0:1",
    "reflect": "ic6oc8k3x5s2x1p1x2mreflect",
    "replicate, uneven": "ic4oc6k3x3p1:2x0:3mreplicate",
    "circular, 3D": "ic4oc4k3x3x2p1x1x0:1mcircular",
    "transposed": "ic6oc4k3x2s2x3p1x0top1x2",
    "transposed, 1D, dilated, uneven": "ic4oc6k3s2p1:2d2g2top1",
    "transposed, 3D, groups": "ic4oc6k2x3x2s2x1x2p0x1x1g2top1x0x1nb",
    "no bias": "ic6oc8k3x3p1nb",
    "depthwise": "ic6oc6k3x5p1x2g6",
    "depthwise, multiplier 3": "ic4oc12k3x3p1g4",
    "depthwise, transposed": "ic4oc4k3x3s2p1g4top1",
    "one input channel": "ic1oc8k3x3",
    "one output channel": "ic8oc1k3x3p1",
    "one axis": "ic6oc8k3x1s2p1x0",
    "two axes of three": "ic4oc6k3x1x2s1x2x1p1x0x0:1",
    "1x1": "ic6oc8k1x1s2x1p1",
    "1x1, groups": "ic6oc4k1x1g2",
    "1x1, transposed": "ic4oc6k1s2p1top1",
}

NO_AXES = "its kernel is wider than 1 along fewer than two axes"
ONE_INPUT = "one input channel a group: there are no finer groups"
NOTHING_TO_REDUCE = "depthwise: each group has one channel, none to reduce"
NOTHING_TO_SEPARATE = "depthwise: it mixes no channels, nothing to separate"
NO_SPATIAL_PART = "1×1: it has no spatial part to separate"
NO_SMALLER = "its kernel has fewer than 3 taps along every axis: no two smaller ones make it"
NONE_BETWEEN = "its kernel has fewer than 3 taps along every axis: none lies between others"
NO_POINTWISE = "it is no 1×1: see bottleneck"
GIVEN = "its channels must stay: they are the network's input"
NO_ROOM = "its padding is less than its kernel: no 1×1 gives its output's size"
SEE_LOW_RANK = "1×1: see low_rank_pointwise"
NOT_TRANSPOSED = "it is not transposed"
POINTWISE = ("1x1", "1x1, groups", "1x1, transposed")

NO_POINTS = "transposed: it spreads each input value, it has no points to sample at"

REFUSED: dict[str, dict[str, str]] = {  # every rule has its row; what it does not name is exact at full rank
    "fold_batch_norm": {},
    "fold_branches": {},
    "merge_linear": {},
    "trim": {},
    "fuse_activation": {},
    "kernel": {},
    "subpixel": {case: NOT_TRANSPOSED for case in CASES if "transposed" not in case},
    "squeeze_excite": {},
    "pointwise_after": {},
    "multi_size": {},
    "expand_branches": {},
    "deform": {
        "transposed": NO_POINTS,
        "transposed, 1D, dilated, uneven": NO_POINTS,
        "transposed, 3D, groups": NO_POINTS,
        "depthwise, transposed": NO_POINTS,
        "1x1, transposed": NO_POINTS,
    },
    "skip": {},
    "dense": {},
    "widen_kernel": {},
    "dilate_branch": {},
    "separable": {
        "depthwise": NOTHING_TO_SEPARATE,
        "depthwise, transposed": NOTHING_TO_SEPARATE,
        "1x1": NO_SPATIAL_PART,
        "1x1, groups": NO_SPATIAL_PART,
        "1x1, transposed": NO_SPATIAL_PART,
    },
    "asymmetric": {
        "1D": "1D: there is one axis only",
        "groups, stride, 1D": "1D: there is one axis only",
        "transposed, 1D, dilated, uneven": "1D: there is one axis only",
        "1x1, transposed": "1D: there is one axis only",
        "one axis": NO_AXES,
        "1x1": NO_AXES,
        "1x1, groups": NO_AXES,
    },
    "bottleneck": {
        "depthwise": NOTHING_TO_REDUCE,
        "depthwise, transposed": NOTHING_TO_REDUCE,
        **dict.fromkeys(POINTWISE, SEE_LOW_RANK),
    },
    "shuffled_group": {
        "depthwise": ONE_INPUT,
        "depthwise, multiplier 3": ONE_INPUT,
        "depthwise, transposed": ONE_INPUT,
        "one input channel": ONE_INPUT,
    },
    "stacked": dict.fromkeys(POINTWISE, NO_SMALLER),
    "multi_dilated": dict.fromkeys(POINTWISE, NONE_BETWEEN),
    "low_rank_pointwise": dict.fromkeys(CASES.keys() - set(POINTWISE), NO_POINTWISE),
    "remove": {  # nothing of it is exact; that it keeps the shape is tested beside its own tests
        **dict.fromkeys(POINTWISE, "1×1: it has no spatial part to remove"),
        "3D": NO_ROOM,
        "groups, stride, 1D": NO_ROOM,
        "one input channel": NO_ROOM,
    },
    "combined": dict.fromkeys(POINTWISE, SEE_LOW_RANK),
    "prune_channels": {  # the network around it is of handmade.py; see also test_channels.py
        "one output channel": "it has one channel that could go: it must stay",
        **dict.fromkeys((c for c in CASES if c.startswith("depthwise")), GIVEN),
    },
}


@pytest.fixture(autouse=True)
def every_kernel_gains(monkeypatch):
    """The rules are tested as where every convolution has a faster kernel."""
    monkeypatch.setattr("reconv.ruleset.kernel._gains", lambda *_: True)


# -- the table ----------------------------------------------------------------------------------------
def test_every_rule_has_a_row_and_every_refusal_names_a_case():
    assert set(REFUSED) == {rule.name for rule in IN_PLACE}
    assert {case for row in REFUSED.values() for case in row} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", IN_PLACE, ids=lambda rule: rule.name)
def test_exact_at_full_rank_or_refused(rule, case):
    site = site_for(rule, CASES[case])
    reason = REFUSED[rule.name].get(case)
    assert rule.refuse(site) == reason
    if reason:
        with pytest.raises(ConvError, match="the rule must be able to serve the site"):
            rule.propose(site)
        return
    input = input_of(site.block)
    expected = followed(site, run(site.block, site.tensors, input))
    for proposal in rule.full(site):
        weights = rule.init(site, proposal)
        output = run(proposal.block, weights.tensors, input)
        assert output.shape == expected.shape
        assert distance(expected, output) <= 1e-10, proposal.block
        assert weights.error <= 1e-10


# -- closeness ----------------------------------------------------------------------------------------
# The response to one-hot inputs holds every weight once, so its relative error is that of the weights.
ONE_HOT = {
    "1D": "ic8oc12k5p4nb",
    "2D, groups": "ic16oc8k3x3p2g2nb",
    "3D": "ic4oc8k2x3x2p1x2x1nb",
    "transposed": "ic8oc8k3x3s2tnb",
    "depthwise, multiplier": "ic4oc16k5x5p4g4nb",
    "1x1": "ic16oc24k1x1nb",
}


@pytest.mark.parametrize("case", ONE_HOT)
@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_error_is_the_distance_of_the_kernels(rule, case):
    site = make_site(ONE_HOT[case])
    if rule.refuse(site):
        assert case in ("1D", "1x1", "depthwise, multiplier") or rule.refuse(site) in (NO_POINTWISE, NO_ROOM)
        return
    channels = site.spec.in_channels
    one_hot = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * site.spec.spatial_dims)
    exact = run(site.block, site.tensors, one_hot)
    assert exact.norm() == pytest.approx(site.weight.norm())
    proposals = list(rule.propose(site))
    assert proposals
    for proposal in proposals:
        weights = rule.init(site, proposal)
        assert weights.error == pytest.approx(distance(exact, run(proposal.block, weights.tensors, one_hot)), rel=1e-9)
        assert 0 < weights.error < 1


LADDERS = {  # proposals of growing rank; the last loses nothing
    "separable, depthwise first": lambda site: [Separable().at(site, "depthwise", t) for t in (1, 2, 5, 8)],
    "separable, pointwise first": lambda site: [Separable().at(site, "pointwise", t) for t in (1, 3, 4, 6)],
    "asymmetric, first axis first": lambda site: [Asymmetric().at(site, (0,), r) for r in (1, 4, 11, 18)],
    "asymmetric, last axis first": lambda site: [Asymmetric().at(site, (1,), r) for r in (2, 5, 9, 18)],
    "bottleneck": lambda site: [Bottleneck().at(site, a, b) for a, b in ((1, 1), (2, 2), (4, 2), (4, 4), (8, 6))],
    "bottleneck, outputs": lambda site: [Bottleneck().at(site, a, None) for a in (1, 3, 8)],
    "bottleneck, inputs": lambda site: [Bottleneck().at(site, None, b) for b in (1, 3, 6)],
    "shuffled_group, mixed": lambda site: [ShuffledGroup().at(site, Mixed(2, m)) for m in (1, 2, 5, 8)],
}


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("text", ["ic6oc8k3x3p1", "ic12oc16k3x3s2g2top1"])
def test_error_falls_with_rank(ladder, text):
    site = make_site(text)
    (rule,) = rules_named(ladder.partition(",")[0])
    errors = [rule.init(site, proposal).error for proposal in LADDERS[ladder](site)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[-1] <= 1e-12


PLANTED = {  # weights that a form can hold at a small rank: found, not merely approached
    "separable, depthwise first":
        ("goc,gcxy->gocxy", ((1, 8, 6), (1, 6, 3, 3)), lambda site: Separable().at(site, "depthwise", 1)),
    "separable, pointwise first":
        ("goc,goxy->gocxy", ((1, 8, 6), (1, 8, 3, 3)), lambda site: Separable().at(site, "pointwise", 1)),
    "asymmetric":
        ("gory,grcx->gocxy", ((1, 8, 2, 3), (1, 2, 6, 3)), lambda site: Asymmetric().at(site, (0,), 2)),
    "bottleneck":
        ("goa,gabxy,gbc->gocxy", ((1, 8, 3), (1, 3, 2, 3, 3), (1, 2, 6)), lambda site: Bottleneck().at(site, 3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_rank_is_found(planted):
    law, shapes, at = PLANTED[planted]
    spec = ConvSpec.parse("ic6oc8k3x3p1")
    weight = torch.einsum(law, *[randn(shape, random((planted, shape))) for shape in shapes])
    site = make_site(spec)
    site.tensors["weight"] = torch_weight(spec, weight)
    (rule,) = rules_named(planted.partition(",")[0])
    assert rule.init(site, at(site)).error <= 1e-12


# -- proposals ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["ic64oc96k3x3p1", "ic3oc32k5x5s2p2", "ic32oc32k7x7p3g32", "ic48oc24k3x3x3p1g3nb",
                                  "ic40oc64k9p4", "ic256oc64k1x1", "ic24oc40k4x4s2p1t", *CASES.values()])  # fmt: skip
@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_proposals_are_few_and_cheaper_from_small_to_large(rule, text):
    spec = ConvSpec.parse(text)
    shape = (1, spec.in_channels, *(13, 15, 9)[: spec.spatial_dims])
    now = macs(spec, shape)
    call = ConvCall(name="conv", kind=spec.kind, spec=spec, input_shape=shape, weight_shape=spec.weight_shape,
                    output_shape=output_shape(spec, shape), dtype=torch.float64, macs=now)  # fmt: skip
    site = make_site(spec, calls=(call,))
    if rule.refuse(site):
        return
    proposals = list(rule.propose(site))
    costs = [macs(proposal.block, shape) for proposal in proposals]
    assert costs == sorted(costs)
    assert all(cost < now for cost in costs)
    assert len({proposal.block for proposal in proposals}) == len(proposals) <= 12
    assert all(proposal.rule == rule.name and not proposal.absorbs for proposal in proposals)
    assert [p.block for p in rule.propose(make_site(spec))] != [] or not proposals  # without a known run, too


@pytest.mark.parametrize("text", ["ic64oc96k3x3p1", "ic12oc24k3x3g3", "ic8oc8k3x3x3", "ic24oc40k4x4s2p1t"])
@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_an_ordinary_convolution_gets_proposals(rule, text):
    site = make_site(text)
    assert rule.refuse(site) in (NO_POINTWISE, NO_ROOM) or list(rule.propose(site))


# -- dtypes -------------------------------------------------------------------------------------------
AS_THEY_ARE = {
    "fuse_activation",
    "kernel",
    "trim",
    "multi_dilated",
    "subpixel",
    "prune_channels",
    "atrous",
}  # they copy values
AS_THEY_ARE |= {rule.name for rule in rules_named("stronger")} - {"expand_branches"}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_dtype_stays_and_the_error_counts_its_rounding(rule, dtype, tolerance):
    site = site_for(rule, TEXTS.get(rule.name, "ic6oc8k3x3p1"), dtype)
    for proposal in [*rule.full(site), *rule.propose(site)]:
        weights = rule.init(site, proposal)
        learned = [t for name, t in weights.tensors.items() if not name.endswith(("index", "num_batches_tracked"))]
        assert {t.dtype for t in learned} == {dtype}
        assert weights.tensors.keys() == build(proposal.block).state_dict().keys()
        if proposal in rule.full(site):
            assert (weights.error == 0) == (rule.name in AS_THEY_ARE)
            assert weights.error <= tolerance


def test_weights_too_large_for_their_dtype_are_an_error():
    site = make_site("ic4oc4k3x3", torch.float16, norm=True)
    site.norm.scale[0] = 1e6
    with pytest.raises(ConvError, match=r"finite in the site's dtype; got site=conv, dtype=torch\.float16"):
        FOLD.init(site, *FOLD.propose(site))


# -- shuffled_group -----------------------------------------------------------------------------------
def planted_groups(text: str, cuts: int, outputs: bool, inputs: bool) -> Site:
    """A site whose weight is block-diagonal once channels are permuted (inside their group), on the sides named."""
    site = make_site(text)
    weight = dense(site)
    g, o, i, *_ = weight.shape
    generator = random((text, cuts))
    kernels = torch.zeros_like(weight)
    for group in range(g):
        out = torch.randperm(o, generator=generator) if outputs else torch.arange(o)
        inn = torch.randperm(i, generator=generator) if inputs else torch.arange(i)
        same = (out // (o // cuts))[:, None] == (inn // (i // cuts))[None, :]
        kernels[group] = torch.where(same.reshape(o, i, *[1] * (weight.ndim - 3)), weight[group], 0.0)
    site.tensors["weight"] = torch_weight(site.spec, kernels)
    return site


@pytest.mark.parametrize("outputs, inputs", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("text, cuts", [("ic12oc8k3x3p1", 4), ("ic15oc25k3", 5), ("ic16oc8k3x3s2g2t", 2),
                                        ("ic32oc64k1x1nb", 8)])  # fmt: skip
def test_planted_permutation_is_found(text, cuts, outputs, inputs):
    site = planted_groups(text, cuts, outputs, inputs)
    rule = ShuffledGroup()
    offered = [proposal for proposal in rule.propose(site) if len(list(convs(proposal.block))) == 1]
    (proposal,) = [p for p in offered if next(convs(p.block)).groups == site.spec.groups * cuts]
    weights = rule.init(site, proposal)
    assert weights.error == 0
    input = input_of(site.block)
    expected = run(site.block, site.tensors, input)
    assert distance(expected, run(proposal.block, weights.tensors, input)) <= 1e-12
    if not outputs and not inputs:
        assert isinstance(proposal.block, ConvSpec)  # no permutation where none is needed


@pytest.mark.parametrize("outputs, inputs", [(True, True), (True, False), (False, True), (False, False)])
def test_each_side_may_be_kept_in_its_order(outputs, inputs):
    """A plan that was saved names the permutations; its form is served with other weights, too."""
    site, rule = make_site("ic12oc8k3x3p1"), ShuffledGroup()
    weights = rule.init(site, rule.at(site, Permuted(2, outputs, inputs)))
    free = rule.init(site, rule.at(site, Permuted(2))).error
    fixed = rule.init(site, rule.at(site, Permuted(2, False, False))).error
    assert free <= weights.error <= fixed
    assert sum(name.endswith("index") for name in weights.tensors) == outputs + inputs
