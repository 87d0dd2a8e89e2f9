"""Whole jobs: compress a model, search for a goal, and the embedded default."""

from sparseworks.jobs.compress import Recover, compress
from sparseworks.jobs.goal import Goal, UnreachableError
from sparseworks.jobs.result import Result
from sparseworks.jobs.search import search

__all__ = ["Goal", "Recover", "Result", "UnreachableError", "compress", "search"]
