"""What the training comparisons of activations share: rows of one form, and where they are stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))
from common import RESULTS
from rows import Row, Rows, hardware
from torch import nn

from sparseworks.evaluate import Record


def row(label: str, density: float, model: nn.Module, *, method: str, trained: bool = True, **measured: Any) -> Row:
    """One figure.

    Args:
        density: share of the activations in question that are kept.
        trained: with the activation; otherwise it was put into a finished model.
        measured: task, metric, value, epochs, examples, seed, data, more ...
    """
    size = sum(p.numel() for p in model.parameters())
    dense = method == "dense"
    own: dict[str, Any] = {
        "start": "dense" if dense else "sparse-to-sparse" if trained else "post-training",
        "when": "never" if dense else "during" if trained else "after",
        "dynamic": not dense, "structure": "dense" if dense else "activations", "densities": {"activations": density},
        "kept": size, "parent": size, "hardware": hardware(),
    }  # fmt: skip
    return Row(label, density, Record(method=method, **{**own, **measured}))


def store(rows: Rows, path: Path | None, **more: Any) -> None:
    """A bare name goes to benchmarks/results/activations."""
    rows.store(None if path is None else path if path.parent != Path() else RESULTS / "activations" / path, **more)
