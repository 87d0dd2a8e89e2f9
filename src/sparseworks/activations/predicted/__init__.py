"""Contextual sparsity beyond heads and neurons: filters for an image, experts for a token, core neurons and tokens for a prompt."""

from sparseworks.activations.predicted.core import CoreNeurons, CoreRun, core_matching
from sparseworks.activations.predicted.experts import (
    DynamicExperts,
    ExpertFeedForward,
    HoyerPenalty,
    Router,
    feed_forwards,
    split_experts,
    square_hoyer,
)
from sparseworks.activations.predicted.filters import (
    FilterMass,
    PredictedFilters,
    filter_loss,
    filter_phase,
    predict_filters,
    predicted,
)

__all__ = [
    "CoreNeurons",
    "CoreRun",
    "DynamicExperts",
    "ExpertFeedForward",
    "FilterMass",
    "HoyerPenalty",
    "PredictedFilters",
    "Router",
    "core_matching",
    "feed_forwards",
    "filter_loss",
    "filter_phase",
    "predict_filters",
    "predicted",
    "split_experts",
    "square_hoyer",
]
