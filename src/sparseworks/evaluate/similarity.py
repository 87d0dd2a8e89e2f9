"""How alike the outputs of a model and of its dense twin are: quality when there is no task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.task import TASKS, Result, Task, some
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import last_hidden, logits_of, mean_pooled
from sparseworks.stream.padding import real_tokens, token_masks
from sparseworks.stream.progress import bar
from sparseworks.stream.tree import call


@TASKS.register("similarity")
class OutputSimilarity(Task):
    """Mean over rows of cos(f(x), f_dense(x)): rows are mean-pooled embeddings of encoders, logits of any other model.

    Padding is left out of both. The dense outputs are computed once, here, and kept.

    Args:
        batches: what the models are called with; the first `most` are used.
        dense: the reference model.
        most: batches to compare on.

    Raises:
        CalibrationError: no batches.
    """

    name = "similarity"
    metric = "output similarity"
    higher_is_better = True

    def __init__(self, batches: Sequence[Any], dense: nn.Module, most: int = 16):
        self.batches = list(some(list(batches)[:most], "The list of batches", "Give at least one."))
        with evaluating(dense):
            self.reference = [output_rows(dense, b) for b in self.batches]

    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """Mean cosine; `details` holds the worst row's and the number of rows.

        Raises:
            NonFiniteError: a model gives NaN.
        """
        started = time.perf_counter()
        with evaluating(model):
            pairs = zip(bar(self.batches, "similarity", progress), self.reference, strict=True)
            found = torch.cat([torch.cosine_similarity(output_rows(model, b), r, dim=-1) for b, r in pairs])
        details = {"worst row": found.min().item(), "rows": len(found)}
        return Result(self.metric, found.mean().item(), details, time.perf_counter() - started)

    @classmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> OutputSimilarity:
        """Against `model` itself, on a text file or held-out documentation. `limit` = batches of 8 texts."""
        from sparseworks.evaluate.documentation import documentation_passages
        from sparseworks.evaluate.text import read_texts, token_batches

        if tokenizer is None:
            raise CalibrationError(
                "Similarity on text needs the model's tokenizer, and none was found beside the model."
            )
        texts = read_texts(data) if data else [p.whole for p in documentation_passages(held_out=True)]
        most = limit or 16
        return cls(token_batches(texts, tokenizer, batch=8, samples=8 * most), model, most)


def output_rows(model: nn.Module, batch: Any) -> Float[Tensor, "rows width"]:
    """Pooled embeddings (rows = sequences) where the output has a last hidden state, else logits (rows = real tokens or examples)."""
    output = call(model, batch)
    mask = token_masks(batch).get("attention_mask")
    if getattr(output, "last_hidden_state", None) is not None:
        return mean_pooled(last_hidden(output), mask)
    logits = real_tokens(logits_of(output), mask)
    return logits.reshape(-1, logits.shape[-1]).float()
