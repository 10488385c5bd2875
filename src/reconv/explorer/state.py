"""What one panel of the page shows, read from a link's query and written into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from reconv import nn
from reconv.errors import ConvError
from reconv.explorer.kinds import CONTROLS, KINDS, Kind, Layer
from reconv.layers import block_of
from reconv.reporting.drawn import OFFSETS
from reconv.spec import Activation, Block, Branches, output_shape

CHOICES = {"kind": tuple(KINDS), "dims": ("1", "2", "3"), "offsets": OFFSETS, "numbers": ("", "1")}
USUAL_CHOICES = {"kind": "standard", "dims": "2", "offsets": "random", "numbers": ""}
WORDS = {"offset_groups": "og", "groups": "g", "output_padding": "op", "kernel_size": "k", "small": "small",
         "reduction": "r", "padded input": "n", "padding": "p", "stride": "s", "dilation": "d", "in_channels": "ic",
         "out_channels": "oc"}  # fmt: skip


@dataclass
class State:
    """The values of all controls, and what is wrong with some of them. A wrong value is shown, not used."""

    kind: Kind
    dims: int
    values: dict[str, int]
    offsets: str = "random"
    numbers: bool = False
    wrong: dict[str, str] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The controls that this kind has."""
        return (*self.kind.controls, "n")

    @property
    def layer(self) -> Layer:
        return self.kind.layer(self.values)

    @property
    def size(self) -> tuple[int, ...]:
        return (self.values["n"],) * self.dims

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.values["ic"], *self.size)

    def block(self) -> Block:
        """Raises ConvError where the values do not go together."""
        layer = self.layer
        made = getattr(nn, f"{layer.name}{self.dims}d")(*layer.args, **layer.kwargs, device="meta")
        block = block_of(made)
        return Branches(Activation("identity"), block, join=layer.joined) if layer.joined else block

    def query(self, prefix: str = "") -> str:
        pairs: dict[str, object] = {"kind": self.kind.name, "dims": self.dims}
        pairs |= {name: self.typed.get(name, self.values[name]) for name in self.names}
        if self.kind.name == "deformable":
            pairs["offsets"] = self.offsets
        if self.numbers:
            pairs["numbers"] = "1"
        return urlencode({prefix + name: value for name, value in pairs.items()})


def read(query: Mapping[str, str], prefix: str = "") -> State:
    """The state that a query asks for. Whatever is wrong in it gets a message beside its control."""
    wrong: dict[str, str] = {}
    chosen = {name: _choice(query, prefix, name, wrong) for name in CHOICES}
    kind, dims = KINDS[chosen["kind"]], int(chosen["dims"])
    state = State(kind, dims, {}, chosen["offsets"], chosen["numbers"] == "1", wrong)
    for name, control in CONTROLS.items():
        usual = kind.usual.get(name, control.usual)
        if name == "n" and "n" not in kind.usual:
            usual = {1: 12, 2: 7, 3: 4}[dims]
        text = query.get(prefix + name, "").strip()
        state.values[name] = min(usual, control.limit(dims))
        if not text or name not in state.names:
            continue
        least, most = control.least, control.limit(dims)
        if text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most:
            state.values[name] = int(text)
        else:
            state.typed[name] = text[:20]
            wrong[name] = f"{control.label} must be a whole number from {least} to {most}"
    if not wrong:
        _check(state)
    if not wrong and kind.name == "deformable" and dims == 1 and state.offsets == "rotate":
        wrong["offsets"] = "one axis cannot be rotated"
    return state


def _choice(query: Mapping[str, str], prefix: str, name: str, wrong: dict[str, str]) -> str:
    text = query.get(prefix + name, USUAL_CHOICES[name])
    if text in CHOICES[name]:
        return text
    wrong[name] = f"{name} must be one of {', '.join(c for c in CHOICES[name] if c)}"
    return USUAL_CHOICES[name]


def _check(state: State) -> None:
    """Values that do not go together: the message beside the control that it names, the first of WORDS."""
    try:
        output_shape(state.block(), (1, *state.shape))
    except ConvError as error:
        text = str(error).split(" [")[0]
        must = text.split(";")[0]
        named = (name for word, name in WORDS.items() if word in must and name in state.names)
        state.wrong[next(named, "kind")] = text
