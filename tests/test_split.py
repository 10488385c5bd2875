"""Groups split across two processes give the same numbers as one process: outputs, gradients, weights."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import fill, whole_numbers
from torch import Tensor, multiprocessing, nn

from reconv.errors import ConvError
from reconv.layers import build
from reconv.spec import parse

DEVICES, SECONDS = 2, 300
CASES = {
    "1d": ("ic4oc6k3p1g2", (2, 4, 7)),
    "2d": ("ic8oc12k3x3p1g4", (2, 8, 7, 6)),
    "3d": ("ic4oc4k3x2x3s2g2", (1, 4, 5, 4, 6)),
    "depthwise multiplied": ("ic6oc12k3x3s2p1g6nb", (2, 6, 7, 5)),
    "dilated": ("ic4oc4k3x3p2d2g2", (2, 4, 6, 5)),
    "reflect, uneven": ("ic4oc4k3x3p0:2x1:0g2mreflect", (2, 4, 6, 5)),
    "transposed": ("ic4oc8k3x3s2p1g2top1", (2, 4, 4, 3)),
    "transposed, uneven": ("ic4oc8k3x3s2p0:1x2:0g4t", (2, 4, 5, 4)),
    "no image": ("ic4oc6k3p1g2", (0, 4, 7)),
    "unbatched": ("ic4oc6k3x3p1g2", (4, 7, 5)),
}  # fmt: skip
FIRST, SECOND, IMAGE = "ic4oc8k3x3p1g2", "ic8oc4k3x3s2p1g4", (2, 4, 6, 5)  # one after the other, not gathered between
MISTAKES = {
    "groups": ("ic6oc6k3x3g3", (1, 6, 5, 5), "split_groups: groups must be divisible by the size of the mesh; "
               "got groups=3, mesh=2. [ic6oc6k3x3g3]"),
    "no groups": ("ic6oc6k3x3", (1, 6, 5, 5), "groups must be divisible by the size of the mesh; got groups=1"),
    "channels": ("ic4oc4k3x3g2", (1, 6, 5, 5), "SplitGroupConv: input must be (N, C_in, *spatial)"),
    "axes": ("ic4oc4k3x3g2", (4, 5), "input must be (N, C_in, *spatial) or (C_in, *spatial); got input=(4, 5)"),
    "small map": ("ic4oc4k3x3g2", (1, 4, 2, 5), "the padded input must be at least as large"),
}  # fmt: skip


def make(text: str, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    return fill(build(parse(text)).double()), whole_numbers(shape).requires_grad_()


def seed(output: Tensor) -> Tensor:
    return whole_numbers(tuple(output.shape), seed=9)


def passed(net: nn.Module, x: Tensor, whole=lambda tensor: tensor) -> dict[str, Tensor]:
    """Output and gradients of a forward and a backward pass; `whole` makes a plain tensor of each."""
    output = whole(net(x))
    (output * seed(output)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"output": output, "input": x.grad} | gradients


# -- what each of the two processes does ----------------------------------------------------------
def work(rank: int, folder: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=DEVICES,
                                   timeout=timedelta(seconds=SECONDS))  # fmt: skip
    mesh = init_device_mesh("cpu", (DEVICES,))
    found = {"cases": {name: split(*case, mesh) for name, case in CASES.items()}, "chain": chain(mesh),
             "mistakes": {name: mistake(text, shape, mesh) for name, (text, shape, _) in MISTAKES.items()},
             "places": places(mesh)}  # fmt: skip
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def split(text: str, shape: tuple[int, ...], mesh: Any) -> dict[str, Any]:
    """A whole input on every device, then the same one sharded along the channels."""
    from torch.distributed.tensor import Shard, distribute_tensor

    from reconv.nn import split_groups

    layer, x = make(text, shape)
    net = split_groups(layer, mesh)
    found = {name: full(tensor).detach() for name, tensor in passed(net, x, full).items()}
    net.zero_grad()
    dim = x.ndim - parse(text).spatial_dims - 1
    sharded = distribute_tensor(x.detach(), mesh, [Shard(dim)]).requires_grad_()
    again = {name: full(tensor).detach() for name, tensor in passed(net, sharded, full).items()}
    local = {name: tuple(parameter.to_local().shape) for name, parameter in net.named_parameters()}
    return {"whole": found, "sharded": again, "local": local, "gathered": net.gathered(), "repr": repr(net),
            "placements": str(net(x).placements)}  # fmt: skip


def chain(mesh: Any) -> dict[str, Any]:
    """Two layers, a ReLU between; the channels of a device stay there."""
    from reconv.nn import split_groups

    (first, x), (second, _) = make(FIRST, IMAGE), make(SECOND, IMAGE)
    net = nn.Sequential(split_groups(first, mesh), nn.ReLU(), split_groups(second, mesh))
    return {name: full(tensor).detach() for name, tensor in passed(net, x, full).items()}


def mistake(text: str, shape: tuple[int, ...], mesh: Any) -> tuple[bool, str]:
    from reconv.nn import split_groups

    layer, x = make(text, shape)
    try:
        split_groups(layer, mesh)(x)
    except ConvError as error:
        return isinstance(error, (ValueError, RuntimeError)), str(error)
    return False, "nothing was raised"


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def places(mesh: Any) -> dict[str, str]:
    """Other meshes, other layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    from reconv.nn import split_groups

    layer, x = make(FIRST, IMAGE)
    square = init_device_mesh("cpu", (1, DEVICES), mesh_dim_names=("data", "groups"))
    net, found = split_groups(layer, square["groups"]), {}
    hooked, _ = make(FIRST, IMAGE)
    hooked.register_forward_hook(lambda *_: None)
    attempts = {
        "two dimensions": lambda: split_groups(layer, square),
        "no convolution": lambda: split_groups(nn.Linear(4, 4), mesh),
        "more than a convolution": lambda: split_groups(Doubled(4, 4, 3, groups=2), mesh),
        "parametrised": lambda: split_groups(nn.utils.parametrizations.weight_norm(make(FIRST, IMAGE)[0]), mesh),
        "hooked": lambda: split_groups(hooked, mesh),
        "other mesh": lambda: net(distribute_tensor(x.detach(), square["data"], [Replicate()])),
    }
    for name, attempt in attempts.items():
        try:
            found[name] = str(attempt())
        except ConvError as error:
            found[name] = str(error)
    found["one dimension of two"] = str(torch.equal(net(x).full_tensor(), layer(x)))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Any]]:
    """What both processes found; they meet in a file, and are ended where they take too long."""
    folder = tmp_path_factory.mktemp("split")
    context = multiprocessing.spawn(work, (folder,), nprocs=DEVICES, join=False)
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"two processes were not done after {SECONDS} s")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(DEVICES)]


# -- against one process --------------------------------------------------------------------------
def check_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("rank", range(DEVICES))
@pytest.mark.parametrize("name", CASES)
def test_same_numbers_as_on_one_device(results, name, rank):
    text, shape = CASES[name]
    found = results[rank]["cases"][name]
    layer, x = make(text, shape)
    wanted = passed(layer, x)
    check_same(found["whole"], wanted)
    check_same(found["sharded"], wanted)
    check_same(found["gathered"], layer.state_dict())
    assert found["local"] == {n: (p.shape[0] // DEVICES, *p.shape[1:]) for n, p in layer.named_parameters()}
    assert found["placements"] == f"(Shard(dim={x.ndim - parse(text).spatial_dims - 1}),)"
    assert found["repr"] == f"SplitGroupConv({text}, {parse(text).groups // DEVICES} groups on each of 2 devices)"


@pytest.mark.parametrize("rank", range(DEVICES))
def test_one_after_the_other(results, rank):
    (first, x), (second, _) = make(FIRST, IMAGE), make(SECOND, IMAGE)
    check_same(results[rank]["chain"], passed(nn.Sequential(first, nn.ReLU(), second), x))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_on_every_device(results, name):
    for found in results:
        of_torchs_type, message = found["mistakes"][name]
        assert of_torchs_type
        assert MISTAKES[name][2] in message


PLACES = {
    "two dimensions": "split_groups: mesh must have one dimension; got mesh=(1, 2). Take one of them: mesh['name'].",
    "no convolution": "split_groups: the layer must be a convolution; got layer=Linear.",
    "more than a convolution": "block_of: the layer must be a convolution",
    "parametrised": "split_groups: the layer must have a weight of its own and no hooks. Remove",
    "hooked": "split_groups: the layer must have a weight of its own and no hooks",
    "other mesh": "SplitGroupConv: input must be on the mesh of the layer",
    "one dimension of two": "True",
}


@pytest.mark.parametrize("name", PLACES)
def test_meshes(results, name):
    for found in results:
        assert found["places"][name].startswith(PLACES[name])
