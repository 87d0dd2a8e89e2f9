"""Encoders of texts into sparse term weights, in four slots."""

from __future__ import annotations

from sparseworks.retrieval.encoders.encoder import TermEncoder, idf_of, rows_of
from sparseworks.retrieval.encoders.heads import Binary, ExpMlp, Mlm, Mlp, TermHead, TermSide
from sparseworks.retrieval.encoders.prune import prune_codes
from sparseworks.retrieval.encoders.slots import (
    EchoPooling,
    FirstPooling,
    Idf,
    L2Norm,
    LastPooling,
    LearnedTable,
    LiteralResidual,
    Log1p,
    Log1pTwice,
    MaxPooling,
    NoImportance,
    NoNorm,
    Relu,
    SoftThreshold,
    SumPooling,
)

__all__ = [
    "Binary",
    "EchoPooling",
    "ExpMlp",
    "FirstPooling",
    "Idf",
    "L2Norm",
    "LastPooling",
    "LearnedTable",
    "LiteralResidual",
    "Log1p",
    "Log1pTwice",
    "MaxPooling",
    "Mlm",
    "Mlp",
    "NoImportance",
    "NoNorm",
    "Relu",
    "SoftThreshold",
    "SumPooling",
    "TermEncoder",
    "TermHead",
    "TermSide",
    "idf_of",
    "prune_codes",
    "rows_of",
]  # fmt: skip
