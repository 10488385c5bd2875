"""The package without native kernels: it configures without a compiler, and computes all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

WITHOUT = """
import torch, reconv
from reconv.ops.native import native_isa
assert native_isa() is None
x = torch.randint(-4, 5, (2, 6, 9, 8)).float().requires_grad_()
for layer in (reconv.nn.DepthwiseConv2d(6, 5, padding=2), reconv.nn.SeparableConv2d(6, 9, 3),
              reconv.nn.DeformConv2d(6, 4, 3, padding=1), reconv.nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6)):
    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
w = torch.randint(-4, 5, (6, 1, 3, 3)).float()
assert torch.equal(reconv.functional.conv2d(x, w, groups=6), torch.nn.functional.conv2d(x, w, groups=6))
"""


def test_configures_and_builds_nothing_without_a_compiler(tmp_path):
    known = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}
    program = f"-DCMAKE_MAKE_PROGRAM={BIN / 'ninja'}"
    run = subprocess.run([BIN / "cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", program],
                         env=known | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "No C++ compiler was found: reconv will compute with PyTorch's own kernels" in run.stderr
    subprocess.run([BIN / "cmake", "--build", tmp_path], check=True, capture_output=True)
    assert not list(tmp_path.rglob("*.so"))


def test_computes_without_native_kernels():
    environment = os.environ | {"RECONV_KERNELS": "none"}
    run = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    told = subprocess.run([BIN / "reconv", "kernels", "ic8oc8k3x3p1g8", "--input", "1x8x9x9"], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "no native kernels" in told.stderr
    assert "the package was built without native kernels" in told.stdout
