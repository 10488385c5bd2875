"""A grouped convolution whose groups live on several devices, as AlexNet's did on two GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reconv.errors import conv_error
from reconv.layers.compose import block_of, build
from reconv.layers.described import Described
from reconv.spec import Block, ConvSpec, output_shape

if TYPE_CHECKING:  # torch.distributed takes long to import
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def split_groups(layer: nn.Module, mesh: DeviceMesh) -> SplitGroupConv:
    """Places the groups of a convolution on the devices of a mesh; forward and backward give the same numbers.

    With n devices each holds groups / n of the groups, with their weights and their channels. The devices then work
    without a word between them: the output of one split layer is, as it is, the input of the next. Only where the
    input is given whole, its gradient is gathered.

        mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (2,))
        first, second = reconv.nn.split_groups(conv1, mesh), reconv.nn.split_groups(conv2, mesh)
        y = second(first(x))     # a DTensor, Shard(1): each device its own channels
        y.full_tensor()          # all channels, on every device

    Every process calls it with the same layer and the same arguments, as all of torch.distributed is used.

    Args:    layer: a convolution of torch.nn or reconv.nn, transposed or not; its weights are taken as they are.
             mesh: of one dimension, whose size divides the groups.
    Returns: SplitGroupConv, whose parameters are DTensors, Shard(0).
    Raises:  ConvError: when it is no plain convolution, or its groups cannot be placed on the mesh.
    Source:  Krizhevsky, Sutskever and Hinton 2012, ImageNet classification with deep convolutional neural networks,
             section 3.2
    """
    if not isinstance(layer, _ConvNd):
        raise conv_error("split_groups", "the layer must be a convolution", got={"layer": type(layer).__name__},
                         also=TypeError)  # fmt: skip
    if "weight" not in layer._parameters or layer._forward_hooks or layer._forward_pre_hooks:
        raise conv_error("split_groups", "the layer must have a weight of its own and no hooks", also=ValueError,
                         do="Remove parametrisations, weight norm, pruning and hooks before.")  # fmt: skip
    return SplitGroupConv(layer, mesh)


class SplitGroupConv(Described):
    """What `split_groups` makes of a convolution.

    Args:    input: the whole (N, C_in, *spatial) or (C_in, *spatial), the same on every device; or a DTensor on the
             mesh. One that is sharded along the channels is taken as it is, any other is brought into that form.
    Returns: a DTensor, sharded along the channels.
    """

    def __init__(self, layer: _ConvNd, mesh: DeviceMesh) -> None:
        super().__init__()
        from torch.distributed.tensor import Shard, distribute_tensor

        self.spec, self.mesh = cast(ConvSpec, block_of(layer)), mesh
        _check_mesh(self.spec, mesh)
        for name, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            placed = None
            if tensor is not None:
                placed = nn.Parameter(distribute_tensor(tensor.detach(), mesh, [Shard(0)]), tensor.requires_grad)
            self.register_parameter(name, placed)
        # the convolution of one device; in a tuple, since its empty weights are no parameters of this layer
        self._share = (build(_of_one_device(self.spec, mesh.size()), device="meta"),)

    @property
    def block(self) -> Block:
        """The convolution as on one device."""
        return self.spec

    def forward(self, input: Tensor) -> DTensor:
        from torch.distributed.tensor import DTensor, Shard

        dim = input.ndim - self.spec.spatial_dims - 1
        if dim not in (0, 1) or input.shape[dim] != self.spec.in_channels:
            raise conv_error("SplitGroupConv", "input must be (N, C_in, *spatial) or (C_in, *spatial)",
                             got={"input": tuple(input.shape)}, spec=self.spec, also=RuntimeError)  # fmt: skip
        output_shape(self.spec, (1, *input.shape[dim:]))  # which tells what else is wrong with it
        channels = [Shard(dim)]
        mine = self._placed(input).redistribute(placements=channels).to_local()
        tensors = {name: cast(DTensor, parameter).to_local() for name, parameter in self._parameters.items()
                   if parameter is not None}  # fmt: skip
        output = torch.func.functional_call(self._share[0], tensors, (mine,))
        return DTensor.from_local(output, self.mesh, channels, run_check=False)

    def _placed(self, input: Tensor) -> DTensor:
        """As a DTensor on this mesh; an ordinary tensor is whole on every device."""
        from torch.distributed.tensor import DTensor, Replicate

        if not isinstance(input, DTensor):
            return DTensor.from_local(input, self.mesh, [Replicate()], run_check=False)
        if input.device_mesh != self.mesh:
            raise conv_error("SplitGroupConv", "input must be on the mesh of the layer",
                             got={"input": input.device_mesh, "layer": self.mesh}, also=ValueError)  # fmt: skip
        return input

    def gathered(self) -> dict[str, Tensor]:
        """The state dict of the convolution on one device, whole on every device. Every process must call it."""
        return {name: cast("DTensor", p).full_tensor().detach() for name, p in self.named_parameters()}

    def extra_repr(self) -> str:
        return f"{self.spec}, {self.spec.groups // self.mesh.size()} groups on each of {self.mesh.size()} devices"


def _of_one_device(spec: ConvSpec, devices: int) -> ConvSpec:
    """What one of several devices computes."""
    return spec.replace(
        in_channels=spec.in_channels // devices, out_channels=spec.out_channels // devices,
        groups=spec.groups // devices,
    )  # fmt: skip


def _check_mesh(spec: ConvSpec, mesh: Any) -> None:
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        raise conv_error("split_groups", "mesh must be a DeviceMesh", got={"mesh": type(mesh).__name__},
                         do="Make it by torch.distributed.device_mesh.init_device_mesh.", also=TypeError)  # fmt: skip
    if mesh.ndim != 1:
        raise conv_error("split_groups", "mesh must have one dimension", got={"mesh": tuple(mesh.shape)},
                         do="Take one of them: mesh['name'].", also=ValueError)  # fmt: skip
    if spec.groups % mesh.size():
        raise conv_error("split_groups", "groups must be divisible by the size of the mesh",
                         got={"groups": spec.groups, "mesh": mesh.size()}, spec=spec, also=ValueError)  # fmt: skip
