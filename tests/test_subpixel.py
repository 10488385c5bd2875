"""`subpixel` on every small transposed convolution, in composites, behind a batch norm, and in a network."""

from itertools import product

import pytest
import torch
from handmade import affine, distance, input_of, make_site, run, site_for
from torch import nn

import reconv
from reconv.layers import block_of, build
from reconv.ops import reference
from reconv.ruleset import rules_named
from reconv.spec import ConvSpec, parse, receptive_field
from reconv.surgery.regions import region
from reconv.targets import Timing

SUBPIXEL, FOLD = rules_named("subpixel", "fold_batch_norm")


def small_ones():
    for k, s, d, lo, hi, more in product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (0, 1, 4), (0, 2), (0, 1)):
        if more < max(s, d):
            yield ConvSpec(in_channels=2, out_channels=2, kernel_size=(k,), stride=s, dilation=d, padding=((lo, hi),),
                           output_padding=more, transposed=True, bias=False)  # fmt: skip


def test_every_small_one_is_exact():
    """Each kernel, stride, dilation, padding and output padding that fits the map."""
    checked = 0
    for spec in small_ones():
        site, input = make_site(spec), input_of(spec)[..., :5]
        if (input.shape[-1] - 1) * spec.stride[0] + spec.dilation[0] * (spec.kernel_size[0] - 1) < sum(spec.padding[0]):
            continue
        if SUBPIXEL.refuse(site):
            assert spec.stride[0] > spec.kernel_size[0]
            continue
        (proposal,) = SUBPIXEL.propose(site)
        expected = run(spec, site.tensors, input)
        output = run(proposal.block, SUBPIXEL.init(site, proposal).tensors, input)
        assert output.shape == expected.shape, spec
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        checked += 1
    assert checked > 300


FORMS = {  # the fewest taps; with as few, the least that is cut off
    "ic6oc4k2x2s2t": "ic6oc16k1x1 -> pixel_shuffle(2x2)",
    "ic6oc4k4x4s2p1t": "ic6oc16k2x2p1 -> pixel_shuffle(2x2, crop1)",
    "ic6oc4k3x3s2p1top1": "ic6oc16k2x2p0:1 -> pixel_shuffle(2x2)",
    "ic6oc4k3s1p1tnb": "ic6oc4k3p1nb",
    "ic6oc4k3x4s1x2p1g2t": "ic6oc8k3x2p1g2 -> pixel_shuffle(1x2, crop0x1)",
    "ic6oc8k1 -> relu -> ic8oc4k2s2t -> relu": "ic6oc8k1 -> relu -> ic8oc8k1 -> pixel_shuffle(2) -> relu",
    "(ic6oc4k2s2tnb -> ic4oc3k1 | ic6oc2k2s2t)":
        "(ic6oc8k1nb -> pixel_shuffle(2) -> ic4oc3k1 | ic6oc4k1 -> pixel_shuffle(2))",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_form(text):
    site = make_site(text)
    (proposal,) = SUBPIXEL.propose(site)
    assert str(proposal.block) == FORMS[text]
    input = input_of(site.block)
    weights = SUBPIXEL.init(site, proposal)
    assert weights.tensors.keys() == build(proposal.block).state_dict().keys()
    assert distance(run(site.block, site.tensors, input), run(proposal.block, weights.tensors, input)) <= 1e-14


@pytest.mark.parametrize("text, reason", [
    ("ic4oc4k3x3", "it is not transposed"),
    ("ic4oc4k1x1s3t", "its strides are wide for its kernel: 9 times the multiply-accumulates, most by zeros"),
    ("ic4oc4k1s1000000t", "its strides are wide for its kernel: 1e+06 times the multiply-accumulates, most by zeros"),
])  # fmt: skip
def test_says_why_not(text, reason):
    assert SUBPIXEL.refuse(make_site(text, calls=()) if "000" not in text else meta_free(text)) == reason


def meta_free(text):
    """A site of a convolution whose output would be too large to run."""
    site = make_site("ic4oc4k1")
    return site.after(parse(text), site.tensors)


def test_a_batch_norm_behind_a_pixel_shuffle_is_folded():
    site = make_site("ic6oc8k3x3p1 -> pixel_shuffle(2x2, crop0:1)", norm=True)
    (proposal,) = FOLD.propose(site)
    input = input_of(site.block)
    output = run(proposal.block, FOLD.init(site, proposal).tensors, input)
    assert distance(affine(site.norm, run(site.block, site.tensors, input)), output) <= 1e-14


def test_receptive_field_of_a_pixel_shuffle():
    assert receptive_field(parse("ic4oc8k1 -> pixel_shuffle(2) -> ic4oc4k3p1")) == (2,)
    assert receptive_field(parse("pixel_shuffle(2x3)")) == (1, 1)
    assert receptive_field(parse("ic4oc8k3p1 -> pixel_shuffle(2) -> ic4oc4k3p1 -> ic4oc4k3")) == (5,)


def test_torchs_own_pixel_shuffle_is_a_block():
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    assert str(block_of(nn.PixelShuffle(2))) == "pixel_shuffle(2x2)"
    assert torch.equal(torch.from_numpy(reference.run(parse("pixel_shuffle(2x2)"), {}, x)), nn.PixelShuffle(2)(x))
    found = region(nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.ReLU()))
    assert str(found.block) == "ic3oc8k3x3 -> pixel_shuffle(2x2) -> relu"


def test_site_for_is_transposed():
    assert SUBPIXEL.refuse(site_for(SUBPIXEL, "ic6oc8k3x3s2t")) is None


# -- kept where it measured faster ------------------------------------------------------------------------
class Priced:
    """An engine on which each convolution has a price: 2×2 transposed ones are dear."""

    name = "priced"

    def fingerprint(self):
        return "priced"

    def measure(self, jobs, seconds, burst=1):
        return [Timing(sum(map(self.price, model.modules())) + 0.1, 0.0, 5) for model, _ in jobs]

    @staticmethod
    def price(module):
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            return 10.0 if module.kernel_size == (2, 2) else 1.0
        return 3.0 if isinstance(module, nn.modules.conv._ConvNd) else 0.0


def test_is_kept_at_the_sites_where_it_measured_faster():
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2)).eval()
    x = torch.randn(1, 3, 5, 4)
    plan = reconv.plan(net, x, rules="subpixel", target=Priced())
    assert [(edit.site, str(edit.block)) for edit in plan.edits] == [("2", "ic4oc12k1x1 -> pixel_shuffle(2x2)")]
    assert {(r.site, r.reason) for r in plan.refusals} == {("0", "it measured 3.1 ms there, as it is 1.1 ms")}
    torch.testing.assert_close(reconv.apply(net, plan, x)(x), net(x), rtol=1e-5, atol=1e-5)
    again = reconv.Plan.from_dict(plan.to_dict())
    torch.testing.assert_close(reconv.apply(net, again, x)(x), net(x), rtol=1e-5, atol=1e-5)
