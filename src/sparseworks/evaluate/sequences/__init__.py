"""Sequences to test attention, caches and activations on: synthetic tensors, token tasks with known answers, clips, metrics."""

from __future__ import annotations

from sparseworks.evaluate.sequences.heads import (
    band_mask,
    column_mask,
    coordinates,
    frames,
    heavy_columns,
    periodic_mask,
    planted,
    spatial_mask,
    temporal_mask,
)
from sparseworks.evaluate.sequences.metrics import (
    index_overlap,
    iou,
    kept_mask,
    mass_recall,
    mass_rows,
    overlap,
    psnr,
    rel_l2,
)
from sparseworks.evaluate.sequences.occupancy import occupancy
from sparseworks.evaluate.sequences.qkv import QKV, ar1, isolated, qkv, rotary
from sparseworks.evaluate.sequences.recall import Recall, suite, turn_by_turn, worst
from sparseworks.evaluate.sequences.repeats import Repeats, repeats
from sparseworks.evaluate.sequences.tokens import Examples, Question, distract, majority, mqar, passkey
from sparseworks.evaluate.sequences.trace import blend, drift, falling

__all__ = [
    "QKV",
    "Examples",
    "Question",
    "Recall",
    "Repeats",
    "ar1",
    "band_mask",
    "blend",
    "column_mask",
    "coordinates",
    "distract",
    "drift",
    "falling",
    "frames",
    "heavy_columns",
    "index_overlap",
    "iou",
    "isolated",
    "kept_mask",
    "majority",
    "mass_recall",
    "mass_rows",
    "mqar",
    "occupancy",
    "overlap",
    "passkey",
    "periodic_mask",
    "planted",
    "psnr",
    "qkv",
    "rel_l2",
    "repeats",
    "rotary",
    "spatial_mask",
    "suite",
    "temporal_mask",
    "turn_by_turn",
    "worst",
]
