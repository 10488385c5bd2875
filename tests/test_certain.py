"""What follows a convolution where the forward pass decides by values: certain, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from reconv.planning.plan import Edit, Plan
from reconv.rewriting.apply import apply
from reconv.ruleset import rules_named
from reconv.surgery import find_sites

(FOLD,) = rules_named("fold_batch_norm")


class Deciding(nn.Module):
    """A negative input takes another way than a positive one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        with torch.no_grad():
            self.bn.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
            self.bn.running_var.copy_(torch.tensor([0.3, 2.0, 1.0]))


class Nested(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return y if x.sum() > 0 else -y


class InOneWayOnly(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else -x


class InBothWays(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.bn(self.conv(x))
        return self.bn(self.conv(2 * x)) - 1


class LineByLine(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.conv(x)
            x = self.relu(self.bn(x))
            if x.sum() > 1e9:
                break
        return x


class WithoutTheNorm(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else self.conv(x)


class NormOfSomethingElse(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else self.bn(x)


class Kept(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        return z if x.sum() > 0 else y


class KeptInTheSameLine(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.bn(y) + (0 if x.sum() > 0 else y)
        return y


class HandedOn(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else raw(self, x)


def raw(network: Deciding, x: Tensor) -> Tensor:
    return network.conv(x)


class ByName(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else self._modules["conv"](x)


class WeightRead(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y if x.sum() > 0 else y * self.conv.weight.sum()


class Plain(Deciding):
    """Decides nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Apart(Deciding):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = 2 * x
        return self.bn(y) + z


class Around(nn.Module):
    """Another module that decides, with the convolution in a part of it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return y if x.sum() > 0 else -y


class ReachingIn(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > 0 else self.part.conv(x)


class TakingApart(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > 0 else self.part[0](x)


class OneByOne(Around):
    def forward(self, x: Tensor) -> Tensor:
        once = x.sum() < 0
        for layer in self.part:
            x = layer(x)
            if once:
                break
        return x


def in_a_row() -> nn.Module:
    made = Deciding()
    return nn.Sequential(made.conv, made.bn, nn.ReLU())


def patched() -> nn.Module:
    made = Nested()
    made.forward = MethodType(WithoutTheNorm.forward, made)
    return made


CERTAIN: dict[str, Callable[[], nn.Module]] = {
    "nested calls": Nested, "one way only": InOneWayOnly, "both ways": InBothWays, "line by line": LineByLine,
    "a part that decides nothing": lambda: Around(Plain()), "not next to each other": lambda: Around(Apart()),
    "a sequence": lambda: Around(in_a_row()), "a part of a part": lambda: Around(nn.Sequential(Nested())),
    "a sequence in a sequence": lambda: Around(nn.Sequential(in_a_row())),
}  # fmt: skip
DOUBTFUL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "without the norm": (WithoutTheNorm, "uses them in other ways, too"),
    "the norm of something else": (NormOfSomethingElse, "uses them in other ways, too"),
    "kept": (Kept, "uses them in other ways, too"),
    "kept in the same line": (KeptInTheSameLine, "uses them in other ways, too"),
    "handed on": (HandedOn, "hands its parts on"),
    "by name": (ByName, "hands its parts on"),
    "weight read": (WeightRead, "uses them in other ways, too"),
    "reached into": (lambda: ReachingIn(Plain()), "ReachingIn reaches into its parts"),
    "taken apart": (lambda: TakingApart(in_a_row()), "TakingApart takes part apart"),
    "one by one": (lambda: OneByOne(in_a_row()), "they run outside of Sequential"),
    "forward replaced on the object": (patched, "cannot be traced"),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_folds_and_both_ways_stay(name):
    torch.manual_seed(0)
    model = CERTAIN[name]().eval()
    x = torch.rand(2, 3, 5, 7)
    (site,) = find_sites(model, x).sites
    (proposal,) = FOLD.full(site)
    student = apply(model, Plan((Edit(site.name, FOLD.name, proposal.block, absorbs=proposal.absorbs),)), x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())
    for each in (x, -x):
        torch.testing.assert_close(student(each), model(each), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_is_not_says_why(name):
    make, reason = DOUBTFUL[name]
    (site,) = find_sites(make(), torch.rand(2, 3, 5, 7)).sites
    assert site.norm is None
    assert "decides by values, so that what follows is not certain: " in site.norm_refusal
    assert reason in site.norm_refusal
    assert FOLD.refuse(site) == site.norm_refusal
