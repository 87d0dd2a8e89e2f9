"""Sparse convolutions for inference, on channel-major maps, without patches."""

from __future__ import annotations

from sparseworks.exec.conv.kernel import TapsKernel as TapsKernel
from sparseworks.exec.conv.layer import SparseConv2d as SparseConv2d
