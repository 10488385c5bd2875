"""State dicts of timm and torchvision, under our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from reconv.errors import ConvError, conv_error
from reconv.networks.catalogue import CATALOGUE
from reconv.plain import listed

Rename = tuple[str, str | Callable[[re.Match[str]], str]]

DROPPED = re.compile(r"(aux1|aux2|AuxLogits|aux_classifier)\.")  # heads that only training needs


def _flat(name: str, depths: Sequence[int]) -> Callable[[re.Match[str]], str]:
    """A layer's number in the whole network, from its stage and its number there."""
    starts = [0, *accumulate(depths)]
    return lambda found: f"{name}.{starts[int(found[1])] + int(found[2])}."


def _separable(found: re.Match[str]) -> str:
    """Xception's blocks in timm are activation, separable convolution, norm, …; the first lacks its activation."""
    at = int(found[2]) - (found[1] != "1")
    return f"block{found[1]}.body.sep{at // 3 + 1}.{'norm' if at % 3 else 'conv'}."


VGG: tuple[Rename, ...] = (
    (r"^classifier\.0\.", "head.fc1."), (r"^classifier\.3\.", "head.fc2."), (r"^classifier\.6\.", "head.fc3."),
    (r"^head\.fc\.", "head.fc3."), (r"^pre_logits\.", "head."),
)  # fmt: skip
GOOGLENET: tuple[Rename, ...] = (
    (r"\.branch1\.", ".1x1."), (r"\.branch2\.", ".3x3."), (r"\.branch3\.", ".5x5."), (r"\.branch4\.", ".pool."),
    (r"\.bn\.", ".norm."), (r"^fc\.", "head.fc."),
)  # fmt: skip
INCEPTION_V3: tuple[Rename, ...] = (
    (r"^Conv2d_(\d\w)_\dx\d\.", r"conv\1."), (r"^Mixed_(\d\w)\.", r"mixed\1."), (r"branch_pool", "pool.conv"),
    (r"branch(\w+)_(\d)([ab])\.", r"\1.\2.\3."), (r"branch(\w+)_(\d)\.", r"\1.\2."), (r"branch(\w+)\.", r"\1."),
    (r"\.bn\.", ".norm."), (r"^fc\.", "head.fc."),
)  # fmt: skip
RESNET: tuple[Rename, ...] = (
    (r"^conv1\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^fc\.", "head.fc."),
    (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
    (r"\.se\.fc1\.", ".body.gate.reduce."), (r"\.se\.fc2\.", ".body.gate.expand."),
    (r"\.bn(\d)\.", r".norm\1."), (r"^(layer\d\.\d+)\.(conv|norm)", r"\1.body.\2"),
)  # fmt: skip
RESNET_3D: tuple[Rename, ...] = (
    (r"^stem\.0\.", "stem.conv."), (r"^stem\.1\.", "stem.norm."),
    (r"\.conv(\d)\.0\.", r".conv\1."), (r"\.conv(\d)\.1\.", r".norm\1."),
    *RESNET,
)  # fmt: skip
DEEPLAB: tuple[Rename, ...] = (
    (r"^backbone\.", ""), *RESNET,
    (r"^classifier\.0\.convs\.4\.1\.", "pyramid.mean.conv."), (r"^classifier\.0\.convs\.4\.2\.", "pyramid.mean.norm."),
    (r"^classifier\.0\.convs\.(\d)\.0\.", r"pyramid.fields.conv.\1."),
    (r"^classifier\.0\.convs\.\d\.1\.", "pyramid.fields.norm."),  # one norm for all of them
    (r"^classifier\.0\.project\.0\.", "pyramid.project.conv."),
    (r"^classifier\.0\.project\.1\.", "pyramid.project.norm."),
    (r"^classifier\.1\.", "conv.conv."), (r"^classifier\.2\.", "conv.norm."), (r"^classifier\.4\.", "score."),
    (r"^", "net."),
)  # fmt: skip
DENSENET: tuple[Rename, ...] = (
    (r"\.denseblock(\d)\.denselayer(\d+)\.", lambda found: f".block{found[1]}.{int(found[2]) - 1}.1."),
    (r"^classifier\.", "head.fc."),
)  # fmt: skip
XCEPTION: tuple[Rename, ...] = (
    (r"^block(\d+)\.rep\.(\d+)\.", _separable), (r"^bn(\d)\.", r"conv\1.norm."),
    (r"^conv([12])\.weight", r"conv\1.conv.weight"), (r"^conv([34])\.(conv1|pointwise)\.", r"conv\1.conv.\2."),
    (r"\.conv1\.weight$", ".0.weight"), (r"\.pointwise\.", ".1."),
    (r"\.skip\.", ".skip.conv."), (r"\.skipbn\.", ".skip.norm."), (r"^fc\.", "head.fc."),
)  # fmt: skip
MOBILENET_V1: tuple[Rename, ...] = (
    (r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^classifier\.", "head.fc."),
    (r"^blocks\.(\d)\.(\d)\.", _flat("layers", (1, 2, 2, 6, 2))),
    (r"\.conv_dw\.", ".conv.0."), (r"\.bn1\.", ".conv.1."), (r"\.conv_pw\.", ".conv.3."), (r"\.bn2\.", ".norm."),
)  # fmt: skip
MOBILENET_V2: tuple[Rename, ...] = (
    # torchvision's
    (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm."), (r"^classifier\.1\.", "head.fc."),
    (r"^features\.18\.0\.", "last.conv."), (r"^features\.18\.1\.", "last.norm."),
    (r"^features\.1\.conv\.1\.", "layers.0.body.conv2."), (r"^features\.1\.conv\.2\.", "layers.0.body.norm2."),
    (r"^features\.(\d+)\.conv\.", lambda found: f"layers.{int(found[1]) - 1}.body."),
    (r"\.body\.(\d)\.([01])\.", lambda found: f".body.{'norm' if found[2] == '1' else 'conv'}{int(found[1]) + 1}."),
    (r"\.body\.2\.", ".body.conv3."), (r"\.body\.3\.", ".body.norm3."),
    # timm's
    (r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^conv_head\.", "last.conv."),
    (r"^bn2\.", "last.norm."), (r"^classifier\.(?=weight|bias)", "head.fc."),
    (r"^blocks\.0\.0\.conv_dw\.", "layers.0.body.conv1."), (r"^blocks\.0\.0\.conv_pw\.", "layers.0.body.conv2."),
    (r"^blocks\.0\.0\.bn(\d)\.", r"layers.0.body.norm\1."),
    (r"^blocks\.(\d)\.(\d)\.", _flat("layers", (1, 2, 3, 4, 3, 3, 1))),
    (r"\.conv_pw\.", ".body.conv1."), (r"\.conv_dw\.", ".body.conv2."), (r"\.conv_pwl\.", ".body.conv3."),
    (r"\.bn(\d)\.", r".body.norm\1."),
)  # fmt: skip
CONVNEXT: tuple[Rename, ...] = (
    # torchvision's
    (r"^features\.0\.", "stem."), (r"^features\.([246])\.", lambda found: f"down{int(found[1]) // 2}."),
    (r"^features\.([1357])\.(\d+)\.", lambda found: f"stage{int(found[1]) // 2 + 1}.{found[2]}.body."),
    (r"\.block\.0\.", ".depthwise."), (r"\.block\.2\.", ".norm."), (r"\.block\.3\.", ".widen."),
    (r"\.block\.5\.", ".narrow."), (r"\.layer_scale$", ".scale.weight"),
    (r"^classifier\.0\.", "head.norm."), (r"^classifier\.2\.", "head.fc."),
    # timm's
    (r"^stages\.(\d)\.downsample\.", r"down\1."),
    (r"^stages\.(\d)\.blocks\.(\d)\.", lambda found: f"stage{int(found[1]) + 1}.{found[2]}.body."),
    (r"\.conv_dw\.", ".depthwise."), (r"\.mlp\.fc1\.", ".widen."), (r"\.mlp\.fc2\.", ".narrow."),
    (r"\.gamma$", ".scale.weight"),
    (r"^stem\.0\.", "stem.conv."), (r"^stem\.1\.", "stem.norm."),
    (r"^(down\d)\.0\.", r"\1.norm."), (r"^(down\d)\.1\.", r"\1.conv."),
)  # fmt: skip

# of each network, what its names are in timm or torchvision and here; one after the other
RENAMES: dict[str, tuple[Rename, ...]] = {
    "vgg11": VGG, "vgg16": VGG, "googlenet": GOOGLENET, "inception_v3": INCEPTION_V3, "resnet18": RESNET,
    "resnet50": RESNET, "se_resnet50": RESNET, "resnet3d18": RESNET_3D, "deeplab_resnet50": DEEPLAB,
    "densenet121": DENSENET, "xception": XCEPTION, "mobilenet_v1": MOBILENET_V1, "mobilenet_v2": MOBILENET_V2,
    "convnext_tiny": CONVNEXT,
}  # fmt: skip


def convert(name: str, state_dict: Mapping[str, Tensor], **arguments: Any) -> dict[str, Tensor]:
    """The tensors of the same network in timm or torchvision, under the names that they have here.

    Names are mapped one by one. Heads that only training needs are left out. torchvision's GoogLeNet is
    `googlenet(torchvision=True)`, its DeepLab is deeplab_resnet50, its r3d_18 is resnet3d18; timm's seresnet50 is
    se_resnet50, its legacy_xception is xception, its mobilenetv1_100 is mobilenet_v1.

    Args:    name: of the network here, "resnet50".
             state_dict: as the other package's network gives it.
             arguments: that the network here is made with, such as classes=10.
    Returns: a state dict for `reconv.networks.NAME(**arguments)`.
    Raises:  ConvError: when nobody else has the network, or the tensors are not those of it.
    Example:
             >>> theirs = {"classifier.6.bias": torch.zeros(1000)}
             >>> convert("vgg11", theirs)
             Traceback (most recent call last):
             ...
             reconv.errors.ConvError: networks.convert: the tensors must be those of the network; got name='vgg11', \
missing=[features.0.bias, features.0.weight, … 19 more]. Give the arguments that the network is made with.
    """
    if name not in RENAMES:
        raise conv_error("networks.convert", f"name must be one of {', '.join(RENAMES)}", got={"name": repr(name)},
                         also=ValueError)  # fmt: skip
    if not isinstance(state_dict, Mapping):
        raise conv_error("networks.convert", "state_dict must be names and tensors", also=TypeError,
                         got={"state_dict": type(state_dict).__name__})  # fmt: skip
    with torch.device("meta"):
        own = CATALOGUE[name].make(**arguments).state_dict()
    groups: dict[str, list[Tensor]] = {}
    for key, tensor in state_dict.items():
        if not DROPPED.match(key):
            groups.setdefault(_renamed(key, RENAMES[name]), []).append(tensor)
    missing, unexpected = own.keys() - groups.keys(), groups.keys() - own.keys()
    if missing or unexpected:
        raise _misfit(name, missing=missing, unexpected=unexpected)
    found = {key: _shaped(_joined(groups[key]), own[key]) for key in own}
    different = [key for key, tensor in found.items() if tensor.shape != own[key].shape]
    if different:
        raise _misfit(name, different=different)
    return found


def _renamed(key: str, renames: Sequence[Rename]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One for all channels, where the other network has one for each branch; counters are the same everywhere."""
    return tensors[0] if len(tensors) == 1 or tensors[0].ndim == 0 else torch.cat(list(tensors))


def _shaped(tensor: Tensor, own: Tensor) -> Tensor:
    """As a linear layer has it here and a convolution there, or the other way round; factors without their ones."""
    same = [n for n in tensor.shape if n != 1] == [n for n in own.shape if n != 1]
    whole = own.ndim == 2 and tensor.ndim > 2 and tensor.flatten(1).shape == own.shape
    return tensor.reshape(own.shape) if same or whole else tensor


def _misfit(name: str, **keys: Any) -> ConvError:
    lists = {kind: f"[{listed(sorted(names), 2)}]" for kind, names in keys.items() if names}
    return conv_error("networks.convert", "the tensors must be those of the network", got={"name": repr(name), **lists},
                      do="Give the arguments that the network is made with.", also=RuntimeError)  # fmt: skip
