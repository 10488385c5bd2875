"""Fits on real responses: the moments, the metric that they make, the blocks' kernels, and the fit itself."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from handmade import input_of, make_site, randn, random, run
from torch import nn

import reconv
from reconv.data import Batch, Feed
from reconv.errors import ConvError
from reconv.planning import gathering
from reconv.planning.edits import Fit, apply_edits
from reconv.planning.gathering import Gathered, Lessons, samples_for, served
from reconv.planning.plan import Edit, Plan
from reconv.ruleset import RULES, Proposal, refine, responses
from reconv.ruleset.bottleneck import Bottleneck
from reconv.ruleset.canonical import dense, relative_error
from reconv.ruleset.composed import NotLinearError, composed
from reconv.ruleset.low_rank_pointwise import LowRankPointwise
from reconv.ruleset.refine import metric, refined, started
from reconv.ruleset.responses import Responses
from reconv.ruleset.separable import Separable
from reconv.spec import ConvSpec, parse
from reconv.surgery import clone, find_sites
from reconv.surgery.sites import Norm

SPECS = ["ic6oc8k3x3p1", "ic4oc6k7p3nb", "ic8oc12k3s2g2top1", "ic8oc12k5x5p2g4", "ic4oc6k5x5s2p2top1nb",
         "ic3oc4k3x5x3p2x1x2", "ic12oc8k1x1s2p1", "ic4oc6k6x4p3x1:2mcircular", "ic4oc6k5x3s2x1p3x2d2x1mreflect",
         "ic8oc8k3x3p1g8", "ic6oc4k3p2d2mreplicate", "ic4oc6k3x2s3x2p1t", "ic12oc16k1g2nb"]  # fmt: skip
SMALLER = [rule for rule in RULES if rule.group == "smaller"]


def correlated(spec: ConvSpec, seed: int = 0) -> torch.Tensor:
    """Inputs as inside of a network: positive, alike from place to place and from channel to channel."""
    sizes = (9, 11, 7)[: spec.spatial_dims] if spec.spatial_dims > 1 else (40,)
    x = randn((3, spec.in_channels, *sizes), random((spec, seed)))
    x = x + 0.9 * x.roll(1, -1) + 2.0 * x.mean(1, keepdim=True) * torch.linspace(0.2, 2, spec.in_channels).reshape(
        -1, *[1] * spec.spatial_dims)  # fmt: skip
    return x.clamp(min=-0.5)


def seen_of(site, *inputs: torch.Tensor) -> Responses:
    seen = Responses(site.spec)
    for x in inputs:
        seen.add(x)
    return seen


def patches_by_hand(spec: ConvSpec, x: torch.Tensor) -> torch.Tensor:
    """(positions, groups, D): what depthwise kernels of a single one give, tap by tap."""
    channels, taps = spec.in_channels, torch.tensor(spec.kernel_size).prod()
    one = spec.replace(out_channels=channels, groups=channels, bias=False)
    found = []
    for tap in range(int(taps)):
        weight = torch.zeros(channels, 1, int(taps), dtype=torch.float64)
        weight[:, :, tap] = 1.0
        y = run(one, {"weight": weight.reshape(one.weight_shape)}, x)
        found.append(y.movedim(1, -1).flatten(0, -2))
    return torch.stack(found, -1).reshape(len(found[0]), spec.groups, -1)


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


# -- networks -----------------------------------------------------------------------------------------
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


def test_an_absorbed_norm_is_no_longer_behind_the_site():
    norm = Norm("n", torch.ones(8), torch.zeros(8))
    site = make_site("ic6oc8k3x3p1", norm=norm, norms=(norm,))
    site = replace(site, norm=norm)
    assert site.after(site.block, site.tensors).norms == (norm,)
    assert site.after(site.block, site.tensors, ("n",)).norms == ()


def test_proposals_are_what_rules_are_asked_with():
    site = make_site("ic6oc8k3x3p1")
    with pytest.raises(ConvError, match="the proposal must be one that the rule makes"):
        started(Separable(), site, Proposal("separable", site.block), seen_of(site, correlated(site.spec)))
