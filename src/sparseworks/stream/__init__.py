"""Finding sites in any torch or Hugging Face model, and replaying it block by block in bounded memory."""

from __future__ import annotations

from sparseworks.stream.blocks import Block, block_of, blocks
from sparseworks.stream.capture import Capture, capture, chains
from sparseworks.stream.couplings import couplings, select_units
from sparseworks.stream.dependency import dependency_groups
from sparseworks.stream.gather import gather
from sparseworks.stream.gradients import gather_gradients
from sparseworks.stream.memory import Memory, peak_bytes, predict
from sparseworks.stream.replay import replay
from sparseworks.stream.residency import InMemory, Residency, held
from sparseworks.stream.sites import sites
from sparseworks.stream.slicing import slice_units, zero_units

__all__ = [
    "Block", "Capture", "InMemory", "Memory", "Residency", "block_of", "blocks", "capture", "chains", "couplings",
    "dependency_groups", "gather", "gather_gradients", "held", "peak_bytes", "predict", "replay", "select_units", "sites",
    "slice_units", "zero_units",
]  # fmt: skip
