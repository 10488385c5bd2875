"""A small network with dropout, a student of it that is worse, and what it may learn from in every form."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from reconv.surgery.clone import clone

SEEN = torch.randn(41, 2, 9, 7, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Convolutions, a batch norm, dropout; `shape` makes the output."""

    def __init__(self, shape=lambda y: y):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Conv2d(6, 4, 3, stride=2),
        )  # fmt: skip
        self.head = nn.Linear(4, 3)
        self.shape = shape

    def forward(self, x):
        return self.shape(self.head(self.body(x).mean((2, 3))))


def teacher(**changes):
    torch.manual_seed(0)
    net = Net(**changes).eval()
    nn.init.uniform_(net.body[1].running_mean, -0.3, 0.3)
    return net


def worse(net):
    """A student: the second convolution goes through one channel only, as a low rank would."""
    student = clone(net)
    old = student.body[4]
    student.body[4] = nn.Sequential(nn.Conv2d(6, 1, 3, stride=2), nn.Conv2d(1, 4, 1)).eval()
    with torch.no_grad():
        student.body[4][0].weight.copy_(old.weight.mean(0, keepdim=True))
        student.body[4][1].bias.copy_(old.bias)
    return student


def state(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


@torch.no_grad()
def apart(student, net, x=SEEN):
    return float((student(x) - net(x)).norm() / net(x).norm())


FAST = {"epochs": 4, "batch_size": 8, "lr": 3e-3, "holdout": 0.2}
LABELLED = TensorDataset(SEEN, teacher()(SEEN).argmax(1))
FORMS = {
    "tensor": SEEN,
    "labels": LABELLED,
    "labels of other classes": TensorDataset(SEEN, 2 - LABELLED.tensors[1]),
    "list": list(SEEN.split(7)),
    "single samples": list(SEEN.split(1)),
    "loader": DataLoader(LABELLED, 7, shuffle=True),
}
