"""Retrieval quality of a text encoder: nDCG@10, recall@100 and MAP over documents, queries and judgements."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.collection import Collection, read_collection
from sparseworks.evaluate.encoder import Encoder
from sparseworks.evaluate.ranking import average_precision, ndcg, recall, top
from sparseworks.evaluate.task import TASKS, Result, Task
from sparseworks.stream.tokens import encode


@TASKS.register("retrieval")
class Retrieval(Task):
    """Mean nDCG@10 over the judged queries; documents ranked by the cosine of mean-pooled embeddings, exactly (no index).

    `details` holds recall@100, MAP (top 1000), the standard error of nDCG@10 over queries, and the counts.

    Args:
        collection: documents, queries, judgements.
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer; the texts are tokenised once, here.
        max_length: tokens a text is cut to.
        batch: texts per forward pass.
    """

    name = "retrieval"
    metric = "nDCG@10"
    higher_is_better = True

    def __init__(self, collection: Collection, tokenizer: Any, *, max_length: int = 256, batch: int = 32):
        self.collection, self.tokenizer, self.batch = collection, tokenizer, batch
        self.document_ids, self.query_ids = list(collection.documents), collection.judged
        self._documents = encode(list(collection.documents.values()), tokenizer, max_length)
        self._queries = encode([collection.queries[q] for q in self.query_ids], tokenizer, max_length)

    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """Encode everything, rank every document for every query, and average.

        Raises:
            NonFiniteError: the model gives NaN.
        """
        started = time.perf_counter()
        ranked = self.rank(model, progress=progress)
        judged = [self.collection.qrels[q] for q in self.query_ids]
        gains = [ndcg(r, j) for r, j in zip(ranked, judged, strict=True)]
        pairs = list(zip(ranked, judged, strict=True))
        details = {
            "recall@100": statistics.fmean(recall(r, j) for r, j in pairs),
            "MAP": statistics.fmean(average_precision(r, j) for r, j in pairs),
            "standard error": statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0,
            "queries": len(self.query_ids),
            "documents": len(self.document_ids),
            "collection": self.collection.name,
        }
        return Result(self.metric, statistics.fmean(gains), details, time.perf_counter() - started)

    def rank(self, model: nn.Module, *, progress: bool = False) -> list[list[str]]:
        """Ids of the best 1000 documents of every judged query, best first."""
        encoder = Encoder(model, self.tokenizer)
        documents = encoder.encode_ids(self._documents, self.batch, progress=progress)
        queries = encoder.encode_ids(self._queries, self.batch, progress=progress)
        return top(queries @ documents.T, self.document_ids)

    @classmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> Retrieval:
        """From a folder (see `read_collection`); without one, from the Python documentation. `limit` = queries."""
        from sparseworks.evaluate.documentation import documentation_retrieval

        if tokenizer is None:
            raise CalibrationError("Retrieval needs the model's tokenizer, and none was found beside the model.")
        if data is None:
            return cls(documentation_retrieval(limit or 200), tokenizer, max_length=longest(model))
        return cls(read_collection(data).first(limit), tokenizer, max_length=longest(model))


def longest(model: nn.Module, most: int = 256) -> int:
    """Tokens to cut texts to: `most`, or the model's own number of positions if that is smaller."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(most, positions) if positions else most
