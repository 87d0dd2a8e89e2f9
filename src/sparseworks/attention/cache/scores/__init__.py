"""Scores of KV tokens: one file a paper."""

from sparseworks.attention.cache.scores.accumulated import Accumulated as Accumulated
from sparseworks.attention.cache.scores.block import BlockSaliency as BlockSaliency
from sparseworks.attention.cache.scores.expected import ExpectedAttention as ExpectedAttention
from sparseworks.attention.cache.scores.local import LocalSum as LocalSum
from sparseworks.attention.cache.scores.norm import KeyNorm as KeyNorm
from sparseworks.attention.cache.scores.normalised import NormalisedMass as NormalisedMass
from sparseworks.attention.cache.scores.window import WindowVote as WindowVote
