"""Models and results on disk: load by name, save with supports and plan, export, and readers of other formats."""

from sparseworks.io.export import export_dense
from sparseworks.io.llmcompressor import load_llmcompressor
from sparseworks.io.load import load
from sparseworks.io.models import EMBEDDED, assets_of, load_tokenizer
from sparseworks.io.save import LAYOUTS, save
from sparseworks.io.sparsity import Sparsity, read, sparsity_of

__all__ = [
    "EMBEDDED",
    "LAYOUTS",
    "Sparsity",
    "assets_of",
    "export_dense",
    "load",
    "load_llmcompressor",
    "load_tokenizer",
    "read",
    "save",
    "sparsity_of",
]
