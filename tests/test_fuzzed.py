"""Random calls and random networks keep what is promised; and what such cases have found, a row each.

As many as the Hypothesis profile says: `pytest --hypothesis-profile=deep tests/test_fuzzed.py`. trust/fuzz.py tries
the same at scale.
"""

from __future__ import annotations

import fuzzed
import fuzzed_folds
import fuzzed_networks
import fuzzed_promises
import pytest
import torch
from cases import whole_numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconv import functional
from reconv.commands.options import _read_yaml
from reconv.errors import ConvError
from reconv.ops import kernel, problem, reference, ways
from reconv.ops.dispatch import KERNELS
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
        fuzzed_promises.check(fuzzed_networks.drawn(r))

    with fuzzed_promises.nothing_remembered():
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


BEYOND = [
    ("ic28oc4k5x3s1x2p2x5d1x2g4", (3, 28, 13, 1)), ("ic2oc4k1x1x1s1x1x2p0x0x1g2", (1, 2, 2, 1, 1)),
    ("ic5oc8k2x3s1x2p2x5d1x2", (3, 5, 12, 1)), ("ic7oc14k3x1s3p2x1d1x3g7", (3, 7, 1, 2)), ("ic3oc5k2p2", (2, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("text, shape", BEYOND)
def test_windows_in_the_padding_alone_are_not_told_to_torch(text, shape):
    """Which may end the process: it gets an input with zeros around it."""
    known = problem.of_spec(parse(text), shape, False, torch.float32, 1)
    assert all(asked.even_padding is None for asked in (known, *problem.gradients(known, known.y_stride)))


def last_within(tensor):
    """Lies channels_last within a larger one."""
    larger = tensor.new_zeros([n + 1 for n in tensor.shape]).movedim(1, -1).contiguous().movedim(-1, 1)
    return larger[tuple(slice(n) for n in tensor.shape)].copy_(tensor)


ONE_CHANNEL = [
    ("ic1oc1k3x2x3s2x1x2p1x0x0d2x2x1", (2, 1, 7, 5, 4)), ("ic1oc3k2x3x3s3x1x2p1x2x0d1x2x1", (2, 1, 6, 9, 3)),
    ("ic1oc3k3x3s1x3p2x0", (2, 1, 7, 4)),
]  # fmt: skip


@pytest.mark.parametrize("laid", [last_within, torch.Tensor.contiguous], ids=["weight within", "weight dense"])
@pytest.mark.parametrize("text, shape", [*BEYOND, *ONE_CHANNEL])
def test_what_torch_computes_wrongly_or_not_at_all(text, shape, laid):
    spec = parse(text).replace(bias=False)
    x, w = whole_numbers(shape, 1).float(), whole_numbers(spec.weight_shape, 2).float()
    wanted = torch.from_numpy(reference.run(spec, {"weight": w}, x))
    given = (last_within(x), laid(w), None, spec.stride, spec.even_padding, spec.dilation, spec.groups)
    assert torch.equal(getattr(functional, f"conv{spec.spatial_dims}d")(*given), wanted)
    assert torch.equal(kernel.conv_by_torch(spec.spatial_dims, *given), wanted)


@pytest.mark.parametrize("text", ["ic3oc1k3x2x3s1x1x2p1x1x0t", "ic1oc4k3x3x3"])
def test_one_channel_in_3d_is_not_laid_out_otherwise(text):
    """Of such a weight PyTorch cannot tell the layouts apart, and computes something else."""
    known = problem.of_spec(parse(text), (2, parse(text).in_channels, 4, 5, 4), False, torch.float32, 1)
    for asked in (known, *problem.gradients(known, known.y_stride)):
        (relaid,) = (way for way in KERNELS[asked.op] if way.name == "torch, other layout")
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
