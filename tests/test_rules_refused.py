"""What rules do not serve, and say so: bad sites, proposals of another make, names that are none."""

import pytest
import torch
from handmade import TEXTS, make_site, randn, random, site_for
from messages import told

from reconv.errors import ConvError
from reconv.layers import build
from reconv.ruleset import RULES, Proposal, rules_named
from reconv.ruleset.offers import bad_tensors
from reconv.ruleset.separable import Separable
from reconv.spec import parse
from reconv.surgery.sites import Norm, Site

SMALLER = tuple(rule for rule in rules_named("smaller") if rule.name != "prune_channels")  # it needs a network
EXACT = rules_named("exact")
FOLD, FUSE, KERNEL = rules_named("fold_batch_norm", "fuse_activation", "kernel")


def spoiled(name: str, value: float) -> Site:
    site = make_site("ic4oc6k3x3", norm=True)
    site.tensors[name][-1] = value
    return site


def without_values() -> Site:
    block = parse("ic4oc6k3x3")
    return Site("conv", block, build(block, "meta").state_dict(), norm=Norm("norm", torch.ones(6), torch.ones(6)))


REASONS = {
    "it is TorchScript": lambda: make_site("ic4oc6k3x3", norm=True, refusal="it is TorchScript"),
    "its weight holds NaN or Inf": lambda: spoiled("weight", float("nan")),
    "its bias holds NaN or Inf": lambda: spoiled("bias", float("inf")),
    "its weight is complex64, not a real floating dtype": lambda: make_site("ic4oc6k3x3", torch.complex64, norm=True),
    "its weight is on the meta device, it has no values": without_values,
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_bad_sites_are_refused(rule, reason):
    site = REASONS[reason]()
    assert rule.refuse(site) == reason
    with pytest.raises(ConvError, match="the rule must be able to serve the site") as caught:
        rule.init(site, Proposal(rule.name, site.block))
    told(caught.value)


@pytest.mark.parametrize("value, reason", [(float("nan"), "its weight holds NaN or Inf"), (1.0, None)])
def test_a_number_that_stands_for_many_is_seen(value, reason):
    site = make_site("ic4oc6k3x3")
    site.tensors["weight"] = torch.tensor([[value]]).reshape(1, 1, 1, 1).expand(6, 4, 3, 3)
    assert bad_tensors(site) == reason


@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.name)
def test_composites_are_refused_by_the_smaller_rules(rule):
    assert rule.refuse(make_site("ic4oc6k3x3 -> permute(6)")) == "already rewritten: ic4oc6k3x3 -> permute(6)"


@pytest.mark.parametrize("site, reason", [
    (make_site("ic4oc6k3x3"), "no batch norm follows"),
    (make_site("ic4oc6k3x3", norm_refusal="its output is used twice"), "its output is used twice"),
    (make_site("ic4oc6k3 -> relu", norm=True), "what gives its output cannot be scaled: ic4oc6k3 -> relu"),
    (make_site("ic4oc6k3 -> se(2)", norm=True), "what gives its output cannot be scaled: ic4oc6k3 -> se(2)"),
    (make_site("ic4oc6k3x3", norm=True).after(parse("ic4oc6k3x3"), {}, ("norm",)), "its batch norm is folded already"),
])  # fmt: skip
def test_fold_batch_norm_says_why_not(site, reason):
    assert FOLD.refuse(site) == reason


@pytest.fixture(autouse=True)
def every_kernel_gains(request, monkeypatch):
    """The rules are tested as where every convolution has a faster kernel, but in the test that says where not."""
    if "kernel_says" not in request.node.name:
        monkeypatch.setattr("reconv.ruleset.kernel._gains", lambda *_: True)


@pytest.mark.parametrize("site, reason", [
    (make_site("ic4oc6k3x3"), "PyTorch's own kernel is the fastest that was measured, or nothing like it was"),
    (site_for(KERNEL, "ic4oc6k3x3", ours=True), "its layer takes the fastest kernel already"),
    (site_for(KERNEL, "ic4oc6k3x3").after(parse("ic4oc6k3x3"), make_site("ic4oc6k3x3").tensors),
     "its layer takes the fastest kernel already"),
    (site_for(KERNEL, "ic4oc6k3x3", refusal="it is tied"), "it is tied"),
    (site_for(KERNEL, "ic4oc6k3x3 -> relu"), "already rewritten: ic4oc6k3x3 -> relu"),
])  # fmt: skip
def test_kernel_says_why_not(site, reason):
    assert KERNEL.refuse(site) == reason


ALONE = "no ReLU alone follows it, or it serves others too"


@pytest.mark.parametrize("site, reason", [
    (make_site("ic4oc6k3x3"), ALONE),
    (make_site("ic4oc6k3x3", norm=True), ALONE),
    (make_site("ic4oc6k3x3", activation="act"), ALONE),
    (site_for(FUSE, "ic4oc6k3x3", norm=True), "its batch norm stands between; fold it first"),
    (site_for(FUSE, "ic4oc6k3x3 -> relu"), "it ends in an activation already: ic4oc6k3x3 -> relu"),
    (site_for(FUSE, "ic4oc6k3x3").after(parse("ic4oc6k3x3"), make_site("ic4oc6k3x3").tensors, ("relu",)), ALONE),
    (site_for(FUSE, "ic4oc6k3x3", refusal="it is tied"), "it is tied"),
])  # fmt: skip
def test_fuse_activation_says_why_not(site, reason):
    assert FUSE.refuse(site) == reason


@pytest.mark.parametrize("block", [
    "ic4oc6k3x3nb", "ic4oc6k3x3 -> se(2)", "ic4oc6k3x3 -> relu", "relu", "permute(4) -> permute(4)",
    "ic4oc2k1x1nb -> ic2oc6k1x1",
    "ic4oc28k3x3g4nb -> ic28oc6k1x1", "ic4oc30k1x1nb -> ic30oc6k3x3g6", "ic4oc20k3x1nb -> ic20oc6k1x3",
    "ic4oc5k1x1nb -> ic5oc6k3x3", "ic4oc7k3x3nb -> ic7oc6k1x1", "ic4oc5k1x1nb -> ic5oc2k3x3nb -> ic2oc6k1x1",
    "ic4oc14k3x3g2nb -> ic14oc6k1x1", "ic4oc9k3x3 -> ic9oc6k5x5", "ic4oc1k3x1 -> ic1oc6k1x3",
    "ic4oc4k3x3p1nb -> ic4oc6k1x1",
    "ic4oc4k3x3g4nb -> ic4oc4k1x1 -> ic4oc6k1x1",
])  # fmt: skip
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_proposal_of_another_make_is_an_error(rule, block):
    site = site_for(rule, TEXTS.get(rule.name, "ic4oc6k3x3p2"))
    with pytest.raises(ConvError, match="the proposal must be one that the rule makes for the site"):
        rule.init(site, Proposal(rule.name, parse(block)))


def test_a_weight_changed_in_place_is_decomposed_anew():
    site, rule = make_site("ic6oc8k3x3p1"), Separable()
    proposal = rule.at(site, "depthwise", 1)
    before = rule.init(site, proposal)
    site.weight.mul_(randn(site.weight.shape, random("other")))
    fresh = make_site("ic6oc8k3x3p1")
    fresh.tensors["weight"] = site.weight.clone()
    assert rule.init(site, proposal).error == rule.init(fresh, proposal).error != before.error


def test_weights_made_in_inference_mode_are_served():
    with torch.inference_mode():
        site = make_site("ic6oc8k3x3p1")
    assert Separable().init(site, *Separable().full(site)[:1]).error <= 1e-12


def test_a_weight_of_zeros_is_kept():
    for rule in SMALLER:
        site = make_site(TEXTS.get(rule.name, "ic4oc8k3x3p1"))
        site.weight.zero_()
        for proposal in rule.propose(site):
            weights = rule.init(site, proposal)
            assert weights.error == 0
            assert all(bool(t.isfinite().all()) for t in weights.tensors.values())


# -- names --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wanted, names", [
    (("exact", "smaller", "stronger", "denser"), [rule.name for rule in RULES]),
    ((("smaller", "exact"),), [rule.name for rule in (*rules_named("smaller"), *EXACT)]),
    (("bottleneck", "smaller"), ["bottleneck", *(r.name for r in rules_named("smaller") if r.name != "bottleneck")]),
    ((FOLD, ["separable", FOLD]), ["fold_batch_norm", "separable"]),
    ((), []),
])  # fmt: skip
def test_rules_are_found_by_name_group_and_object(wanted, names):
    assert [rule.name for rule in rules_named(*wanted)] == names


@pytest.mark.parametrize("wanted, says", [
    ("seperable", "Did you mean separable?"),
    ("fold_batchnorm", "Did you mean fold_batch_norm or "),
    ("xyz", f"There are {', '.join(rule.name for rule in RULES)}; groups denser, exact, smaller, stronger."),
])  # fmt: skip
def test_unknown_names_are_errors_that_offer_the_nearest(wanted, says):
    with pytest.raises(ValueError) as caught:
        rules_named(wanted)
    assert isinstance(caught.value, ConvError)
    assert says in str(caught.value)
    told(caught.value)


def test_an_object_that_is_no_rule_is_an_error():
    with pytest.raises(TypeError, match="each must be a name, a group or a Rule; got rule=3"):
        rules_named("exact", 3)
