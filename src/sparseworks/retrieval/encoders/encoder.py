"""Texts to sparse term weights, by any masked or causal language model, or by a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ModelError, NonFiniteError
from sparseworks.exec.search import Rows
from sparseworks.retrieval.encoders.heads import SPLADE_SIDE, Read, TermSide
from sparseworks.retrieval.encoders.tokens import Ids, Tokens
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import logits_of
from sparseworks.stream.progress import bar

_BATCH = 32


class TermEncoder(nn.Module):
    """w = normalise(window(importance(pool_i f(head(h_i))))), for queries and documents each with slots of their own.

    Args:
        model: called with `input_ids`, `attention_mask` and `output_hidden_states=True`; returns `logits` (texts, tokens, width)
            and `hidden_states`, as every masked or causal model of transformers; or a pair (hidden states, logits).
            None: both sides are look-ups.
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer; its terms are the dimensions.
        query, document: the sides.
        idf: a weight a term (width,), for importances that ask for it; see `idf_of`.
        hidden: width of the hidden states; default: `model.config.hidden_size`.
        expand: text -> text with more words, for heads that expand.
        max_length: longer texts are cut to so many tokens (each copy, if the text is read twice).

    Special tokens are read, but never terms.

    Raises:
        ModelError: a side needs a model, or hidden states of a width that is not known.
        CalibrationError: not such a tokenizer.
    """

    _terms: Tensor

    def __init__(
        self,
        model: nn.Module | None,
        tokenizer: Any,
        query: TermSide = SPLADE_SIDE,
        document: TermSide = SPLADE_SIDE,
        *,
        idf: Float[Tensor, " width"] | None = None,
        hidden: int | None = None,
        expand: Callable[[str], str] | None = None,
        max_length: int = 256,
    ):
        super().__init__()
        self.model, self.expand = model, expand
        self.tokens = Tokens(tokenizer, max_length)
        self.width = self.tokens.width if model is None else _width(model, self.tokens.width)
        self.query, self.document = query, document
        if model is None and (query.reads or document.reads):
            raise ModelError("A side of this encoder reads texts with a model, and none was given.")
        width = hidden or getattr(getattr(model, "config", None), "hidden_size", None) or 0
        if not width and any(s.importance.needs_hidden or s.head.build(1) is not None for s in (query, document)):
            raise ModelError("Hidden states have a width that the model's config does not say: give `hidden=`.")
        for name, side in (("query", query), ("document", document)):
            setattr(self, f"{name}_head", side.head.build(width))
            setattr(self, f"{name}_importance", side.importance.build(self.width, width, idf))
        self.register_buffer("_terms", self.tokens.terms(self.width), persistent=False)

    def weights(self, ids: Sequence[Ids], queries: bool) -> Float[Tensor, "texts width"]:
        """Term weights of one batch of token ids, dense and with gradients.

        Raises:
            NonFiniteError: the model gave NaN or infinity.
        """
        return (self.query if queries else self.document).focus(self.open_weights(ids, queries))

    def open_weights(self, ids: Sequence[Ids], queries: bool) -> Float[Tensor, "texts width"]:
        """As `weights`, before the side's window and normalisation.

        Raises:
            NonFiniteError: as `weights`.
        """
        side = self.query if queries else self.document
        name = "query" if queries else "document"
        copies = side.pooling.copies if side.reads else 1
        batch = self.tokens.batch(ids, copies, self._terms.device, special=side.pooling.special)
        hidden, logits = self._read(batch.ids, batch.attention) if side.reads else (None, None)
        read = Read(batch.ids, batch.pooled, self.width, hidden, logits)
        w = side.weigh(read, getattr(self, f"{name}_head"), getattr(self, f"{name}_importance"))
        w = w * self._terms.to(w.dtype)
        if not bool(torch.isfinite(w).all()):
            raise NonFiniteError("Term weights hold NaN or infinity: check the model's weights.")
        return w

    def encode_queries(self, texts: Sequence[str], batch_size: int = _BATCH, *, progress: bool = False) -> Codes:
        """Sparse codes of queries, one row a text, in the order given; the model is not called if the side is a look-up.

        Raises:
            CalibrationError: no texts.
            NonFiniteError: as `weights`.
        """
        return self._encode(texts, True, batch_size, progress)

    def encode_documents(self, texts: Sequence[str], batch_size: int = _BATCH, *, progress: bool = False) -> Codes:
        """Sparse codes of documents, one row a text, in the order given.

        Raises:
            CalibrationError: no texts.
            NonFiniteError: as `weights`.
        """
        return self._encode(texts, False, batch_size, progress)

    def token_ids(self, texts: Sequence[str], queries: bool) -> list[Ids]:
        """Tokens of texts, expanded where the side's head asks for it.

        Raises:
            ModelError: the head expands, and the encoder has no `expand`.
        """
        if (self.query if queries else self.document).head.expands:
            if self.expand is None:
                raise ModelError("This head expands texts from outside: give `TermEncoder(expand=...)`.")
            texts = [self.expand(t) for t in texts]
        return self.tokens(texts)

    def _encode(self, texts: Sequence[str], queries: bool, batch_size: int, progress: bool) -> Codes:
        if isinstance(texts, str) or not len(texts):
            raise CalibrationError("Give a list of at least one text to encode.")
        ids = self.token_ids(texts, queries)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i].tokens))
        parts: list[Codes] = []
        with evaluating(self):
            for s in bar(range(0, len(order), batch_size), "encode", progress):
                w = self.weights([ids[i] for i in order[s : s + batch_size]], queries)
                parts.append(Codes.from_dense(w.float()).to("cpu"))
        return _joined(parts, torch.tensor(order).argsort())

    def _read(self, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        assert self.model is not None
        out = self.model(input_ids=ids, attention_mask=attention, output_hidden_states=True)
        if isinstance(out, tuple):
            return out[0], out[1]
        states = getattr(out, "hidden_states", None)
        logits = logits_of(out)
        return (logits if states is None else states[-1]), logits


def rows_of(codes: Codes) -> Rows:
    """Codes as the rows that indexes take."""
    return Rows.of(codes.csr(), codes.width)


def idf_of(ids: Sequence[Sequence[int]], width: int) -> Float[Tensor, " width"]:
    """ln(1 + (N - df + 1/2) / (df + 1/2)) of every term over token ids of N documents; 1 for a term that never occurs.

    Both as in the table that is released with inference-free retrievers (arXiv 2411.04403), whose texts are MS MARCO's.

    Raises:
        CalibrationError: no documents.
    """
    if not len(ids):
        raise CalibrationError("An idf table needs at least one document.")
    counts = Counter(t for row in ids for t in set(row))
    df = torch.zeros(width)
    df[torch.tensor(list(counts), dtype=torch.long)] = torch.tensor(list(counts.values()), dtype=torch.float32)
    return torch.log1p((len(ids) - df + 0.5) / (df + 0.5)).where(df > 0, 1.0)


def _joined(parts: Sequence[Codes], order: Int[Tensor, " texts"]) -> Codes:
    k = max(part.values.shape[1] for part in parts)
    wide = lambda t: torch.nn.functional.pad(t, (0, k - t.shape[1]))  # noqa: E731
    lengths = torch.cat([part.kept().sum(1) for part in parts])[order]
    values, indices = (torch.cat([wide(getattr(p, f)) for p in parts])[order] for f in ("values", "indices"))
    return Codes.unchecked(values, indices, parts[0].width, lengths)


def _width(model: nn.Module, least: int) -> int:
    """Width of the logits: a model may have more terms than its tokenizer (padding of the table)."""
    width = getattr(getattr(model, "config", None), "vocab_size", None) or least
    if width < least:
        raise ModelError(f"The tokenizer has {least} terms, the model only {width}: they do not belong together.")
    return math.ceil(width)
