"""Kernels for NVIDIA GPUs in Triton, one file each. Importing this package does not import Triton; its modules do.

They are written for Hopper (H100, H200) and run on every GPU that Triton supports. Triton's interpreter runs them on the CPU, slowly,
if `TRITON_INTERPRET=1` is set before Triton is first imported: that is how their arithmetic is tested without a GPU.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def why_missing() -> str | None:
    """Why no kernel of this package can run, or None."""
    return None if find_spec("triton") else "Triton is not installed (pip install 'sparseworks[gpu]')"


def on_gpu(x: Tensor) -> bool:
    """Whether kernels of this package can take x: it lies on a GPU, and Triton is there."""
    return x.is_cuda and why_missing() is None
