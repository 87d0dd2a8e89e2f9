"""Texts to token ids and padded batches, with a tokenizer's own special tokens and none of its stored padding or truncation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>", "<|end_of_text|>")


def plain_tokenizer(tokenizer: Any, length: int | None = None) -> Tokenizer:
    """A copy of the tokenizer without padding that cuts at `length` tokens (None = not at all).

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or a fast Hugging Face tokenizer, whose backend is taken.

    Raises:
        CalibrationError: it is neither.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise CalibrationError(
            f"Text needs a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer, got {type(tokenizer).__name__}."
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    if length is not None:
        copy.enable_truncation(length)
    return copy


def encode(texts: Sequence[str], tokenizer: Any, length: int | None = None) -> list[list[int]]:
    """Token ids of each text, special tokens included, at most `length` of them."""
    return [e.ids for e in plain_tokenizer(tokenizer, length).encode_batch(list(texts))]


def pad_id(tokenizer: Any) -> int:
    """Id to pad with: the tokenizer's own padding token, else its end-of-text token, else 0 (padding is masked anyway)."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if backend.padding:
        return int(backend.padding["pad_id"])
    known = (backend.token_to_id(t) for t in PAD_TOKENS)
    return next((i for i in known if i is not None), 0)


def padded(
    ids: Sequence[Sequence[int]], pad: int, length: int | None = None, *, token_types: bool = False
) -> dict[str, Int[Tensor, "batch tokens"]]:
    """`input_ids` and `attention_mask` (1 = token, 0 = padding on the right), as wide as the longest row or as `length`.

    Args:
        ids: token ids of each row.
        pad: id of the padding token.
        length: width; None = the longest row.
        token_types: add `token_type_ids` of zeros (for graphs that demand them; BERT models fill them in themselves).
    """
    width = max(length or 0, 1, *(len(row) for row in ids))
    tokens = torch.full((len(ids), width), pad, dtype=torch.long)
    mask = torch.zeros((len(ids), width), dtype=torch.long)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    batch = {"input_ids": tokens, "attention_mask": mask}
    return batch | {"token_type_ids": torch.zeros_like(tokens)} if token_types else batch
