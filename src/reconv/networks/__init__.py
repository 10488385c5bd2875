"""Networks of the literature, made of this package's layers: functions that return a module.

All take `channels`, of their input, and `classes`, of their output. `CATALOGUE` has paper, input and counts of each.
"""

from reconv.networks.catalogue import CATALOGUE, Entry
from reconv.networks.classic import alexnet, lenet5, nin, vgg11, vgg16
from reconv.networks.convert import convert
from reconv.networks.dense import densenet121
from reconv.networks.inception import googlenet, inception_v3
from reconv.networks.large import convnext_tiny, replknet31b
from reconv.networks.mobile import mobilenet_v1, mobilenet_v2, shufflenet_v1, xception
from reconv.networks.resnet import deeplab_resnet50, deform_resnet50, resnet3d18, resnet18, resnet50, se_resnet50
from reconv.networks.unet import unet
from reconv.networks.wave import wavenet

__all__ = [
    "CATALOGUE",
    "Entry",
    "alexnet",
    "convert",
    "convnext_tiny",
    "deeplab_resnet50",
    "deform_resnet50",
    "densenet121",
    "googlenet",
    "inception_v3",
    "lenet5",
    "mobilenet_v1",
    "mobilenet_v2",
    "nin",
    "replknet31b",
    "resnet3d18",
    "resnet18",
    "resnet50",
    "se_resnet50",
    "shufflenet_v1",
    "unet",
    "vgg11",
    "vgg16",
    "wavenet",
    "xception",
]
