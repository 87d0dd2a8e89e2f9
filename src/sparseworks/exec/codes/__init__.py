"""Kernels of sparse codes: encoder products that keep k a row, and sums of k dictionary rows."""

from __future__ import annotations

from sparseworks.exec.codes.decode import decode
from sparseworks.exec.codes.encode import encode_topk

__all__ = ["decode", "encode_topk"]
