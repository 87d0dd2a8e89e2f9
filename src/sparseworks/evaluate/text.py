"""Texts from files, and batches of tokens from texts: for encoders (one text a row) and causal language models (packed)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.documentation import documentation_passages as documentation_passages
from sparseworks.evaluate.documentation import documentation_retrieval as documentation_retrieval
from sparseworks.evaluate.task import some
from sparseworks.io.lines import lines, records
from sparseworks.stream.tokens import encode, pad_id, padded, plain_tokenizer

T = TypeVar("T")

_POOL = 4096  # pieces that are sorted by length together: enough for little padding, few enough that batches differ


def read_texts(path: Path | str, *, paragraphs: bool = True) -> list[str]:
    """Texts of a `.txt` or `.jsonl` file, or of one of them with `.gz`.

    A `.txt` file gives its paragraphs (between blank lines), or itself as one text with `paragraphs=False`; a `.jsonl` file
    gives the field `text` of every record.

    Raises:
        CalibrationError: another ending, not UTF-8, damaged, a record without `text`, or nothing but blanks.
    """
    path = Path(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl":
        texts = [_field(record, where) for where, record in records(path)]
    elif kind in (".txt", ".text", ".md", ".rst"):
        whole = "\n".join(lines(path))
        texts = re.split(r"\n(?:[ \t]*\n)+", whole) if paragraphs else [whole]
    else:
        raise CalibrationError(
            f"{path}: texts are read from .txt and .jsonl files (also .gz), not from {kind or 'this'!r}."
        )
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise CalibrationError(f"{path} holds no text.")
    return texts


def token_batches(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    batch: int = 32,
    length: int = 128,
    pad: Literal["longest", "length"] = "longest",
    samples: int | None = None,
    token_types: bool = False,
) -> list[dict[str, Int[Tensor, "batch tokens"]]]:
    """One text a row, cut at `length` tokens, for encoders: `input_ids` and `attention_mask`.

    Args:
        texts: at least one.
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer.
        batch: rows per batch; the last one may be smaller.
        length: most tokens in a row, special tokens included.
        pad: pad to the longest row of the batch, or always to `length`.
        samples: use this many texts, evenly spaced; default: all.
        token_types: also give `token_type_ids` of zeros.

    Raises:
        CalibrationError: no texts.
    """
    ids = encode(spaced(some(texts, "The list of texts", "Give at least one."), samples), tokenizer, length)
    width, fill = (length if pad == "length" else None), pad_id(tokenizer)
    return [padded(ids[i : i + batch], fill, width, token_types=token_types) for i in range(0, len(ids), batch)]


def piece_batches(
    texts: Sequence[str], tokenizer: Any, *, tokens: int = 2048, length: int = 128, shortest: int = 6, seed: int = 0
) -> list[dict[str, Int[Tensor, "batch tokens"]]]:
    """Training batches for encoders: texts cut into pieces of random length, those of like length together.

    Every batch holds about `tokens` tokens (many short pieces or few long ones), so that steps cost the same and little of it
    is spent on padding. No word occurs twice; the end of a piece of more than `length` tokens is cut. Deterministic given `seed`.

    Args:
        texts: at least one.
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer.
        tokens: most tokens in a batch, padding included, unless a single piece has more.
        length: most tokens in a piece, special tokens included.
        shortest: fewest words in a piece, except where a text has fewer; lengths are drawn log-uniformly, as queries and documents are.

    Raises:
        CalibrationError: no texts, or a length below 1.
    """
    if min(tokens, length, shortest) < 1:
        raise CalibrationError(
            f"Batches of {tokens} tokens in pieces of {shortest} to {length} cannot be made: each must be at least 1."
        )
    draw = Random(seed)
    pieces = [
        p
        for text in some(texts, "The list of texts", "Give at least one.")
        for p in _pieces(text, shortest, length, draw)
    ]
    draw.shuffle(pieces)
    ids, batches = encode(pieces, tokenizer, length), []
    for start in range(0, len(ids), _POOL):
        batch: list[list[int]] = []
        for row in sorted(ids[start : start + _POOL], key=len):
            if batch and len(row) * (len(batch) + 1) > tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    draw.shuffle(batches)
    return [padded(batch, pad_id(tokenizer)) for batch in batches]


def _pieces(text: str, shortest: int, longest: int, draw: Random) -> list[str]:
    """The words of a text in consecutive pieces of random length; a rest shorter than `shortest` belongs to the last piece."""
    words, cuts = text.split(), [0]
    while len(words) - cuts[-1] >= 2 * shortest:
        size = round(exp(draw.uniform(log(shortest), log(max(longest, shortest)))))
        cuts.append(cuts[-1] + size if len(words) - cuts[-1] - size >= shortest else len(words))
    ends = [*cuts[1:], len(words)] if cuts[-1] < len(words) else cuts[1:]
    return [" ".join(words[a:b]) for a, b in zip(cuts, ends, strict=False)]


def timing_batch(
    texts: Sequence[str], tokenizer: Any, rows: int = 32, length: int = 128
) -> dict[str, Int[Tensor, "rows length"]]:
    """A batch of real text with exactly `length` tokens in each of `rows` rows and no padding: what a forward pass is timed on.

    Texts follow one another within a row; too few of them are repeated.

    Raises:
        CalibrationError: no texts, or texts without tokens.
    """
    plain = plain_tokenizer(tokenizer)
    special = plain.encode("").ids
    stream = [i for e in plain.encode_batch(list(texts), add_special_tokens=False) for i in e.ids]
    some(stream, "The list of texts", "Give at least one with a word in it.")
    body = max(length - len(special), 1)
    half = (len(special) + 1) // 2
    long = stream * (1 + rows * body // len(stream))
    ids = [[*special[:half], *long[r * body : (r + 1) * body], *special[half:]][:length] for r in range(rows)]
    return padded(ids, 0)


def lm_stream(texts: Sequence[str], tokenizer: Any) -> Int[Tensor, "tokens"]:
    """All texts as one stream of ids: each with the special tokens its tokenizer adds, or a blank line between if it adds none.

    Raises:
        CalibrationError: no texts.
    """
    some(texts, "The list of texts", "Give at least one.")
    plain = plain_tokenizer(tokenizer)
    texts = list(texts) if plain.encode("").ids else ["\n\n".join(texts)]
    return torch.tensor([i for e in plain.encode_batch(texts) for i in e.ids], dtype=torch.long)


def lm_windows(
    texts: Sequence[str], tokenizer: Any, length: int, samples: int | None = None
) -> Int[Tensor, "windows length"]:
    """The stream cut into contiguous windows of `length` tokens that do not overlap; a rest shorter than that is left out.

    Args:
        texts: at least one.
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer.
        length: tokens in a window.
        samples: keep this many windows, evenly spaced; default: all.

    Raises:
        CalibrationError: no texts, or fewer tokens than one window.
    """
    stream = lm_stream(texts, tokenizer)
    count = len(stream) // length
    if count == 0:
        raise CalibrationError(
            f"The texts have {len(stream)} tokens, fewer than one window of {length}: give more text or a smaller length."
        )
    return spaced(stream[: count * length].reshape(count, length), samples)


def lm_batches(
    texts: Sequence[str], tokenizer: Any, length: int = 128, samples: int | None = None, batch: int = 8
) -> list[dict[str, Int[Tensor, "batch length"]]]:
    """Packed windows for a causal language model, see `lm_windows`: `input_ids` alone, since nothing is padding."""
    return [{"input_ids": w} for w in lm_windows(texts, tokenizer, length, samples).split(batch)]


def spaced(items: T, count: int | None) -> T:
    """`count` of the items, evenly spaced from the first on; all of them if there are not more."""
    total = len(items)  # type: ignore[arg-type]
    if count is None or count >= total:
        return items
    chosen = [i * total // count for i in range(count)]
    return items[chosen] if isinstance(items, Tensor) else [items[i] for i in chosen]  # type: ignore[index,return-value]


def _field(record: dict[str, Any], where: str) -> str:
    if not isinstance(record.get("text"), str):
        raise CalibrationError(f"{where} has no `text`.")
    return record["text"]
