"""Configuration and tokenizer files that travel with a model."""

from __future__ import annotations

import copy
import json
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from sparseworks.core.errors import ModelError

_TRAVELS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "modules.json",
    "sentence_*_config.json", "config_sentence_transformers.json",
)  # fmt: skip


def asset_files(folder: Path | str | None) -> dict[str, Path]:
    """Name -> file of what to copy from a model's folder: tokenizer and generation files, and sentence-transformers modules.

    `config.json` is written from the model itself; weights and their indices are left out.

    Raises:
        ModelError: the folder does not exist.
    """
    if folder is None:
        return {}
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"The folder of the original model, {folder}, does not exist.")
    files = {
        p.name: p for p in sorted(folder.iterdir()) if p.is_file() and any(fnmatchcase(p.name, t) for t in _TRAVELS)
    }
    return files | _sentence_modules(folder)


def _sentence_modules(folder: Path) -> dict[str, Path]:
    """Configurations of pooling and the like, in the subfolders that `modules.json` names."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return {}
    paths = [m.get("path", "") for m in json.loads(listing.read_text())]
    inside = [p for p in paths if p and Path(p).name == p]
    return {f"{p}/config.json": folder / p / "config.json" for p in inside if (folder / p / "config.json").is_file()}


def config_text(model: nn.Module) -> str | None:
    """`config.json` of a Hugging Face model as it is now (its class, sizes and type), or None for any other module."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]  # type: ignore[union-attr]
    kept = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if kept is not None:
        setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", kept)
    return config.to_json_string()  # type: ignore[union-attr]
