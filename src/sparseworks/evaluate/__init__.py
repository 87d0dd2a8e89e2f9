"""Measuring quality: tasks, metrics, and the text that calibrates and tests a model on a machine without data."""

from __future__ import annotations

from sparseworks.core.record import Record, compare, describe
from sparseworks.evaluate.activation_law import ActivationLaw, fit_activation_law
from sparseworks.evaluate.agents import IndependentActors
from sparseworks.evaluate.blobs import BlobNet, Blobs, Detecting
from sparseworks.evaluate.calibration import calibration_error
from sparseworks.evaluate.classification import Classification
from sparseworks.evaluate.collection import Collection, read_collection
from sparseworks.evaluate.documentation import Passage, documentation_passages, documentation_retrieval
from sparseworks.evaluate.encoder import Encoder
from sparseworks.evaluate.games import CartPole, ChannelAccess, Gridworld
from sparseworks.evaluate.laws import SparseLaw, fit_law
from sparseworks.evaluate.perplexity import Perplexity
from sparseworks.evaluate.planted import Planted, circle, deeper, hats, helix, plant, planted_data, relu_unit
from sparseworks.evaluate.prompt import VisualPrompt, linear_probe
from sparseworks.evaluate.ranking import average_precision, ndcg, recall
from sparseworks.evaluate.reber import Reber
from sparseworks.evaluate.retrieval import Retrieval
from sparseworks.evaluate.similarity import OutputSimilarity
from sparseworks.evaluate.split import dirichlet_split
from sparseworks.evaluate.task import TASKS, Result, Task, task_for
from sparseworks.evaluate.text import lm_batches, lm_windows, piece_batches, read_texts, timing_batch, token_batches
from sparseworks.evaluate.topics import TopicCorpus
from sparseworks.evaluate.zoo import Twins, compare_twins
from sparseworks.io.beir import read_qrels

__all__ = [
    "TASKS",
    "ActivationLaw",
    "BlobNet",
    "Blobs",
    "CartPole",
    "ChannelAccess",
    "Classification",
    "Collection",
    "Detecting",
    "Encoder",
    "Gridworld",
    "IndependentActors",
    "OutputSimilarity",
    "Passage",
    "Perplexity",
    "Planted",
    "Reber",
    "Record",
    "Result",
    "Retrieval",
    "SparseLaw",
    "Task",
    "TopicCorpus",
    "Twins",
    "VisualPrompt",
    "average_precision",
    "calibration_error",
    "circle",
    "compare",
    "compare_twins",
    "deeper",
    "describe",
    "dirichlet_split",
    "documentation_passages",
    "documentation_retrieval",
    "fit_activation_law",
    "fit_law",
    "hats",
    "helix",
    "linear_probe",
    "lm_batches",
    "lm_windows",
    "ndcg",
    "piece_batches",
    "plant",
    "planted_data",
    "read_collection",
    "read_qrels",
    "read_texts",
    "recall",
    "relu_unit",
    "task_for",
    "timing_batch",
    "token_batches",
]  # fmt: skip
