"""Checks an installed wheel with nothing but its dependencies: python tests/installed.py"""

from __future__ import annotations

import torch

import reconv
from reconv.ops.native import native_isa, native_version

x, weight = torch.randint(-4, 5, (1, 18, 9, 9)).float(), torch.randint(-4, 5, (18, 1, 3, 3)).float()
found = reconv.functional.conv2d(x, weight, None, 1, 1, 1, 18)
assert torch.equal(found, torch.nn.functional.conv2d(x, weight, None, 1, 1, 1, 18))
assert native_isa() is not None, "the wheel has no native kernels"
print(f"reconv {reconv.__version__}, {native_version()}")
