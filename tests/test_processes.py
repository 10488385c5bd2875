"""Several processes recover a network together: to the same weights as one, and none is left waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recovering
import torch
from recovering import same
from torch import nn

from reconv.data import Batch
from reconv.errors import ConvError
from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.rewriting.job import rewrite
from reconv.rewriting.losses import Whole, distillation_loss, loss_of
from reconv.rewriting.processes import Processes, _check, launched
from reconv.rewriting.recovery import recover
from reconv.rewriting.store import read_config, save_run
from reconv.rewriting.teacher import Answer
from reconv.ruleset import rule_named
from reconv.surgery import find_sites

MINUTES = 3  # after which a process counts as hanging


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(folder: Path, **asked: Any) -> list[tuple[int, str]]:
    """Two processes as torchrun starts them, each on one thread: exit status and what each said."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, recovering.__file__, folder, json.dumps(asked)], text=True,
                         stderr=subprocess.PIPE, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=60 * MINUTES)[1] for process in running]
        return [(process.returncode, text) for process, text in zip(running, said, strict=True)]
    finally:
        for process in running:
            process.kill()


def came(folder: Path, rank: int = 0) -> recovering.Came:
    return recovering.Came(**torch.load(folder / f"{rank}.pt"))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """What two processes made of it, in float64."""
    folder = tmp_path_factory.mktemp("both")
    ended = together(folder, double=True)
    assert [status for status, _ in ended] == [0, 0], ended
    return folder


def test_two_processes_end_as_one_does(both):
    """In float64 up to the order of sums; the last batch of each epoch has one sample for both."""
    torch.set_num_threads(1)
    one, two = recovering.run(None, {"double": True}), came(both)
    assert [e["distance"] for e in two.log] == pytest.approx([e["distance"] for e in one.log], rel=1e-9)
    assert [e["loss"] for e in two.log[1:]] == pytest.approx([e["loss"] for e in one.log[1:]], rel=1e-9)
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-9, atol=1e-12)
    assert two.log[-1]["distance"] < 0.5 * two.log[0]["distance"]
    assert two.steps == one.steps


def test_all_processes_return_the_same_and_only_the_main_one_tells(both):
    main, other = came(both), came(both, 1)
    assert same(main.state, other.state)
    assert (other.log, other.steps) == ([], [])


def test_two_killed_and_resumed_end_as_never_killed(both, tmp_path):
    killed = together(tmp_path, double=True, seconds=0, stop_at=8)
    assert killed[0][0] == -signal.SIGKILL
    assert killed[1][0] == 1
    assert "every process must go on to the end" in killed[1][1]
    assert torch.load(tmp_path / "recovery.pt")["step"] == 3
    ended = together(tmp_path, double=True, resume=True)
    assert [status for status, _ in ended] == [0, 0], ended
    assert came(tmp_path).steps[0] == 9
    assert same(came(tmp_path).state, came(both).state)


def test_an_error_of_one_process_ends_both(tmp_path):
    (status, main), (other_status, other) = together(tmp_path, fail=True)
    assert (status, other_status) == (1, 1)
    assert main.strip().endswith("ZeroDivisionError: no batches")
    assert "the main process must not fail; got error='ZeroDivisionError: no batches'" in other


def data() -> torch.Tensor:
    """What the launched command is to recover on."""
    return recovering.samples().tensors[0]


def test_accelerate_launches_the_command(tmp_path, monkeypatch):
    """As `accelerate launch` does it; its own command imports whatever else is installed."""
    monkeypatch.chdir(tmp_path)
    image, ref = torch.zeros(1, 2, 9, 7), f"{recovering.__file__}:teacher"
    site = next(site for site in find_sites(recovering.teacher(), (image,)).sites if site.name == "3")
    block = next(iter(rule_named("bottleneck").propose(site))).block
    plan = Plan((Edit("3", "bottleneck", block, 0.5),), model={"ref": ref})
    save_run("run", model=apply(recovering.teacher(), plan, image), plan=plan, config={})
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]  # fmt: skip
    command = ["-m", "reconv", "recover", "run", "--data", f"{__file__}:data", "--trust-code", "--epochs", "2",
               "--precision", "bfloat16", "--ema", "0.5", "--log", "tensorboard", "--format", "json"]  # fmt: skip
    done = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60 * MINUTES)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on data held out.") == 1
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events] == [0, 1, 2]
    assert json.loads(done.stdout)["error"] < events[0]["distance"]
    assert read_config("run")["recovered"]["precision"] == "bfloat16"
    assert len(list(Path("run/tensorboard").iterdir())) == 1


# one process, that is told of others ----------------------------------------------------------------


def as_if(count: int, index: int = 0, kind: str = "MULTI_CPU") -> Processes:
    told = SimpleNamespace(num_processes=count, process_index=index, is_main_process=index == 0, mixed_precision="no",
                           distributed_type=SimpleNamespace(value=kind))  # fmt: skip
    return Processes(told, torch.device("cpu"))


@pytest.mark.parametrize(
    "samples, count, expected", [(7, 1, [7]), (8, 2, [4, 4]), (7, 3, [2, 2, 3]), (1, 3, [0, 0, 1])]
)
def test_shares_are_all_of_a_batch_in_its_order(samples, count, expected):
    batch = Batch((torch.arange(samples * 2).reshape(samples, 2),), torch.arange(samples))
    shares = [as_if(count, index).share(batch) for index in range(count)]
    assert [len(share) for share in shares] == expected
    assert torch.cat([share.inputs[0] for share in shares]).equal(batch.inputs[0])
    assert torch.cat([share.targets for share in shares]).equal(batch.targets)


def answers(samples: int, seed: int, scale: float = 1.0) -> Answer:
    made = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(samples, 3, generator=made, dtype=torch.float64) * scale]
    return Answer(outputs, [torch.randn(samples, 2, 4, generator=made, dtype=torch.float64) for _ in range(2)])


def rows(answer: Answer, index: slice) -> Answer:
    return Answer([t[index] for t in answer.outputs], [t[index] for t in answer.inner])


@pytest.mark.parametrize("labels", ["the teacher's", "mostly others", "none", "too many"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("cuts", [(0, 3, 7), (0, 0, 2, 7)])
def test_the_losses_of_shares_add_up_to_that_of_the_batch(labels, scale, cuts):
    ours, wanted = answers(7, 1), answers(7, 2, scale)
    right = wanted.outputs[0].argmax(1)
    targets = {"the teacher's": torch.cat([right[:5], 2 - right[5:]]), "mostly others": (right + 1) % 3,
               "none": None, "too many": right + 2}[labels]  # fmt: skip
    expected = loss_of(ours, wanted, targets, Whole.of(wanted, targets), 0.5)

    parts = [slice(a, b) if b > a else slice(1) for a, b in pairwise(cuts)]
    there = [b > a for a, b in pairwise(cuts)]
    given: list[torch.Tensor] = []

    def note(values: torch.Tensor) -> torch.Tensor:
        given.append(values)
        return values

    def share(index: slice, here: bool, total: Any) -> torch.Tensor:
        own, known = None if targets is None else targets[index], rows(wanted, index)
        return loss_of(rows(ours, index), known, own, Whole.over(known, own, here, total), 0.5) * here

    for index, here in zip(parts, there, strict=True):
        share(index, here, note)
    whole = torch.stack(given).sum(0)
    losses = [share(index, here, lambda values: whole) for index, here in zip(parts, there, strict=True)]
    torch.testing.assert_close(sum(losses), expected)


def test_a_part_of_a_tensor_is_measured_by_the_whole():
    part = distillation_loss([torch.tensor([1.0])], [torch.tensor([3.0])], [torch.tensor(5.0, dtype=torch.float64)])
    assert part.item() == pytest.approx(4 / 25)


def test_what_the_launch_must_hold(monkeypatch):
    assert launched() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == 2
    with pytest.raises(ConvError, match="rewrite must run in one process; got processes=2"):
        rewrite(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 5, 5))
    with pytest.raises(ConvError, match="accelerate must know all processes of the launch"):
        _check(as_if(1))
    with pytest.raises(ConvError, match="each process must hold the whole network; got distributed_type=FSDP"):
        _check(as_if(2, kind="FSDP"))
    _check(as_if(2))


def test_accelerate_is_left_as_it_was_found():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._shared_state.clear()
    users = Accelerator(mixed_precision="bf16", cpu=True)
    kept = recover(recovering.student(), recovering.teacher(), recovering.samples(), **recovering.SETTINGS)
    assert users.mixed_precision == "bf16"
    assert not any("_is_accelerate_prepared" in vars(module) for module in kept.modules())
    AcceleratorState._shared_state.clear()


@pytest.mark.parametrize("launch, precision", [("bf16", "bfloat16"), (None, "float32")])
def test_the_launch_may_choose_the_precision(tmp_path, monkeypatch, launch, precision):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launch:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launch)
    recovering.run(tmp_path, {"epochs": 1})
    assert torch.load(tmp_path / "recovery.pt")["settings"]["precision"] == precision


def test_a_precision_of_the_launch_that_is_none_of_ours(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(
        ConvError, match="mixed precision must be one of no, bf16, fp16; got ACCELERATE_MIXED_PRECISION"
    ):
        recovering.run(None, {})
