"""Activations: sparse hidden states of a finished or trained model, and what skips the weights they do not need."""

from __future__ import annotations

from sparseworks.activations import methods as methods
from sparseworks.activations import pages as pages
from sparseworks.activations.contextual import ContextualMethod, PredictedStructures, predict_structures
from sparseworks.activations.cut import CalibratedThreshold, InputCut, StatisticalTop, TopInputs
from sparseworks.activations.delta import Delta, DeltaKeys, DeltaLayer, delta_attention
from sparseworks.activations.labels import ActivationNorm, ImportanceLabel, PlainAct, Structures
from sparseworks.activations.lowrank import LowRankPath
from sparseworks.activations.measure import Nonzeros, measure_nonzeros
from sparseworks.activations.method import ActivationMethod
from sparseworks.activations.place import ActivationPlace, GateOutputs, LinearInputs
from sparseworks.activations.predict import Contextual, Predictor, gathered, recall, spearman
from sparseworks.activations.predicted import (
    CoreNeurons,
    DynamicExperts,
    FilterMass,
    core_matching,
    predict_filters,
    split_experts,
)
from sparseworks.activations.predicted import methods as _predicted  # noqa: F401  registers them
from sparseworks.activations.rotate import RotateInputs
from sparseworks.activations.score import ActivationScore, InputContribution, InputMagnitude
from sparseworks.activations.sparsify import (
    ActivationRow,
    SparseActivations,
    read_shares,
    sparsify_activations,
    unmask,
)
from sparseworks.activations.trained import TrainedMethod, train_sparse
from sparseworks.activations.trained import methods as _trained  # noqa: F401  registers them
from sparseworks.activations.transform import ActivationRepair, ModelTransform

__all__ = [
    "ActivationMethod",
    "ActivationNorm",
    "ActivationPlace",
    "ActivationRepair",
    "ActivationRow",
    "ActivationScore",
    "CalibratedThreshold",
    "Contextual",
    "ContextualMethod",
    "CoreNeurons",
    "Delta",
    "DeltaKeys",
    "DeltaLayer",
    "DynamicExperts",
    "FilterMass",
    "GateOutputs",
    "ImportanceLabel",
    "InputContribution",
    "InputCut",
    "InputMagnitude",
    "LinearInputs",
    "LowRankPath",
    "ModelTransform",
    "Nonzeros",
    "PlainAct",
    "PredictedStructures",
    "Predictor",
    "RotateInputs",
    "SparseActivations",
    "StatisticalTop",
    "Structures",
    "TopInputs",
    "TrainedMethod",
    "core_matching",
    "delta_attention",
    "gathered",
    "measure_nonzeros",
    "predict_filters",
    "predict_structures",
    "read_shares",
    "recall",
    "sparsify_activations",
    "spearman",
    "split_experts",
    "train_sparse",
    "unmask",
]
