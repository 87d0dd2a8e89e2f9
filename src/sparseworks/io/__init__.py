"""Models and results on disk: load by name, save with supports and plan, export, and readers of other formats."""

from sparseworks.io.load import load
from sparseworks.io.models import EMBEDDED, assets_of, load_tokenizer

__all__ = ["EMBEDDED", "assets_of", "load", "load_tokenizer"]
