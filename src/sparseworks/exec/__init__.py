"""Execution: formats, kernels, sparse layers, and the plan that chooses among them by measurement.

`sparseworks.exec.plan` is the function, as in `from sparseworks.exec import plan`; the module of that name is reached by
`from sparseworks.exec.plan import ...` only.
"""

from __future__ import annotations

import sparseworks.exec.formats
import sparseworks.exec.kernels  # noqa: F401 - both register what they hold
from sparseworks.exec import measure
from sparseworks.exec.between import add_rms_norm, gated, rms_norm
from sparseworks.exec.conv import SparseConv2d
from sparseworks.exec.decoder import SparseTransformerLayer, sparse_layer
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.fusion import fuse, unfuse
from sparseworks.exec.kernel import KERNELS, Call, Kernel
from sparseworks.exec.ladder import Ladder, Rung
from sparseworks.exec.memory import reuse_memory
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.pointwise import SparseConv1x1
from sparseworks.exec.row import Row
from sparseworks.exec.skipping import SkippingLinear
from sparseworks.exec.verify import Check, verify

from sparseworks.exec.plan import Plan, plan  # isort: skip - last: the function takes the place of its module

__all__ = [
    "FORMATS", "KERNELS", "Call", "Check", "Format", "Kernel", "Ladder", "Packed", "Plan", "Row", "Rung", "SkippingLinear",
    "SparseConv1x1", "SparseConv2d", "SparseLinear", "SparseTransformerLayer", "add_rms_norm", "fuse", "gated", "measure", "plan",
    "reuse_memory", "rms_norm", "sparse_layer", "unfuse", "verify",
]  # fmt: skip
