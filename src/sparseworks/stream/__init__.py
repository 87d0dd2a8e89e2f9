"""Finding sites in any torch or Hugging Face model, and replaying it block by block in bounded memory."""

from __future__ import annotations

from sparseworks.stream.blocks import Block, block_of, blocks
from sparseworks.stream.gather import gather
from sparseworks.stream.gradients import gather_gradients
from sparseworks.stream.memory import Memory, peak_bytes, predict
from sparseworks.stream.replay import Capture, capture, chains, replay
from sparseworks.stream.residency import InMemory, Residency, held
from sparseworks.stream.sites import sites

__all__ = [
    "Block", "Capture", "InMemory", "Memory", "Residency", "block_of", "blocks", "capture", "chains", "gather",
    "gather_gradients", "held", "peak_bytes", "predict", "replay", "sites",
]  # fmt: skip
