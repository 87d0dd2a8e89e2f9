"""Texts to padded batches of token ids, with the text once or several times between the tokenizer's own special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.stream.tokens import pad_id, padded, plain_tokenizer


class Ids(NamedTuple):
    """Token ids of a text as the tokenizer made them, and which of them are special (1) or of the text (0)."""

    tokens: list[int]
    special: list[int]

    def body(self) -> list[int]:
        """The tokens of the text alone."""
        return [t for t, s in zip(self.tokens, self.special, strict=True) if not s]


class Batch(NamedTuple):
    """Padded ids, which of them are read, and which are pooled."""

    ids: Int[Tensor, "texts tokens"]
    attention: Int[Tensor, "texts tokens"]
    pooled: Bool[Tensor, "texts tokens"]


class Tokens:
    """A tokenizer that cuts and neither pads nor is changed: the caller's stays as it is.

    Raises:
        CalibrationError: neither a `tokenizers.Tokenizer` nor a fast Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any, length: int):
        self._plain = plain_tokenizer(tokenizer, length)
        self.width = self._plain.get_vocab_size(with_added_tokens=True)
        self._special = [i for i, t in self._plain.get_added_tokens_decoder().items() if t.special]
        self._pad = pad_id(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, special tokens included."""
        return [Ids(e.ids, e.special_tokens_mask) for e in self._plain.encode_batch(list(texts))]

    def terms(self, width: int) -> Bool[Tensor, " width"]:
        """True for what may be a term: everything but special tokens."""
        terms = torch.ones(width, dtype=torch.bool)
        terms[self._special] = False
        return terms

    def batch(
        self, rows: Sequence[Ids], copies: int, device: torch.device | str = "cpu", *, special: bool = True
    ) -> Batch:
        """Rows padded on the right; of several copies only the last is pooled, of one copy its special tokens too if `special`."""
        made = [_repeated(row, copies, special) for row in rows]
        ids, attention = padded([row for row, _ in made], self._pad).values()
        pooled = torch.zeros(ids.shape, dtype=torch.bool)
        for i, (_, copy) in enumerate(made):
            pooled[i, copy] = True
        return Batch(ids.to(device), attention.to(device), pooled.to(device))


def _repeated(row: Ids, copies: int, special: bool) -> tuple[list[int], slice]:
    if copies == 1 and special:
        return row.tokens, slice(0, len(row.tokens))
    body = row.body()
    first = next((i for i, s in enumerate(row.special) if not s), len(row.tokens))
    head, tail = row.tokens[:first], row.tokens[first + len(body) :]
    start = len(head) + (copies - 1) * len(body)
    return [*head, *body * copies, *tail], slice(start, start + len(body))
