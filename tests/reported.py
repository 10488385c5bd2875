"""A small run to report, and what a browser would see of its page."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import torch
from torch import nn

from reconv.costing.summary import summary
from reconv.planning.considered import Considered
from reconv.planning.plan import Edit, Plan, Refusal
from reconv.rewriting.apply import apply
from reconv.rewriting.store import save_run
from reconv.spec import parse
from reconv.surgery.fingerprint import structure_hash

INPUT = torch.rand((1, 3, 9, 7), generator=torch.Generator().manual_seed(1))
DATA = torch.rand((12, 3, 9, 7), generator=torch.Generator().manual_seed(2))
SMALL = parse("ic8oc6k1x5p0x2nb -> ic6oc12k5x1p2x0")
VOID = {"meta", "img", "br", "rect", "polyline", "polygon", "circle", "line", "path", "ellipse"}


def net() -> nn.Module:
    """As in commanded.py: two convolutions, a batch norm behind the first."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(12, 5)).eval()  # fmt: skip


FOLD = Edit("0", "fold_batch_norm", parse("ic3oc8k3x3p1"), 0.0, absorbs=("1",))
SMALLER = Edit("3", "asymmetric", SMALL, 0.25, 0.5)


def plan(**changes: object) -> Plan:
    made = Plan((SMALLER, FOLD), (Refusal("3", "separable", "too wide"),), budget="macs=0.6", considered=(
        Considered("3", "asymmetric", SMALL, 0.5, 1.0, 1.0, 1.0, 0.125, 0.25, "taken"),
        Considered("3", "bottleneck", parse("ic8oc2k1x1 -> ic2oc12k5x5p2"), 0.75, verdict="it is slower"),
        Considered("0", "remove", parse("ic3oc8k1x1nb"), -0.5, verdict="it moves too much")))  # fmt: skip
    return replace(made, **changes)


def run_folder(folder: Path, ref: str = "net.py:make", **config: object) -> Plan:
    model = net()
    made = plan(model={"ref": ref, "hash": structure_hash(model)})
    student = apply(model, made, INPUT)
    save_run(folder, model=student, plan=made, before=summary(model, INPUT), after=summary(student, INPUT), error=0.5,
             config={"model": {"ref": ref, "hash": structure_hash(model), **config},
                     "settings": {"input": ["1x3x9x7"], "budget": "macs=0.6"}})  # fmt: skip
    return made


class Checked(HTMLParser):
    """What a browser would see; every tag is closed, nothing is fetched, nothing is run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "iframe", "link", "object")
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#"))
                if tag == "img":
                    self.images.append(b64decode(value.partition(",")[2]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data
