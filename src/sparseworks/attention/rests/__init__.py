"""Rests: what stands in for units that are not computed, one file a paper."""

from sparseworks.attention.rests.centroids import Centroids as Centroids
from sparseworks.attention.rests.conditional import Conditional as Conditional
from sparseworks.attention.rests.features import RandomFeatures as RandomFeatures
from sparseworks.attention.rests.pyramid import Pyramid as Pyramid
from sparseworks.attention.rests.reshape import Reshape as Reshape
