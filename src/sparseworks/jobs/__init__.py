"""Whole jobs: compress a model, search for a goal, and the embedded default."""

from sparseworks.jobs.compress import Recover, compress
from sparseworks.jobs.result import Result

__all__ = ["Recover", "Result", "compress"]
