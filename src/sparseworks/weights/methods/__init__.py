"""Published methods as compositions: a name, the nouns it puts together, where it comes from, and what it claims."""

from __future__ import annotations

from typing import Any

from sparseworks.core.method import METHODS
from sparseworks.weights.channels import CHANNELS
from sparseworks.weights.methods import cycles as cycles
from sparseworks.weights.methods import detectors as detectors
from sparseworks.weights.methods import factors as factors
from sparseworks.weights.methods import nm as nm
from sparseworks.weights.methods import oneshot as oneshot
from sparseworks.weights.methods import scratch as scratch
from sparseworks.weights.methods import shrink as shrink
from sparseworks.weights.methods import streams as streams
from sparseworks.weights.methods import structured as structured
from sparseworks.weights.methods import training as training


def method_table() -> list[dict[str, Any]]:
    """Every registered method, of weights and of channels, as plain data: name, family, catalog (numbers), source, composition, status."""
    return [
        {
            "name": m.name,
            "family": m.family,
            "catalog": list(m.catalog),
            "source": str(m.source),
            "composition": m.composition,
            "status": m.status,
        }
        for m in (*METHODS, *CHANNELS)
    ]
