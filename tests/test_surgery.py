"""Networks are copied and their convolutions swapped, and nothing else of them changes, as their outputs show."""

from __future__ import annotations

import pytest
import torch
from fakes import grid, whole_numbers
from torch import nn
from torch.nn.utils import parametrizations
from wild import (
    CASES,
    IMAGE,
    Pruning,
    Seen,
    conv,
    hooked,
    make,
    norm,
    old_weight_norm,
    pruned,
    shared_convolution,
    state,
)

from reconv.errors import ConvError
from reconv.layers import build
from reconv.planning.edits import current, place
from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.spec import parse
from reconv.surgery import clone, find_sites, fresh, swap, tensors_of
from reconv.surgery.outputs import distance, squared_distance, tensors_in

# copies and swaps --------------------------------------------------------------------------------


@pytest.mark.parametrize("after_a_run", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_copy_computes_the_same_and_shares_nothing(name, after_a_run):
    _, model, x = make(name)
    model.eval()
    if after_a_run:
        model(x.clone())
    copied = clone(model)
    assert distance(copied(x.clone()), model(x.clone())) == 0
    ours = {t.data_ptr() for t in model.state_dict().values()}
    assert not ours & {t.data_ptr() for t in copied.state_dict().values()}


SWAPPABLE = [name for name, case in CASES.items() if not case.refusals]


@pytest.mark.parametrize("name", SWAPPABLE)
def test_a_swapped_convolution_is_run_in_its_place(name):
    """The same convolution again, put in by the surgeon: nothing changes."""
    _, model, x = make(name)
    model.eval()
    student = clone(model)
    for site in find_sites(model, x).sites:
        student = place(student, site.names, site.block, site.tensors)
        assert type(student.get_submodule(site.name)).__module__ == "reconv.layers.conv"
    torch.testing.assert_close(tensors_in(student(x.clone())), tensors_in(model(x.clone())), rtol=1e-5, atol=1e-6)
    assert [s.name for s in find_sites(student, x).sites] == [s.name for s in find_sites(model, x).sites]


@pytest.mark.parametrize("name", [name for name in SWAPPABLE if CASES[name].norms])
def test_a_folded_batch_norm_changes_nothing(name):
    case, model, x = make(name)
    model.eval()
    sites = {s.name: s for s in find_sites(model, x).sites}
    from reconv.ruleset import FoldBatchNorm

    for site in sites.values():
        rule = FoldBatchNorm()
        if site.norm is None:
            assert case.norms[site.name] in rule.refuse(site)
            continue
        (proposal,) = rule.propose(current(model, sites)[site.name])
        student = place(clone(model), site.names, proposal.block, rule.init(site, proposal).tensors, proposal.absorbs)
        torch.testing.assert_close(tensors_in(student(x.clone())), tensors_in(model(x.clone())), rtol=1e-4, atol=1e-5)
        assert isinstance(student.get_submodule(site.norm.name), nn.Identity)


def test_a_swap_keeps_mode_hooks_sharing_and_gradients_per_module():
    seen: list[str] = []
    model = shared_convolution().train()
    model[0].eval()
    model[0].requires_grad_(False)
    model[1].register_forward_hook(lambda m, args, kwargs, out: seen.append("after"), with_kwargs=True)
    model[1].register_forward_pre_hook(lambda m, args, kwargs: seen.append(f"before {len(args)}"), with_kwargs=True)
    model[1].register_full_backward_hook(lambda m, into, out: seen.append("back"))
    x = torch.zeros(*IMAGE)
    student = clone(model)
    for site in find_sites(model, x).sites:
        student = place(student, site.names, site.block, site.tensors)
    assert student[1] is student[3]
    assert [m.training for m in student] == [False, True, True, True]
    assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]
    seen.clear()
    student(x).sum().backward()
    assert seen == ["before 1", "after"] * 2 + ["back"] * 2


def test_hooks_that_compute_the_old_weight_are_dropped_and_others_kept():
    seen: list[str] = []
    for make_it in (lambda: old_weight_norm(conv()), lambda: pruned(lambda m: Pruning.apply(m, "weight"))):
        model = nn.Sequential(hooked(make_it(), lambda *args: seen.append("seen")))
        (site,) = find_sites(model, torch.zeros(*IMAGE)).sites
        student = place(clone(model), site.names, site.block, site.tensors)
        seen.clear()
        torch.testing.assert_close(student(grid(*IMAGE)), model(grid(*IMAGE)))
        assert seen == ["seen", "seen"]
        assert student[0].state_dict().keys() == {"weight", "bias"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["ic3oc4k3x3p1", "ic3oc3k3x3p1g3nb -> ic3oc4k1x1", "permute(3) -> ic3oc4k3x3p1"])
def test_dtype_and_gradients_are_kept(dtype, text):
    for trainable in (True, False):
        model = nn.Sequential(conv(dtype=dtype)).requires_grad_(trainable)
        (site,) = find_sites(model, torch.zeros(IMAGE, dtype=dtype)).sites
        block = parse(text)
        student = place(clone(model), site.names, block, build(block, dtype=dtype).state_dict())
        assert {(p.dtype, p.requires_grad) for p in student.parameters()} == {(dtype, trainable)}
        assert student(torch.zeros(IMAGE, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, old_weight_norm])
def test_a_parametrised_convolution_without_bias_stays_trainable(wrap):
    model = nn.Sequential(wrap(conv(bias=False)))
    (site,) = find_sites(model, torch.zeros(*IMAGE)).sites
    student = place(clone(model), site.names, site.block, site.tensors)
    assert all(p.requires_grad for p in student.parameters())


def test_swapping_the_root_gives_a_new_root():
    new = nn.Identity()
    assert swap(conv().train(), [""], new) is new
    assert new.training


def test_a_plan_applied_leaves_the_original_as_it_was():
    """Bit for bit: weights, modes, hooks, attributes; and random numbers go on as if nothing had been done."""
    model = nn.Sequential(hooked(conv()), norm(), nn.Dropout(), nn.ReLU(), conv(4, 4, bias=False)).train()
    model[1].eval()
    model.log = ["what", {"ever": 1}]
    before, random = state(model), torch.get_rng_state()
    edit = Edit("4", "separable", parse("ic4oc4k3x3p1g4nb -> ic4oc4k1x1nb"))
    student = apply(model, Plan((edit,)), grid(*IMAGE), data=grid(5, 3, 9, 7))
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in student] == [m.training for m in model]
    assert student.log == model.log
    assert student.log is not model.log


# outputs and inputs ------------------------------------------------------------------------------


def test_outputs_of_any_structure_are_compared():
    a, b = whole_numbers(2, 3), whole_numbers(4, seed=1)
    own_dict, own_tuple = type("Own", (dict,), {}), type("Row", (tuple,), {})
    for wrap in (lambda p, q: (p, q), lambda p, q: {"p": p, "q": [q]}, lambda p, q: Seen(p, {"q": q}),
                 lambda p, q: own_dict(p=p, q=q), lambda p, q: own_tuple((p, q))):  # fmt: skip
        assert [t.shape for t in tensors_in(wrap(a, b))] == [(2, 3), (4,)]
        assert squared_distance(wrap(a + 1, b), wrap(a, b)) == (6.0, float((a**2).sum() + (b**2).sum()))


@pytest.mark.parametrize(
    "student, teacher", [(torch.zeros(2), torch.zeros(3)), ((), ()), (torch.zeros(2), "text"), (3, torch.zeros(1))]
)
def test_outputs_that_cannot_be_compared_are_refused(student, teacher):
    with pytest.raises(ConvError, match="must give the same floating tensors"):
        squared_distance(student, teacher)


@pytest.mark.parametrize("apart, size, wanted", [(0, 0, 0.0), (1, 0, float("inf")), (1, 4, 0.5)])
def test_ratio_of_nothing(apart, size, wanted):
    assert distance(torch.full((1,), size**0.5 + apart**0.5), torch.full((1,), float(size**0.5))) == wanted


def test_fresh_inputs_are_copies():
    x = torch.zeros(3)
    y, number = fresh((x, 5))
    y.add_(1)
    assert (float(x.sum()), number) == (0, 5)
    assert tensors_of([x, 5]) == (x, 5)
