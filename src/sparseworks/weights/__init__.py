"""Weights: post-training pruning, recovery with the support fixed, and the methods that compose them."""

from __future__ import annotations

from sparseworks.core.method import method
from sparseworks.weights import methods as methods
from sparseworks.weights import pages as pages
from sparseworks.weights.bits import MixedBits, search_bits
from sparseworks.weights.channels import ChannelMethod, PrunedChannels, prune_channels
from sparseworks.weights.control import overlap
from sparseworks.weights.cycles import Cycled, Lap, Round, average, cycles, greedy_average, recalibrate
from sparseworks.weights.depth import Dropped, drop_layers
from sparseworks.weights.distill import (
    AttentionSparsity,
    Embedding,
    Features,
    Logits,
    Similarity,
    SquareHead,
    Task,
    Term,
)
from sparseworks.weights.distill_maps import ChannelWise, MapError, SpatialAttention
from sparseworks.weights.enforce import keep_support
from sparseworks.weights.essential import Sweep, essential_sparsity
from sparseworks.weights.factors import Factorised, LinearOperator, factorise, factorise_matrix, reparametrise
from sparseworks.weights.folder import prune_folder
from sparseworks.weights.groups4 import quantise_groups
from sparseworks.weights.isoflop import IsoFlop, isoflop
from sparseworks.weights.matrix import prune_matrix
from sparseworks.weights.phases import Phase, prune_in_phases
from sparseworks.weights.prune import prune
from sparseworks.weights.recover import Recovery, recover
from sparseworks.weights.streaming import Pruned, SiteRow
from sparseworks.weights.track import track_movement
from sparseworks.weights.train import Sparsifier

# `prune` and `recover` name functions here; their modules are reached by `from sparseworks.weights.prune import ...`.
__all__ = [
    "AttentionSparsity",
    "ChannelMethod",
    "ChannelWise",
    "Cycled",
    "Dropped",
    "Embedding",
    "Factorised",
    "Features",
    "IsoFlop",
    "Lap",
    "LinearOperator",
    "Logits",
    "MapError",
    "MixedBits",
    "Phase",
    "Pruned",
    "PrunedChannels",
    "Recovery",
    "Round",
    "Similarity",
    "SiteRow",
    "Sparsifier",
    "SpatialAttention",
    "SquareHead",
    "Sweep",
    "Task",
    "Term",
    "average",
    "cycles",
    "drop_layers",
    "essential_sparsity",
    "factorise",
    "factorise_matrix",
    "greedy_average",
    "isoflop",
    "keep_support",
    "method",
    "overlap",
    "prune",
    "prune_channels",
    "prune_folder",
    "prune_in_phases",
    "prune_matrix",
    "quantise_groups",
    "recalibrate",
    "recover",
    "reparametrise",
    "search_bits",
    "track_movement",
]  # fmt: skip
