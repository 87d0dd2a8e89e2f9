"""Kernels that multiply with packed weights; importing this package registers them in `KERNELS`."""

from __future__ import annotations

import sparseworks.exec.formats  # noqa: F401  kernels read their packed forms
from sparseworks.exec.kernels.dense import DenseKernel as DenseKernel
