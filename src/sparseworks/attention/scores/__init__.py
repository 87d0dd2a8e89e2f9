"""Scores of units of the attention map: one file a paper."""

from sparseworks.attention.scores.anchor import AnchorGap as AnchorGap
from sparseworks.attention.scores.centroids import Centroids as Centroids
from sparseworks.attention.scores.channels import ChannelProduct as ChannelProduct
from sparseworks.attention.scores.coverage import Coverage as Coverage
from sparseworks.attention.scores.draft import DraftMap as DraftMap
from sparseworks.attention.scores.draft import Nearness as Nearness
from sparseworks.attention.scores.exact import ExactMass as ExactMass
from sparseworks.attention.scores.hashing import Collisions as Collisions
from sparseworks.attention.scores.indexer import TwoStageIndexer as TwoStageIndexer
from sparseworks.attention.scores.landmarks import Landmarks as Landmarks
from sparseworks.attention.scores.logical import LogicalPages as LogicalPages
from sparseworks.attention.scores.logical import StreamingHeads as StreamingHeads
from sparseworks.attention.scores.nucleus import Nucleus as Nucleus
from sparseworks.attention.scores.pages import PageBound as PageBound
from sparseworks.attention.scores.pooled import PooledProduct as PooledProduct
from sparseworks.attention.scores.probes import ProbeMass as ProbeMass
from sparseworks.attention.scores.residual import CentroidError as CentroidError
from sparseworks.attention.scores.reuse import LayerReuse as LayerReuse
from sparseworks.attention.scores.sampled import SampledMass as SampledMass
from sparseworks.attention.scores.slashes import FlexBlocks as FlexBlocks
from sparseworks.attention.scores.slashes import VerticalSlash as VerticalSlash
from sparseworks.attention.scores.sparge import SelfSimilar as SelfSimilar
from sparseworks.attention.scores.tree import TreeSearch as TreeSearch
from sparseworks.attention.scores.vote import HeadVote as HeadVote
