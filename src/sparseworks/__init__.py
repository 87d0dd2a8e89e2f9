"""Sparseworks: every kind of sparsity in machine learning, as selection under a budget.

import sparseworks as sw
model = sw.load("path-or-hub-id")
result = sw.compress(model, sw.method("wanda", pattern="2:4"), data=texts)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparseworks.activations import sparsify_activations as sparsify_activations
    from sparseworks.attention.hf import attention as attention
    from sparseworks.codes import SparseAutoencoder as SparseAutoencoder
    from sparseworks.codes import code as code
    from sparseworks.codes import train_autoencoder as train_autoencoder
    from sparseworks.codes import train_autoencoders as train_autoencoders
    from sparseworks.core.codes import Codes as Codes
    from sparseworks.core.method import Method as Method
    from sparseworks.core.operator import LinearOperator as LinearOperator
    from sparseworks.core.pattern import Pattern as Pattern
    from sparseworks.core.published import method as method
    from sparseworks.core.recipe import Recipe as Recipe
    from sparseworks.core.select import select as select
    from sparseworks.core.select import select_across as select_across
    from sparseworks.core.select import select_bounded as select_bounded
    from sparseworks.core.site import Site as Site
    from sparseworks.core.support import Support as Support
    from sparseworks.exec import Plan as Plan
    from sparseworks.exec import SparseConv1x1 as SparseConv1x1
    from sparseworks.exec import SparseConv2d as SparseConv2d
    from sparseworks.exec import SparseLinear as SparseLinear
    from sparseworks.exec import plan as plan
    from sparseworks.exec.attention import attend as attend
    from sparseworks.exec.training import TrainableSparseConv2d as TrainableSparseConv2d
    from sparseworks.exec.training import TrainableSparseLinear as TrainableSparseLinear
    from sparseworks.exec.training import trainable as trainable
    from sparseworks.io import load as load
    from sparseworks.io import load_tokenizer as load_tokenizer
    from sparseworks.jobs import Goal as Goal
    from sparseworks.jobs import Recover as Recover
    from sparseworks.jobs import Result as Result
    from sparseworks.jobs import compress as compress
    from sparseworks.retrieval import Index as Index
    from sparseworks.retrieval import SparseVectors as SparseVectors
    from sparseworks.stream import sites as sites
    from sparseworks.weights import Sparsifier as Sparsifier
    from sparseworks.weights import cycles as cycles
    from sparseworks.weights import factorise as factorise
    from sparseworks.weights import factorise_matrix as factorise_matrix
    from sparseworks.weights import isoflop as isoflop
    from sparseworks.weights import prune as prune
    from sparseworks.weights import prune_folder as prune_folder
    from sparseworks.weights import prune_matrix as prune_matrix
    from sparseworks.weights import recover as recover
    from sparseworks.weights import reparametrise as reparametrise

__version__ = "0.1.0"

# Public name -> module that defines it; modules load on first use so that `import sparseworks` stays light.
_PUBLIC = {
    "Codes": "core.codes",
    "Goal": "jobs",
    "Index": "retrieval",
    "Method": "core.method",
    "Pattern": "core.pattern",
    "Recipe": "core.recipe",
    "Site": "core.site",
    "Support": "core.support",
    "SparseLinear": "exec",
    "SparseVectors": "retrieval",
    "SparseConv1x1": "exec",
    "SparseConv2d": "exec",
    "Plan": "exec",
    "attend": "exec.attention",
    "attention": "attention",
    "code": "codes",
    "Recover": "jobs",
    "Result": "jobs",
    "plan": "exec",
    "TrainableSparseConv2d": "exec.training",
    "TrainableSparseLinear": "exec.training",
    "trainable": "exec.training",
    "LinearOperator": "core.operator",
    "Sparsifier": "weights",
    "compress": "jobs",
    "cycles": "weights",
    "factorise": "weights",
    "factorise_matrix": "weights",
    "isoflop": "weights",
    "load": "io",
    "load_tokenizer": "io",
    "method": "core.published",
    "prune": "weights",
    "prune_folder": "weights",
    "prune_matrix": "weights",
    "recover": "weights",
    "reparametrise": "weights",
    "select": "core.select",
    "select_across": "core.select",
    "select_bounded": "core.select",
    "sites": "stream",
    "SparseAutoencoder": "codes",
    "train_autoencoder": "codes",
    "train_autoencoders": "codes",
    "sparsify_activations": "activations",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparseworks' has no attribute {name!r}")
    module = import_module(f"sparseworks.{_PUBLIC[name]}")
    value = module if _PUBLIC[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
