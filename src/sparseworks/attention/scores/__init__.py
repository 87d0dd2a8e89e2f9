"""Scores of units of the attention map: one file a paper."""

from sparseworks.attention.scores.anchor import AnchorGap as AnchorGap
from sparseworks.attention.scores.coverage import Coverage as Coverage
from sparseworks.attention.scores.draft import DraftMap as DraftMap
from sparseworks.attention.scores.draft import Nearness as Nearness
from sparseworks.attention.scores.exact import ExactMass as ExactMass
from sparseworks.attention.scores.frames import FrameThenBlock as FrameThenBlock
from sparseworks.attention.scores.hashing import Collisions as Collisions
from sparseworks.attention.scores.indexer import TwoStageIndexer as TwoStageIndexer
from sparseworks.attention.scores.pages import PageBound as PageBound
from sparseworks.attention.scores.pooled import PooledProduct as PooledProduct
from sparseworks.attention.scores.regions import ByRegion as ByRegion
from sparseworks.attention.scores.residual import CentroidError as CentroidError
from sparseworks.attention.scores.sampled import SampledMass as SampledMass
from sparseworks.attention.scores.searched import SearchedMass as SearchedMass
from sparseworks.attention.scores.skips import RunningGap as RunningGap
from sparseworks.attention.scores.sparge import SelfSimilar as SelfSimilar
from sparseworks.attention.scores.tree import TreeSearch as TreeSearch
