"""Weights: post-training pruning, recovery with the support fixed, and the methods that compose them."""

from __future__ import annotations

from sparseworks.core.method import method
from sparseworks.weights.cycles import Cycled, Lap, Round, average, cycles, greedy_average, recalibrate
from sparseworks.weights.distill import Embedding, Logits, Similarity, SquareHead, Task, Term
from sparseworks.weights.enforce import keep_support
from sparseworks.weights.folder import prune_folder
from sparseworks.weights.matrix import prune_matrix
from sparseworks.weights.methods import method_table
from sparseworks.weights.prune import prune
from sparseworks.weights.recover import Recovery, recover
from sparseworks.weights.streaming import Pruned, SiteRow
from sparseworks.weights.track import track_movement
from sparseworks.weights.train import Sparsifier

# `prune` and `recover` name functions here; their modules are reached by `from sparseworks.weights.prune import ...`.
__all__ = [
    "Cycled",
    "Embedding",
    "Lap",
    "Logits",
    "Pruned",
    "Recovery",
    "Round",
    "Similarity",
    "SiteRow",
    "Sparsifier",
    "SquareHead",
    "Task",
    "Term",
    "average",
    "cycles",
    "greedy_average",
    "keep_support",
    "method",
    "method_table",
    "prune",
    "prune_folder",
    "prune_matrix",
    "recalibrate",
    "recover",
    "track_movement",
]  # fmt: skip
