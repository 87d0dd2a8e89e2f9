"""The rules of latents, one file each; importing them registers them."""

from __future__ import annotations

from sparseworks.codes.autoencoders.rules.batch_topk import BatchTopK
from sparseworks.codes.autoencoders.rules.bilinear import Bilinear
from sparseworks.codes.autoencoders.rules.feature_choice import FeatureChoice
from sparseworks.codes.autoencoders.rules.gated import Gated
from sparseworks.codes.autoencoders.rules.gradient import GradientTopK
from sparseworks.codes.autoencoders.rules.jumprelu import JumpReLU
from sparseworks.codes.autoencoders.rules.pursuit import MatchingPursuit
from sparseworks.codes.autoencoders.rules.relu import ReLU
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds
from sparseworks.codes.autoencoders.rules.topk import AbsoluteTopK, KSparse, TopK

__all__ = [
    "AbsoluteTopK",
    "BatchTopK",
    "Bilinear",
    "FeatureChoice",
    "Gated",
    "GradientTopK",
    "JumpReLU",
    "KSparse",
    "MatchingPursuit",
    "ReLU",
    "Thresholds",
    "TopK",
]
