"""Random calls and random networks keep what is promised; and what such cases have found, a row each.

As many as the Hypothesis profile says: `pytest --hypothesis-profile=deep tests/test_fuzzed.py`. trust/fuzz.py tries
the same at scale.
"""

from __future__ import annotations

import fuzzed
import fuzzed_folds
import fuzzed_networks
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconv import functional
from reconv.commands.options import _read_yaml
from reconv.errors import ConvError
from reconv.ops import problem, ways
from reconv.ops.dispatch import DIRECT, KERNELS
from reconv.ops.kernel import TORCH
from reconv.planning.plan import Plan
from reconv.rewriting.store import read_config
from reconv.spec import output_shape, parse

MANY = settings.default.max_examples
RANDOMS = st.randoms(use_true_random=False)


def some(count: int):
    return settings(max_examples=max(1, count), suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", fuzzed.KINDS)
def test_any_call_gives_what_it_must(kind):
    @some(MANY // 2)
    @given(RANDOMS)
    def holds(r) -> None:
        fuzzed_folds.check(fuzzed.drawn(r, kind))

    with fuzzed_folds.every_way():
        holds()


def test_any_network_goes_through_the_whole():
    @some(MANY // 20)
    @given(RANDOMS)
    def holds(r) -> None:
        fuzzed_networks.check(fuzzed_networks.drawn(r))

    with fuzzed_networks.nothing_remembered():
        holds()


def test_the_same_random_numbers_make_the_same_case():
    for draw in (fuzzed.drawn, fuzzed_networks.drawn):
        one, again, other = (draw(fuzzed.Random(seed)) for seed in (5, 5, 6))
        assert one == again != other


# -- what was found -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("wrong", [1.0, True, (1.0, 1)], ids=str)
def test_what_only_equals_a_number_is_not_remembered_for_it(wrong, name):
    x, w = torch.ones(1, 3, 9, 9), torch.ones(3, 3, 3, 3)
    compute = getattr(functional, name)
    right = 1 if isinstance(wrong, float | bool) else (1, 1)
    for first, then in ((wrong, right), (right, wrong)):
        ways.forget()
        for stride in (first, then, first):
            if stride is wrong:
                with pytest.raises(ConvError, match=f"^{name}: stride must be") as caught:
                    compute(x, w, stride=stride)
                assert isinstance(caught.value, TypeError)
            else:
                assert torch.equal(compute(x, w, stride=stride), getattr(torch, name)(x, w))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("wrong", [{"weight": None}, {"groups": None}, {"groups": 1.5}], ids=str)
def test_what_is_no_weight_or_number_is_told(wrong, name):
    given = {"input": torch.ones(1, 2, 5, 5), "weight": torch.ones(2, 2, 3, 3)} | wrong
    with pytest.raises(ConvError, match=f"^{name}: {next(iter(wrong))} must be") as caught:
        getattr(functional, name)(**given)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("text, shape", [
    ("ic28oc4k5x3s1x2p2x5d1x2g4", (3, 28, 13, 1)), ("ic2oc4k1x1x1s1x1x2p0x0x1g2", (1, 2, 2, 1, 1)),
])  # fmt: skip
def test_no_detour_leads_where_onednn_crashes(text, shape):
    known = problem.of_spec(parse(text), shape, False, torch.float32, 1)
    for asked in (known, *problem.gradients(known, known.y_stride)):
        assert all(kernel in (TORCH, DIRECT) or not kernel.foreign or "oneDNN" in kernel.refuse(asked)
                   for kernel in KERNELS[asked.op])  # fmt: skip


@pytest.mark.parametrize("text", ["ic3oc1k3x2x3s1x1x2p1x1x0t", "ic1oc4k3x3x3"])
def test_one_channel_in_3d_is_not_laid_out_otherwise(text):
    """Of such a weight PyTorch cannot tell the layouts apart, and computes something else."""
    known = problem.of_spec(parse(text), (2, parse(text).in_channels, 4, 5, 4), False, torch.float32, 1)
    for asked in (known, *problem.gradients(known, known.y_stride)):
        (relaid,) = (kernel for kernel in KERNELS[asked.op] if kernel.name == "torch, other layout")
        assert "one channel in 3D" in relaid.refuse(asked)


@pytest.mark.parametrize("text", ["se(2)", "shuffle(2)", "relu", "(relu | relu)", "ic1oc1k1", "pixel_shuffle(2)"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_an_input_without_channels_is_told(shape, text):
    with pytest.raises(ConvError, match=r"^(output_shape|conv1d): "):
        output_shape(parse(text), shape)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000], ids=["deep", "long"])
def test_files_beyond_what_python_reads_are_told(text, tmp_path):
    for name, read in (("plan.json", Plan.load), ("config.json", lambda path: read_config(path.parent)),
                       ("given.yaml", lambda path: _read_yaml(path, []))):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(ConvError, match=r"must be readable|must hold a plan"):
            read(tmp_path / name)
