"""Scores of units of the attention map: one file a paper."""

from sparseworks.attention.scores.exact import ExactMass as ExactMass
from sparseworks.attention.scores.pages import PageBound as PageBound
from sparseworks.attention.scores.pooled import PooledProduct as PooledProduct
