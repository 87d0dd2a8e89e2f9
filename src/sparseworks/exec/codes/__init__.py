"""Kernels of sparse codes: encoder products that keep k a row, sums of k dictionary rows, coordinate descent, and least squares on growing sets of them."""

from __future__ import annotations

from sparseworks.exec.codes.across import places_across
from sparseworks.exec.codes.cholesky import BatchCholesky
from sparseworks.exec.codes.decode import decode
from sparseworks.exec.codes.descend import can_descend, descend, descend_columns
from sparseworks.exec.codes.encode import encode_topk

__all__ = ["BatchCholesky", "can_descend", "decode", "descend", "descend_columns", "encode_topk", "places_across"]
