"""Perplexity of a causal language model on a text, over windows of its context."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.task import TASKS, Result, Task, device_of
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import logits_of
from sparseworks.stream.progress import bar


@TASKS.register("perplexity")
class Perplexity(Task):
    """exp of the mean negative log-likelihood in nats over all predicted tokens of the text (lower is better).

    Windows of `length` tokens start every `stride` tokens. With `stride == length` (the default, and what GPTQ, SparseGPT
    and Wanda report) they do not overlap and the first token of each, having no context, is not predicted. With a smaller
    stride every token but the first of the text is predicted exactly once, in the first window that holds it.
    The last window may be shorter. Each token counts the same, whatever the length of its window.

    Args:
        tokens: the text as one stream of token ids.
        length: tokens in a window, at most the model's context.
        stride: tokens between the starts of windows, 1 to length.
        batch: windows per forward pass.

    Raises:
        CalibrationError: fewer than two tokens, or a stride out of range.
    """

    name = "perplexity"
    metric = "perplexity"
    higher_is_better = False

    def __init__(self, tokens: Int[Tensor, "tokens"], length: int, *, stride: int | None = None, batch: int = 8):
        stride = length if stride is None else stride
        if tokens.dim() != 1 or len(tokens) < 2:
            raise CalibrationError(
                f"Perplexity needs a stream of at least two tokens, got shape {tuple(tokens.shape)}."
            )
        if length < 2 or not 1 <= stride <= length:
            raise CalibrationError(
                f"Windows of {length} tokens every {stride}: need length >= 2 and 1 <= stride <= length."
            )
        self.tokens, self.length, self.stride, self.batch = tokens, length, stride, batch

    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """Perplexity; `details` holds the mean loss in nats, the tokens predicted and the windows.

        Raises:
            NonFiniteError: NaN or infinity in the logits.
            ShapeError: the logits are not batch x tokens x vocabulary.
        """
        started = time.perf_counter()
        device = device_of(model)
        total, count = 0.0, 0
        with evaluating(model):
            for windows, skip in bar(list(self._batches()), "perplexity", progress):
                losses = token_losses(model, windows.to(device))[:, skip:]
                total += losses.sum(dtype=torch.float64).item()
                count += losses.numel()
        loss = total / count
        details = {
            "loss": loss,
            "tokens": count,
            "windows": len(self._spans()),
            "length": self.length,
            "stride": self.stride,
        }
        # exp overflows beyond 709 nats; that is reported as any other broken model is.
        value = math.exp(loss) if loss < 700 else math.inf
        return Result(self.metric, value, details, time.perf_counter() - started)

    @classmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> Perplexity:
        """From a text file (a `.txt` as one text); without one, from held-out documentation. `limit` = windows.

        `sparseworks/tiny-lm` saw most of this documentation in training: its figure there shows what compression costs, not
        how well the model generalises.
        """
        from sparseworks.evaluate.documentation import documentation_passages
        from sparseworks.evaluate.text import lm_stream, read_texts

        if tokenizer is None:
            raise CalibrationError(
                "Perplexity on text needs the model's tokenizer, and none was found beside the model."
            )
        texts = read_texts(data, paragraphs=False) if data else [p.whole for p in documentation_passages(held_out=True)]
        length = context_length(model)
        limit = 64 if limit is None and data is None else limit
        tokens = lm_stream(texts, tokenizer)
        return cls(tokens if limit is None else tokens[: limit * length], length)

    def _spans(self) -> list[tuple[int, int, int]]:
        """(start, stop, first predicted token) of every window."""
        spans, done = [], 0
        for start in range(0, len(self.tokens), self.stride):
            stop = min(start + self.length, len(self.tokens))
            first = max(start + 1, done)
            if first < stop:
                spans.append((start, stop, first))
            done = stop
            if stop == len(self.tokens):
                break
        return spans

    def _batches(self) -> Iterator[tuple[Int[Tensor, "batch length"], int]]:
        """Windows of the same shape together, with how many of their leading losses were counted before."""
        group: list[Tensor] = []
        shape = (0, 0)
        for start, stop, first in self._spans():
            own = (stop - start, first - start - 1)
            if group and (own != shape or len(group) == self.batch):
                yield torch.stack(group), shape[1]
                group = []
            shape = own
            group.append(self.tokens[start:stop])
        if group:
            yield torch.stack(group), shape[1]


def token_losses(model: nn.Module, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length-1"]:
    """-log p(token t+1 | tokens 0..t) in nats, for every token but the first of each row.

    The model is called with `input_ids` if its forward knows that name, otherwise with the ids alone.
    """
    logits = logits_of(model(input_ids=ids) if _takes_ids(model) else model(ids))
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise ShapeError(
            f"A causal model gives logits of batch x tokens x vocabulary, got {tuple(logits.shape)} for {tuple(ids.shape)}."
        )
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    if not bool(losses.isfinite().all()):
        raise NonFiniteError(
            "The logits hold NaN or infinity, so the perplexity is undefined; check the model's weights."
        )
    return losses


def context_length(model: nn.Module, most: int = 2048) -> int:
    """The window to measure with: the model's own context, at most 2048 tokens (the length the literature reports)."""
    config = getattr(model, "config", None)
    found: Sequence[int | None] = [
        getattr(config, k, None) for k in ("max_position_embeddings", "n_positions", "max_seq_len")
    ]
    return min([n for n in found if n] + [most])


def _takes_ids(model: nn.Module) -> bool:
    import inspect

    return "input_ids" in inspect.signature(model.forward).parameters
