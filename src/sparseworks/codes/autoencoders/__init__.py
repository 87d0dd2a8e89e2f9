"""Sparse autoencoders on activations: rules of latents, training of many at once, export, splicing back, metrics."""

from __future__ import annotations

from sparseworks.codes.autoencoders.absorption import Absorption, absorption
from sparseworks.codes.autoencoders.attribution import HeadAttribution
from sparseworks.codes.autoencoders.auxiliary import AUXILIARIES, Auxiliary
from sparseworks.codes.autoencoders.bilinear import BilinearAutoencoder, hoyer_density
from sparseworks.codes.autoencoders.dark_matter import ErrorSplit, dark_matter
from sparseworks.codes.autoencoders.disentangle import Disentanglement, disentanglement
from sparseworks.codes.autoencoders.features import FeatureTable, collect_features, logit_effects
from sparseworks.codes.autoencoders.fidelity import Cosine, NormRatio, ReconstructionBias
from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment
from sparseworks.codes.autoencoders.median import geometric_median
from sparseworks.codes.autoencoders.method import AutoencoderMethod, add_autoencoder
from sparseworks.codes.autoencoders.metrics import METRICS, atom_recovery, match_atoms, measure, support_f1
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.plain import Plain
from sparseworks.codes.autoencoders.prefixes import PREFIXES, Prefixes
from sparseworks.codes.autoencoders.probes import pooled, sparse_probing
from sparseworks.codes.autoencoders.protocol import Config
from sparseworks.codes.autoencoders.record import ActivationStream
from sparseworks.codes.autoencoders.splice import ce_recovered, splice
from sparseworks.codes.autoencoders.steering import Preferences, SteeringVector, preference_accuracy, yapo
from sparseworks.codes.autoencoders.stream import Batch, Rows, Stream
from sparseworks.codes.autoencoders.supervised import (
    Edited,
    Evaluation,
    SupervisedDictionary,
    sae_principled_eval,
    sparse_edits,
    union_f1,
)
from sparseworks.codes.autoencoders.target import TARGETS, Target
from sparseworks.codes.autoencoders.train import train_autoencoder, train_autoencoders
from sparseworks.codes.autoencoders.trainer import Schedule, Trainer

__all__ = [
    "AUXILIARIES",
    "LATENTS",
    "METRICS",
    "PREFIXES",
    "TARGETS",
    "Absorption",
    "ActivationStream",
    "AutoencoderMethod",
    "Auxiliary",
    "Batch",
    "BilinearAutoencoder",
    "Coded",
    "Config",
    "Cosine",
    "Disentanglement",
    "Edited",
    "ErrorSplit",
    "Evaluation",
    "FeatureTable",
    "HeadAttribution",
    "LatentRule",
    "Moment",
    "NormRatio",
    "Plain",
    "Preferences",
    "Prefixes",
    "ReconstructionBias",
    "Rows",
    "Schedule",
    "SparseAutoencoder",
    "SteeringVector",
    "Stream",
    "SupervisedDictionary",
    "Target",
    "Trainer",
    "absorption",
    "add_autoencoder",
    "atom_recovery",
    "ce_recovered",
    "collect_features",
    "dark_matter",
    "disentanglement",
    "geometric_median",
    "hoyer_density",
    "logit_effects",
    "match_atoms",
    "measure",
    "pooled",
    "preference_accuracy",
    "sae_principled_eval",
    "sparse_edits",
    "sparse_probing",
    "splice",
    "support_f1",
    "train_autoencoder",
    "train_autoencoders",
    "union_f1",
    "yapo",
]
