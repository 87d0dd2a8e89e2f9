"""Sparsity trained in: activations with a defined backward pass, conversion of a model to train with them, and its inference form."""

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation, TrainedMethod
from sparseworks.activations.trained.clipped import ClippedSparse, sparse_init
from sparseworks.activations.trained.convert import (
    Neurons,
    SkippedInputs,
    SparseInputs,
    SquaredReluGlu,
    export,
    train_sparse,
)
from sparseworks.activations.trained.spark import SparkFeedForward, spark_attention
from sparseworks.activations.trained.statistical import StatisticalKeys, StatisticalTopK
from sparseworks.activations.trained.topk import BlockTopKInputs, TopKInputs, TopKNeurons, quantised, straight_through

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BlockTopKInputs",
    "ClippedSparse",
    "Neurons",
    "SkippedInputs",
    "SparkFeedForward",
    "SparseInputs",
    "SquaredReluGlu",
    "StatisticalKeys",
    "StatisticalTopK",
    "TopKInputs",
    "TopKNeurons",
    "TrainedMethod",
    "export",
    "quantised",
    "spark_attention",
    "sparse_init",
    "straight_through",
    "train_sparse",
]
