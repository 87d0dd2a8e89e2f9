"""A compiled caller breaks its graph here: entries found for one size of maps are no graph.

A file of its own, since `torch.compiler.disable` imports the compiler, which eager users should not wait for.
"""

from __future__ import annotations

from typing import Any

import torch

from sparseworks.exec.conv.gradients import with_gradients

convolve: Any = torch.compiler.disable(with_gradients)
