"""Rules that add capacity: the same function at first, every new part learns; and what folds them back."""

import pytest
import torch
from handmade import _call, distance, input_of, make_site, randn, random, run
from test_rules import CASES

from reconv.errors import ConvError
from reconv.layers import block_of, build
from reconv.ruleset import rules_named
from reconv.spec import ConvSpec, convs, macs, parse
from reconv.surgery.sites import Site

STRONGER = rules_named("stronger")
EXPAND, FOLD, TRIM, WIDEN = rules_named("expand_branches", "fold_branches", "trim", "widen_kernel")
BY_NAME = pytest.mark.parametrize("rule", STRONGER, ids=lambda rule: rule.name)


# -- the same function, and more to learn ----------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
@BY_NAME
def test_the_same_function_right_after_insertion(rule, case):
    site = make_site(CASES[case], torch.float32)
    if rule.refuse(site):
        assert rule.name == "deform"
        return
    input = input_of(site.block, torch.float32)
    expected = run(site.block, site.tensors, input)
    for proposal in rule.full(site):
        weights = rule.init(site, proposal)
        again = rule.init(site, proposal)
        assert all(torch.equal(t, again.tensors[name]) for name, t in weights.tensors.items())
        assert distance(expected, run(proposal.block, weights.tensors, input)) <= 1e-6, proposal.block
        assert parse(str(proposal.block)) == proposal.block == block_of(build(proposal.block))
        before = macs(site.block, input.shape)
        assert macs(proposal.block, input.shape) >= before


@pytest.mark.parametrize("case", CASES)
@BY_NAME
def test_every_parameter_learns_in_the_first_two_steps(rule, case):
    site = make_site(CASES[case])
    if rule.refuse(site):
        return
    for proposal in rule.full(site):
        layer = build(proposal.block, dtype=torch.float64)
        layer.load_state_dict(rule.init(site, proposal).tensors)
        still = {name for name, _ in layer.named_parameters()}
        step = torch.optim.SGD(layer.parameters(), lr=1e-3)
        for seed in range(2):
            output = layer(randn(input_of(site.block).shape, random(seed)))
            loss = (output - randn(output.shape, random((seed, "target")))).square().mean()
            step.zero_grad()
            loss.backward()
            assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
            still -= {name for name, p in layer.named_parameters() if p.grad.abs().max() > 1e-12}
            step.step()
        assert not still, proposal.block


def test_each_tap_around_a_kernel_learns():
    site = make_site("ic4oc6k3x3p1")
    for proposal in WIDEN.full(site):
        layer = build(proposal.block, dtype=torch.float64)
        layer.load_state_dict(WIDEN.init(site, proposal).tensors)
        assert int((layer.weight == 0).sum()) == layer.weight.numel() - site.weight.numel()
        layer(input_of(site.block)).square().sum().backward()
        assert bool((layer.weight.grad != 0).all())


@pytest.mark.parametrize("channels, reductions", [(3, [1]), (6, [1]), (16, [4]), (32, [8, 4]), (64, [16, 8, 4]),
                                                  (100, [16, 8, 4])])  # fmt: skip
def test_a_gate_squeezes_to_four_channels_or_more(channels, reductions):
    (rule,) = rules_named("squeeze_excite")
    blocks = [proposal.block for proposal in rule.full(make_site(f"ic3oc{channels}k1"))]
    assert [block.blocks[1].reduction for block in blocks] == reductions


@pytest.mark.parametrize("name, text, length, offered", [
    ("widen_kernel", "ic2oc3k3p1mreflect", 4, ["ic2oc3k5p2mreflect", "ic2oc3k7p3mreflect"]),
    ("widen_kernel", "ic2oc3k3p1mreflect", 3, ["ic2oc3k5p2mreflect"]),
    ("widen_kernel", "ic2oc3k3p1mreflect", 2, "its maps are too small for more reflect padding"),
    ("widen_kernel", "ic2oc3k3p1mcircular", 3, ["ic2oc3k5p2mcircular", "ic2oc3k7p3mcircular"]),
    ("widen_kernel", "ic2oc3k3p1mcircular", 2, ["ic2oc3k5p2mcircular"]),
    ("widen_kernel", "ic2oc3k3p1mreplicate", 1, ["ic2oc3k5p2mreplicate", "ic2oc3k7p3mreplicate"]),
    ("widen_kernel", "ic2oc3k3p1", 1, ["ic2oc3k5p2", "ic2oc3k7p3"]),
    ("dilate_branch", "ic2oc3k3p1mreflect", 3, ["(ic2oc3k3p1mreflect + ic2oc3k3p2d2nbmreflect)"]),
    ("dilate_branch", "ic2oc3k3p1mcircular", 1, "its maps are too small for more circular padding"),
    ("multi_size", "ic2oc3k3p1mreflect", 2, ["(ic2oc3k3p1mreflect + ic2oc4k1 -> relu -> ic4oc3k3p1nbmreflect)"]),
])  # fmt: skip
def test_padding_is_never_wider_than_the_map(name, text, length, offered):
    (rule,) = rules_named(name)
    spec = ConvSpec.parse(text)
    call = _call(spec, torch.float64)
    call = type(call)(**{**vars(call), "input_shape": (2, spec.in_channels, length)})
    site = make_site(spec, calls=(call,))
    assert (rule.refuse(site) or [str(p.block) for p in rule.full(site)]) == offered
    for proposal in [] if rule.refuse(site) else rule.full(site):
        input = randn(call.input_shape, random("input"))
        expected = run(spec, site.tensors, input)
        assert distance(expected, run(proposal.block, rule.init(site, proposal).tensors, input)) <= 1e-12


def test_a_kernel_of_zeros_is_served():
    site = make_site("ic4oc4k3x3p1")
    site.weight.zero_()
    for rule in STRONGER:
        for proposal in rule.full(site):
            weights = rule.init(site, proposal)
            output = run(proposal.block, weights.tensors, input_of(site.block))
            assert float((output - run(site.block, site.tensors, input_of(site.block))).abs().max()) <= 1e-12


# -- expand_branches and back ------------------------------------------------------------------------------
FORMS = {
    "ic8oc8k3x3p1g2": ["ic8oc8k3x3p1g2nb -> bn + ic8oc8k1x1g2nb -> bn + bn",
                       "ic8oc8k3x3p1g2nb -> bn + ic8oc8k3x1p1x0g2nb -> bn + ic8oc8k1x3p0x1g2nb -> bn",
                       "ic8oc8k3x3p1g2nb -> bn + ic8oc8k1x1g2nb -> bn + ic8oc8k1x1g2nb -> ic8oc8k3x3p1g2nb -> bn + "
                       "ic8oc8k1x1g2nb -> ic8oc8k3x3p1g8nb -> bn"],
    "ic8oc8k3x3s2p1": ["ic8oc8k3x3s2p1nb -> bn + ic8oc8k1x1s2nb -> bn"],
    "ic4oc4k3x3": ["ic4oc4k3x3nb -> bn + ic4oc4k3x3nb -> bn"],  # no padding: nothing smaller gives this map
    "ic4oc4k1": ["ic4oc4k1nb -> bn + ic4oc4k1nb -> bn + bn"],
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_the_forms_of_expand_branches(text):
    blocks = [str(proposal.block) for proposal in EXPAND.full(make_site(text))]
    assert blocks[: len(FORMS[text])] == [f"({form})" for form in FORMS[text]]


def trained(site: Site, block: object, dtype: torch.dtype) -> Site:
    """The site with a block in its place, all weights and statistics of which have changed."""
    return Site("conv", block, make_site(block, dtype).tensors)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_what_was_expanded_folds_back_after_any_training(case, dtype, tolerance):
    site = make_site(CASES[case], dtype)
    for expanded in EXPAND.full(site):
        later = trained(site, expanded.block, dtype)
        (proposal,) = FOLD.full(later)
        assert proposal.block == site.spec.replace(bias=True)
        weights = FOLD.init(later, proposal)
        input = input_of(site.block, dtype)
        expected = run(expanded.block, later.tensors, input)
        assert distance(expected, run(proposal.block, weights.tensors, input)) <= tolerance, expanded.block


def test_right_after_the_expansion_the_fold_gives_the_trained_weight():
    for text in ("ic8oc8k3x3p1", "ic6oc4k3x3s2x1p1x0g2nb", "ic4oc4k3x2s2t"):
        site = make_site(text)
        for expanded in EXPAND.full(site):
            now = site.after(expanded.block, EXPAND.init(site, expanded).tensors)
            (proposal,) = FOLD.full(now)
            weights = FOLD.init(now, proposal)
            assert distance(site.weight, weights.tensors["weight"]) <= 1e-14
            assert float((weights.tensors["bias"] - (0 if site.bias is None else site.bias)).abs().max()) <= 1e-14


# -- fold_branches -----------------------------------------------------------------------------------------
FOLDED = {
    "(ic6oc4k3x3p1 + ic6oc4k1x1nb)": "ic6oc4k3x3p1",
    "(ic6oc4k3x3p1 | ic6oc2k3x3p1nb | ic6oc3k3x3p1)": "ic6oc9k3x3p1",
    "(ic6oc6k3x3p1g6nb + bn)": "ic6oc6k3x3p1g6",
    "(ic6oc6k3x3p1g6nb + ic6oc6k3x3p1g3)": "ic6oc6k3x3p1g3",
    "(ic4oc4k3p1 + ic4oc4k3p2d2nb)": "ic4oc4k5p2",
    "(ic4oc4k3p2d2 + ic4oc4k3p4d4nb)": "ic4oc4k5p4d2",
    "(ic4oc4k2p0:1 + ic4oc4k2p1:0)": "ic4oc4k3p1",
    "(ic4oc4k3x3p1mreflect + ic4oc4k1x1nb)": "ic4oc4k3x3p1mreflect",
    "(ic4oc4k4s2p1t + ic4oc4k2s2tnb)": "ic4oc4k4s2p1t",
    "(ic4oc4k3s2p1top1 + ic4oc4k2s2tnb)": "ic4oc4k3s2p1top1",
    "ic4oc6k3x3p1 -> bn": "ic4oc6k3x3p1",
    "bn -> ic4oc6k3x3": "ic4oc6k3x3",
    "bn -> ic4oc6k3x3p1mcircular": "ic4oc6k3x3p1mcircular",
    "ic4oc6k3x3p1nb -> ic6oc6k1x1 -> bn": "ic4oc6k3x3p1",
    "ic4oc6k1x1nb -> ic6oc6k3x3p1": "ic4oc6k3x3p1",
    "ic4oc8k1x1 -> ic8oc6k3x3s2": "ic4oc6k3x3s2",
    "ic4oc6k1x1s2 -> ic6oc6k3x3": "ic4oc6k3x3s2d2",
    "ic4oc8k2s2 -> ic8oc6k2": "ic4oc6k4s2",
    "ic4oc12k3x1p1x0nb -> ic12oc4k1x3p0x1": "ic4oc4k3x3p1",
    "ic2oc8k3s2tnb -> ic8oc6k1": "ic2oc6k3s2t",
    "ic2oc8k1nb -> ic8oc6k3s2p1top1": "ic2oc6k3s2p1top1",
    "ic4oc6k3s2tnb -> ic6oc6k3s2t": "ic4oc6k7s4t",
    "ic2oc8k3s2top1nb -> ic8oc4k2p1t": "ic2oc4k4s2p1top1",
    "ic2oc8k3s2p1tnb -> ic8oc4k1s2t": "ic2oc4k3s4p2d2t",
    "ic2oc8k3s2p0:1tnb -> ic8oc4k2s2p0:1t": "ic2oc4k6s4p0:3t",
    "ic2oc8k3s3p1tnb -> ic8oc4k2p2:3d2top1": "ic2oc4k5s3p3t",
    "(ic4oc6k3x3p1 + ic4oc6k1x1) -> relu": "ic4oc6k3x3p1 -> relu",
    "ic4oc6k3x3p1 -> bn -> relu": "ic4oc6k3x3p1 -> relu",
}


@pytest.mark.parametrize("text", FOLDED)
def test_linear_blocks_fold(text):
    block = parse(text)
    site = make_site(block)
    (proposal,) = FOLD.full(site)
    assert str(proposal.block) == FOLDED[text]
    weights = FOLD.init(site, proposal)
    assert weights.tensors.keys() == build(proposal.block).state_dict().keys()
    first = next(convs(block))
    for length in (9, 10, 12):  # the sizes agree whatever the stride leaves over
        input = randn((2, first.in_channels, *[length] * first.spatial_dims), random(text))
        expected = run(block, site.tensors, input)
        assert distance(expected, run(proposal.block, weights.tensors, input)) <= 1e-12


CUT_OFF = "two transposed kernels along the same axis, of which the first cuts off what the other needs"


@pytest.mark.parametrize("text, reason", [
    ("ic4oc6k3x3", "it is one convolution already"),
    ("ic4oc6k3x3 -> relu", "it is one convolution already"),
    ("ic4oc6k3x3 -> relu -> ic6oc6k1x1", "it is not linear: relu"),
    ("(ic4oc6k3x3p1 + ic4oc6k1x1 -> se(2))", "it is not linear: se(2)"),
    ("deform(ic4oc6k3x3, og1) -> bn", "it is not linear: deform(ic4oc6k3x3, og1)"),
    ("ic4oc6k3x3 -> shuffle(2)", "it reorders channels: shuffle(2)"),
    ("ic4oc6k1x1 -> ic6oc6k3x3p1", "a bias before the last kernel meets its padding, or the gaps of its stride"),
    ("ic4oc6k1x1nb -> bn -> ic6oc6k3x3p1",
     "a bias before the last kernel meets its padding, or the gaps of its stride"),
    ("bn -> ic4oc6k1x1s2t", "a bias before the last kernel meets its padding, or the gaps of its stride"),
    ("ic4oc6k3x3p1nb -> ic6oc6k3x3p1", "two kernels along the same axis with padding between them"),
    ("ic4oc6k3s2p1:0tnb -> ic6oc6k3t", CUT_OFF),
    ("ic4oc6k3s2p0:1tnb -> ic6oc6k3t", CUT_OFF),
    ("ic4oc6k2d3top2nb -> ic6oc6k2d2t",
     "two transposed kernels along the same axis, with more empty output at the end than one may have"),
    ("ic4oc6k3s2tnb -> ic6oc6k3", "a chain of a transposed and of another convolution"),
    ("(ic4oc6k3x3p1mreflect + ic4oc6k3x3p1)", "its parts pad in several ways: reflect, zeros"),
    ("(ic4oc6k3s2p1 | ic4oc6k1)", "its branches differ in their strides, or only some are transposed"),
    ("(ic4oc6k3p1 + ic4oc6k3p1t)", "its branches differ in their strides, or only some are transposed"),
    ("(ic4oc6k2s2 + ic4oc6k3s2p0:1)", None),
    ("(ic4oc6k2s2 + ic4oc6k1s2)", "its branches give maps of one size for some inputs only"),
    ("ic4oc4k3x1p1x0nb -> ic4oc4k1x3p0x1", "one convolution would cost more than its parts: ic4oc4k3x3p1"),
    ("ic4oc2k1nb -> ic2oc6k1", "one convolution would cost more than its parts: ic4oc6k1"),
])  # fmt: skip
def test_fold_branches_says_why_not(text, reason):
    block = parse(text)
    tensors = build(block, dtype=torch.float64).state_dict()
    assert FOLD.refuse(Site("conv", block, tensors)) == reason


def test_the_form_that_folds_does_not_depend_on_the_weights():
    """A plan times it with weights of zeros."""
    block = parse("(ic4oc6k3x3p1nb -> bn + ic4oc6k1x1nb -> bn)")
    zeros = {name: torch.zeros_like(t) for name, t in make_site(block).tensors.items()}
    (proposal,) = FOLD.full(Site("conv", block, zeros))
    assert str(proposal.block) == "ic4oc6k3x3p1"


# -- trim --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, taps, cut", [  # taps: where the weight is not zero
    ("ic4oc6k5p2", (slice(1, 4),), "ic4oc6k3p1"),
    ("ic4oc6k5p2", (slice(0, 3),), "ic4oc6k3p2:0"),
    ("ic4oc6k5p2", (slice(4, 5),), "ic4oc6k3p0:2"),  # only two taps have padding that goes with them
    ("ic4oc6k5p1", (slice(2, 3),), "ic4oc6k3"),
    ("ic4oc6k5x3s2p2x0", (slice(1, 3), slice(1, 2)), "ic4oc6k2x3s2p1:0x0:0"),
    ("ic4oc6k3x3p4x1d4x1g2mcircular", (slice(1, 2), slice(0, 3)), "ic4oc6k1x3p0x1d4x1g2mcircular"),
    ("ic4oc6k5s2p2top1", (slice(1, 4),), "ic4oc6k3s2p1top1"),
])  # fmt: skip
def test_borders_of_zeros_are_cut(text, taps, cut):
    site = make_site(text)
    kept = torch.zeros_like(site.weight)
    kept[(..., *taps)] = site.weight[(..., *taps)]
    site.tensors["weight"] = kept
    (proposal,) = TRIM.full(site)
    assert str(proposal.block) == str(ConvSpec.parse(cut))
    weights = TRIM.init(site, proposal)
    input = input_of(site.block)
    expected = run(site.block, site.tensors, input)
    assert distance(expected, run(proposal.block, weights.tensors, input)) <= 1e-14
    assert weights.error == 0


def test_trim_takes_back_what_widen_kernel_put_in():
    site = make_site("ic4oc6k3x3s2p1x0d1x2g2")
    for proposal in WIDEN.full(site):
        later = site.after(proposal.block, WIDEN.init(site, proposal).tensors)
        (back,) = TRIM.full(later)
        assert back.block == site.spec
        assert torch.equal(TRIM.init(later, back).tensors["weight"], site.weight)


def bordered(text: str) -> Site:
    site = make_site(text)
    site.weight[:, :, 0] = 0
    return site


@pytest.mark.parametrize("site, reason", [
    (make_site("ic4oc6k3"), "no border of its kernel is zero in all channels"),
    (make_site("ic4oc6k1"), "1×1: its kernel has no border"),
    (bordered("ic4oc6k3"), "its border of zeros has no padding that could go with it"),
    (bordered("ic4oc6k3p1d2"), "its border of zeros has no padding that could go with it"),
    (Site("conv", parse("ic4oc6k3p1"), {"weight": torch.zeros(6, 4, 3), "bias": torch.ones(6)}),
     "its weight is all zeros"),
    (make_site("ic4oc6k3 -> relu"), "already rewritten: ic4oc6k3 -> relu"),
])  # fmt: skip
def test_trim_says_why_not(site, reason):
    assert TRIM.refuse(site) == reason
    with pytest.raises(ConvError):
        TRIM.full(site)
