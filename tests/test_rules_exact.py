"""Folding what follows a convolution into it: batch norms and ReLUs, also behind other rules."""

import pytest
import torch
from handmade import TEXTS, affine, distance, followed, input_of, make_site, rewritten, run, site_for
from test_rules import CASES, SMALLER

from reconv.layers import build
from reconv.ruleset import rules_named

FOLD, FUSE = rules_named("fold_batch_norm", "fuse_activation")


# -- fold_batch_norm ----------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [
    "ic6oc8k3x3p1nb -> ic8oc6k1x1",
    "ic6oc8k3x3p1 -> permute(8)",
    "permute(6) -> ic6oc8k3x3p1g2nb -> shuffle(4) -> permute(8)",
    "(ic6oc4k3x3p1 | ic6oc2k1x1nb -> permute(2) | ic6oc3k5x5p2)",
    "(ic6oc4k3x3p1nb + ic6oc4k1x1nb)",
    "(ic6oc4k3x3p1nb + ic6oc4k1x1) -> shuffle(2)",
    "ic6oc5k1 -> (ic5oc4k3p1 -> permute(4) | (ic5oc2k1 + ic5oc2k3p1nb)) -> shuffle(3)",
    "ic6oc4k3s2p1g2tnb -> shuffle(2)",
    "(ic6oc6k3x3p1nb -> bn + ic6oc6k1x1nb -> bn + bn)",
    "(ic6oc4k3p1 -> bn | ic6oc2k1nb) -> permute(6)",
    "ic6oc6k1x1 -> relu -> bn",
])  # fmt: skip
def test_batch_norm_folds_into_composites(text):
    site = make_site(text, norm=True)
    (proposal,) = FOLD.propose(site)
    assert proposal.absorbs == ("norm",)
    input = input_of(site.block)
    expected = affine(site.norm, run(site.block, site.tensors, input))
    weights = FOLD.init(site, proposal)
    assert distance(expected, run(proposal.block, weights.tensors, input)) <= 1e-14
    assert weights.error == 0


@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_batch_norm_folds_before_or_after_another_rule(rule):
    site = make_site(TEXTS.get(rule.name, "ic8oc8k3x3p1nb"), norm=True)
    input = input_of(site.block)
    proposal = list(rule.propose(site))[-1]
    weights = rule.init(site, proposal)
    expected = affine(site.norm, run(proposal.block, weights.tensors, input))
    later = site.after(proposal.block, weights.tensors)
    assert distance(expected, rewritten(FOLD, later, *FOLD.propose(later), input)) <= 1e-14

    (fold,) = FOLD.propose(site)
    folded = site.after(fold.block, FOLD.init(site, fold).tensors, fold.absorbs)
    expected = affine(site.norm, run(site.block, site.tensors, input))
    for full in rule.full(folded):
        assert distance(expected, rewritten(rule, folded, full, input)) <= 1e-10


# -- fuse_activation ----------------------------------------------------------------------------------
@pytest.mark.parametrize("text, fused, prefix", [
    *[(text, f"{text} -> relu", "0.") for text in CASES.values()],
    ("ic6oc8k3x3p1nb -> ic8oc6k1x1", "ic6oc8k3x3p1nb -> ic8oc6k1x1 -> relu", ""),
    ("permute(6) -> ic6oc8k3x3p1g2nb -> shuffle(4)", "permute(6) -> ic6oc8k3x3p1g2nb -> shuffle(4) -> relu", ""),
    ("ic6oc8k1 -> relu -> ic8oc8k3p1g8", "ic6oc8k1 -> relu -> ic8oc8k3p1g8 -> relu", ""),
    ("ic6oc8k3x3 -> se(2)", "ic6oc8k3x3 -> se(2) -> relu", ""),
    ("(ic6oc4k3x3p1 | ic6oc2k1x1nb -> permute(2))", "(ic6oc4k3x3p1 | ic6oc2k1x1nb -> permute(2)) -> relu", "0."),
    ("(ic6oc4k3x3p1nb -> relu + ic6oc4k1x1)", "(ic6oc4k3x3p1nb -> relu + ic6oc4k1x1) -> relu", "0."),
])  # fmt: skip
def test_an_activation_is_fused_to_the_bit(text, fused, prefix):
    site = site_for(FUSE, text)
    (proposal,) = FUSE.propose(site)
    assert (str(proposal.block), proposal.absorbs) == (fused, ("relu",))
    weights = FUSE.init(site, proposal)
    assert weights.tensors.keys() == build(proposal.block).state_dict().keys() == {prefix + k for k in site.tensors}
    assert weights.error == 0
    input = input_of(site.block)
    output = run(proposal.block, weights.tensors, input)
    assert torch.equal(output, followed(site, run(site.block, site.tensors, input)))
    assert 0 < int((output == 0).sum()) < output.numel()


@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_a_rule_then_the_batch_norm_then_the_activation(rule):
    """Each edit leaves a site that offers the next; after the last one it offers none."""
    site = site_for(FUSE, TEXTS.get(rule.name, "ic8oc8k3x3p1nb"), norm=True)
    input = input_of(site.block)
    smaller = list(rule.propose(site))[-1]
    tensors = rule.init(site, smaller).tensors
    expected = followed(site, run(smaller.block, tensors, input))
    site = site.after(smaller.block, tensors)
    for exact in (FOLD, FUSE):
        (proposal,) = exact.propose(site)
        site = site.after(proposal.block, exact.init(site, proposal).tensors, proposal.absorbs)
    assert (site.norm, site.activation, site.activation_kind) == (None, None, None)
    assert all(exact.refuse(site) for exact in (FOLD, FUSE))
    assert distance(expected, run(site.block, site.tensors, input)) <= 1e-14
