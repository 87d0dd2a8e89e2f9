"""A collection with its embeddings, how well vectors rank it, and what they take: the figures of `quality.py`."""

from __future__ import annotations

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import encoders
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseworks.core.codes import Codes
from sparseworks.evaluate import Collection, Encoder, ndcg, recall
from sparseworks.exec.search import InvertedIndex, Rows
from sparseworks.retrieval import Index
from sparseworks.retrieval.encoders import prune_codes, rows_of
from sparseworks.retrieval.regularisers import expected_flops

DEPTH = 1000
Runs = list[dict[str, float]]
"""Document -> score, of each judged query."""


@dataclass
class Data:
    """A collection, its texts and their embeddings, and where what is made of it is kept."""

    collection: Collection
    model: Any
    tokenizer: Any
    folder: Path
    bfloat16: bool = False
    device: str = "cpu"

    def __post_init__(self):
        self.ids, self.texts = list(self.collection.documents), list(self.collection.documents.values())
        self.judged = self.collection.judged
        self.queries = [self.collection.queries[q] for q in self.judged]
        self.documents, self.asked = self.kept("documents", self.texts), self.kept("queries", self.queries)

    def kept(self, name: str, texts: Sequence[str]) -> Tensor:
        """Embeddings, made once."""
        path = self.folder / f"{name}.pt"
        if path.is_file():
            return torch.load(path, weights_only=True)
        with torch.autocast(self.device, torch.bfloat16, self.bfloat16):
            made = (
                Encoder(self.model.to(self.device), self.tokenizer)
                .encode(texts, 32 if self.device == "cpu" else 256)
                .float()
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(made, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        return made

    def made_up(self, count: int) -> encoders.Asked:
        """Texts that stand for queries, so many a document, with their embeddings; drawn from documents alone."""
        return encoders.Asked.of(self.texts, lambda texts: self.kept(f"made-up-{count}", texts), count=count)


@dataclass(frozen=True)
class Pairs:
    """Embeddings of made-up queries, and of the document that each is taken from."""

    queries: Tensor
    documents: Tensor

    @classmethod
    def of(cls, data: Data, count: int, held: bool | None = None) -> Pairs:
        """All, or (`held`) every tenth, or all others."""
        asked = data.made_up(count)
        tenth = torch.arange(len(asked.owner)) % 10 == 0
        rows = torch.ones_like(tenth) if held is None else tenth == held
        return cls(asked.vectors[rows], data.documents[asked.owner[rows]])

    def on(self, device: str) -> tuple[Tensor, Tensor]:
        """Both, there."""
        return self.queries.to(device), self.documents.to(device)


def best_rate(
    data: Data,
    args: Namespace,
    rates: Sequence[float],
    train: Callable[[Pairs, float], Any],
    code: Callable[[Any, Tensor], Tensor],
) -> float:
    """The learning rate whose model keeps most of the ten nearest documents of made-up queries that it was not trained on."""
    rest, held = Pairs.of(data, args.pieces, False), Pairs.of(data, args.pieces, True)

    def nearest(queries: Tensor, documents: Tensor) -> Tensor:
        scores = queries @ documents.T
        return torch.zeros_like(scores).scatter(1, scores.topk(min(10, len(documents))).indices, 1.0)

    whole = nearest(held.queries, data.documents)

    def found(rate: float) -> float:
        model = train(rest, rate)
        with torch.no_grad():
            return float((nearest(code(model, held.queries), code(model, data.documents)) * whole).sum())

    return max(rates, key=found)


# -- figures ------------------------------------------------------------------------------------------------------


def scored(data: Data, runs: Runs) -> dict[str, float]:
    """nDCG@10 and recall@100, means over the judged queries."""
    pairs = [
        (sorted(run, key=lambda d: -run[d]), data.collection.qrels[q]) for run, q in zip(runs, data.judged, strict=True)
    ]
    gains = [ndcg(r, j) for r, j in pairs]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {
        "ndcg@10": statistics.fmean(gains), "standard error": error,
        "recall@100": statistics.fmean(recall(r, j) for r, j in pairs),
    }  # fmt: skip


def dense_runs(data: Data, queries: Tensor, documents: Tensor) -> Runs:
    """By cosine, every document."""
    scores = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T
    best, at = scores.sort(dim=1, descending=True, stable=True)
    rows = zip(best[:, :DEPTH].tolist(), at[:, :DEPTH].tolist(), strict=True)
    return [{data.ids[i]: s for s, i in zip(*row, strict=True)} for row in rows]


def sparse_runs(data: Data, queries: Rows, documents: Rows) -> Runs:
    """By inner product; documents that share no term with a query are not found."""
    scores, at = InvertedIndex(documents).search(queries, min(DEPTH, len(documents)))
    rows = zip(scores.tolist(), at.tolist(), strict=True)
    return [{data.ids[i]: s for s, i in zip(*row, strict=True) if s > 0} for row in rows]


def dense_row(data: Data, name: str, queries: Tensor, documents: Tensor) -> dict[str, Any]:
    """Figures of dense vectors."""
    d = documents.shape[1]
    size = {"bytes": 4 * d, "terms": d, "query terms": d, "flops": float(d)}
    return {"name": name, **scored(data, dense_runs(data, queries, documents)), **size}


def sparse_row(data: Data, name: str, queries: Rows, documents: Rows) -> dict[str, Any]:
    """Figures of sparse vectors."""
    n = len(documents)
    entry = 4 + (2 if documents.width <= 2**16 else 4)
    with tempfile.TemporaryDirectory() as folder:
        Index.create(Path(folder) / "index", documents.width).add(data.ids, documents)
        on_disk = sum(f.stat().st_size for f in (Path(folder) / "index").rglob("*") if f.is_file())
    size = {
        "bytes": entry * len(documents.indices) / n, "index bytes": on_disk / n, "terms": len(documents.indices) / n,
        "query terms": len(queries.indices) / len(queries), "flops": expected_flops(queries, documents),
    }  # fmt: skip
    return {"name": name, **scored(data, sparse_runs(data, queries, documents)), **size}


def pruned(rows: Rows, size: int) -> Rows:
    """At most so many entries of each row, the largest."""
    lengths = rows.ptr.diff()
    at = torch.arange(int(lengths.max())) < lengths[:, None]
    values, indices = torch.zeros(at.shape), torch.zeros(at.shape, dtype=torch.int32)
    values[at], indices[at] = rows.values, rows.indices
    return rows_of(prune_codes(Codes(values, indices, rows.width, lengths), size))
