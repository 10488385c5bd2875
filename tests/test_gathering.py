"""What a network's layers see of data is gathered, and rewritten layers are fitted to what the original gave."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from correlated import seen_of
from handmade import make_site
from torch import nn

import reconv
from reconv.data import Batch, Feed
from reconv.errors import ConvError
from reconv.planning import gathering
from reconv.planning.edits import Fit, apply_edits
from reconv.planning.gathering import Gathered, Lessons, samples_for, served
from reconv.planning.plan import Edit, Plan
from reconv.ruleset import responses
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.responses import Responses
from reconv.ruleset.separable import Separable
from reconv.spec import ConvSpec
from reconv.surgery import clone, find_sites
from reconv.surgery.sites import Norm


class Net(nn.Module):
    """A convolution, then one that runs twice, under two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.one, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = self.one(self.shared(x)).relu()
        return self.last(self.other(self.shared(x)).relu())


def net() -> tuple[Net, list[Batch]]:
    torch.manual_seed(0)
    model = Net().double()
    x = nn.functional.interpolate(torch.randn(64, 3, 5, 5, dtype=torch.float64), size=(9, 9), mode="bilinear")
    model.train()
    for _ in range(30):
        model(x)
    with torch.no_grad():
        model.one.weight.mul_(3.0)
    return model.eval(), [Batch((part,)) for part in x.split(32)]


def test_a_shared_convolution_is_judged_by_all_its_runs(monkeypatch):
    monkeypatch.setattr(responses, "PATCHES", 10**6)
    model, batches = net()
    sites = {site.name: site for site in find_sites(model, batches[0].inputs).sites}
    site = sites["shared"]
    assert [norm.name for norm in site.norms] == ["one", "other"]
    assert [n.name for n in sites["first"].norms] == ["norm"]
    assert sites["last"].norms == ()
    seen = Lessons(model, batches).responses(clone(model), site, [])
    inputs = []
    with torch.no_grad():
        for batch in batches:
            x = model.norm(model.first(batch.inputs[0])).relu()
            inputs += [x, model.one(model.shared(x)).relu()]
    by_hand = seen_of(site, *inputs)
    assert seen.count == by_hand.count == 64 * 81 * 2
    torch.testing.assert_close(seen.patches, by_hand.patches, rtol=1e-9, atol=1e-9)
    scales = [norm.weight.detach().square() / (norm.running_var + norm.eps) for norm in (model.one, model.other)]
    torch.testing.assert_close(seen.outputs, sum(scales)[None])
    known = Gathered(model, batches, list(sites.values()))
    torch.testing.assert_close(known.of(site).patches, by_hand.patches, rtol=1e-9, atol=1e-9)


def test_moments_are_kept_as_far_as_there_is_room(monkeypatch):
    model, batches = net()
    sites = list(find_sites(model, batches[0].inputs).sites)
    monkeypatch.setattr(gathering, "ROOM", responses.moment_bytes(sites[1].spec, torch.float64))
    known = Gathered(model, batches, sites)
    whole = [known.of(site).patches for site in sites]
    assert "first" not in known.kept
    for site, moment in zip(sites, whole, strict=True):
        torch.testing.assert_close(Gathered(model, batches, [site]).of(site).patches, moment)


def test_later_layers_are_fitted_to_what_the_original_gave(monkeypatch):
    """With the first layer rewritten, the second's inputs are the student's and its responses the teacher's."""
    monkeypatch.setattr(responses, "PATCHES", 10**6)
    model, batches = net()
    sites = {site.name: site for site in find_sites(model, batches[0].inputs).sites}
    rule = Separable()
    edits = [Edit(name, rule.name, next(iter(rule.propose(sites[name]))).block) for name in ("first", "shared")]
    lessons = Lessons(model, batches)
    student, now = apply_edits(clone(model), sites, edits[:1], Fit(lessons=lessons))
    seen = lessons.responses(student, sites["shared"], [now["first"]])
    inputs, lefts = [], []
    met, then = [], []
    with torch.no_grad():
        for batch in batches:
            x, t = batch.inputs[0], model.norm(model.first(batch.inputs[0])).relu()
            met.append(student.first(x))
            then.append(model.first(x))
            norm = deepcopy(model.norm)  # follows by what was seen until then
            found = [torch.cat(ys) for ys in (met, then)]
            (m, v), (m0, v0) = ((y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) for y in found)
            ratio = (v + norm.eps) / (v0 + norm.eps)
            norm.running_var.copy_((norm.running_var + norm.eps) * ratio - norm.eps)
            norm.running_mean.copy_(m + (norm.running_mean - m0) * ratio.sqrt())
            x = norm(met[-1]).relu()
            for norm in ("one", "other"):
                y = student.shared(x)
                lefts.append(model.shared(t) - y)
                inputs.append(x)
                x, t = getattr(student, norm)(y).relu(), getattr(model, norm)(model.shared(t)).relu()
    by_hand = Responses(sites["shared"].spec)
    for x, left in zip(inputs, lefts, strict=True):
        by_hand.add(x, left)
    for name in ("mean", "mean_left", "patches", "left", "energy"):
        torch.testing.assert_close(getattr(seen, name), getattr(by_hand, name), rtol=1e-7, atol=1e-7)
    assert float(seen.energy.sum()) > 0
    assert not any(m.training for m in clone(model).modules())


def test_apply_fits_on_data_and_comes_nearer():
    model, batches = net()
    data = torch.cat([batch.inputs[0] for batch in batches])
    sites = {site.name: site for site in find_sites(model, data[:1]).sites}
    edits = tuple(Edit(name, "bottleneck", list(Bottleneck().propose(sites[name]))[-2].block)
                  for name in ("first", "shared"))  # fmt: skip
    given = Plan(edits)
    with torch.no_grad():
        exact = model(data)
        plain = reconv.apply(model, given, data[:1])
        fitted = reconv.apply(model, given, data[:1], data)
        from reconv.surgery.norms import reestimate

        reestimate(plain, batches)
        assert float((fitted(data) - exact).norm()) < 0.97 * float((plain.eval()(data) - exact).norm())


def test_plans_say_what_was_fitted(tmp_path):
    model, batches = net()
    x, data = batches[0].inputs[0][:1].float(), batches[0].inputs[0].float()
    model = model.float()
    one = reconv.plan(model, x, "macs=0.6", rules="separable", sites="shared")
    other = reconv.plan(model, x, "macs=0.6", data=data, rules="separable", sites="shared")
    assert (one.fit, other.fit) == ("weights", "responses")
    other.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").fit == "responses"
    old = other.to_dict()
    del old["fit"]
    assert Plan.from_dict(old).fit == "weights"
    with pytest.raises(ConvError, match="fit must be one of weights, responses"):
        Plan.from_dict(old | {"fit": "luck"})


def test_samples_are_as_many_as_a_pass_allows(monkeypatch):
    model, batches = net()
    sites = {site.name: site for site in find_sites(model, batches[0].inputs).sites}
    feed = Feed.of(torch.zeros(700, 3, 9, 9, dtype=torch.float64), batches[0].inputs)
    assert sum(map(len, samples_for(feed, sites, 0))) == gathering.MOST
    monkeypatch.setattr(gathering, "PASS_MACS", 1.0)
    assert sum(map(len, samples_for(feed, sites, 0))) == gathering.LEAST


def test_what_cannot_be_served_has_no_responses():
    site = make_site("ic6oc8k3x3p1")
    assert served(site)
    assert not served(replace(site, refusal="its parameters are tied"))
    assert not served(make_site("ic6oc8k3x3p1 -> relu"))
    assert not served(replace(site, block=ConvSpec.parse("ic8192oc8k3x3p1")))
    assert not served(replace(site, tensors={"weight": torch.empty(8, 6, 3, 3, device="meta")}))


def test_outputs_count_as_the_norms_behind_them_scale_them():
    norms = [Norm("m", torch.arange(8.0), torch.zeros(8)), Norm("n", torch.ones(8), torch.zeros(8))]
    site = replace(make_site("ic6oc8k3x3p1g2"), norm=norms[0], norms=())
    assert gathering._empty(site).outputs.tolist() == [[0, 1, 4, 9], [16, 25, 36, 49]]
    assert gathering._empty(replace(site, norms=tuple(norms))).outputs.tolist() == [[1, 2, 5, 10], [17, 26, 37, 50]]
    assert gathering._empty(replace(site, norm=None)).outputs is None


def test_an_absorbed_norm_is_no_longer_behind_the_site():
    norm = Norm("n", torch.ones(8), torch.zeros(8))
    site = make_site("ic6oc8k3x3p1", norm=norm, norms=(norm,))
    site = replace(site, norm=norm)
    assert site.after(site.block, site.tensors).norms == (norm,)
    assert site.after(site.block, site.tensors, ("n",)).norms == ()
