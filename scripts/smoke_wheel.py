"""What an installed wheel must do: load its kernels, use torch's thread pool and no second one, and compute."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import sparseworks as sw
from sparseworks.exec.native import features, native, why_missing

assert native() is not None, why_missing()
linear = nn.Linear(256, 128)
support = sw.Support.from_mask(torch.rand(128, 256) < 0.2)
layer = sw.SparseLinear.from_linear(linear, support, kernel="tile-fp32")
x = torch.randn(64, 256)
torch.testing.assert_close(layer(x), nn.functional.linear(x, linear.weight * support.mask(), linear.bias))
maps = Path("/proc/self/maps")
pools = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line} if maps.exists() else set()
assert len(pools) <= 1, f"more than one thread pool: {pools}"
print(f"sparseworks from {Path(sw.__file__).parent}: {features()}, thread pool {pools or 'not seen'}")
