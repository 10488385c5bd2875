"""Whole modules that rules make stronger: several convolutions with something between them, on maps of one size."""

from __future__ import annotations

from reconv.ruleset.offers import bad_tensors
from reconv.spec import Activation, Block, Branches, Chain, ConvSpec, Deform, Gate, convs, out_channels
from reconv.surgery.sites import Site


def no_stage(site: Site) -> str | None:
    """Why a module is none that a shortcut helps; None where it is one."""
    if reason := site.refusal or bad_tensors(site):
        return reason
    if sum(1 for _ in convs(site.block)) < 2 or not _bends(site.block):
        return "it has no two convolutions with an activation between: see those of its convolutions"
    if any(call.input_shape[2:] != call.output_shape[2:] for call in site.calls):
        before, after = ("×".join(map(str, s[2:])) for s in (site.input_shape, site.calls[0].output_shape))
        return f"its maps change their size: {before} to {after}"
    return None


def _bends(block: Block) -> bool:
    """Whether it is not linear."""
    if isinstance(block, Chain | Branches):
        return any(map(_bends, block.blocks))
    return isinstance(block, Gate | Deform) or (isinstance(block, Activation) and block.name != "identity")


def around(site: Site) -> ConvSpec:
    """A 1×1 beside a whole module: of each channel by itself where they stay as many, else of all."""
    into = site.input_shape[1]
    out = out_channels(site.block, into)
    dims = len(site.input_shape) - 2
    return ConvSpec(in_channels=into, out_channels=out, kernel_size=(1,) * dims, groups=into if into == out else 1,
                    bias=False)  # fmt: skip
