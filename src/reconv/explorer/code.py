"""The same layer in reconv, PyTorch and Keras (TensorFlow): code to copy."""

from __future__ import annotations

from reconv.explorer.keras import keras_code
from reconv.explorer.pytorch import pytorch_code
from reconv.explorer.state import State
from reconv.explorer.writer import call


def codes(state: State) -> dict[str, str]:
    """The code in each library."""
    block, channels = state.block(), state.values["ic"]
    return {"reconv": reconv_code(state), "PyTorch": pytorch_code(block, state.dims, channels),
            "TensorFlow (Keras)": keras_code(block, state.dims, channels)}  # fmt: skip


def reconv_code(state: State) -> str:
    layer = state.layer
    made = call(f"reconv.nn.{layer.name}{state.dims}d", layer.args, layer.kwargs)
    lines = ["import reconv", "import torch", "", f"layer = {made}",
             f"x = torch.rand(1, {', '.join(map(str, state.shape))})"]  # fmt: skip
    after = {"": "y = layer(x)", "sum": "y = x + layer(x)", "concat": "y = torch.cat([x, layer(x)], dim=1)"}
    return "\n".join([*lines, after[layer.joined]])
