"""OpenSearch bulk requests with `rank_features` or `sparse_vector` fields: an action line and a document line a text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.exec.search import Rows
from sparseworks.io.lines import records, write_lines
from sparseworks.retrieval.vectors import SparseVectors


def write_bulk(
    path: Path | str,
    ids: Sequence[str],
    vectors: Rows,
    *,
    index: str = "sparse",
    field: str = "vector",
    terms: Sequence[str] | None = None,
) -> Path:
    """One action and one document a vector: {"index": {...}}, {field: {term: weight}}; terms by name, or by number.

    Raises:
        CalibrationError: not one id a vector, or a weight that is not above 0, which such fields refuse.
        CheckpointError: the disk is full or not writable.
    """
    if len(ids) != len(vectors):
        raise CalibrationError(f"{len(ids)} ids were given for {len(vectors)} vectors.")
    if bool((vectors.values <= 0).any()):
        raise CalibrationError("Sparse vector fields hold weights above 0 only.")

    def both() -> Iterator[str]:
        ends = vectors.ptr.tolist()
        for i, (a, b) in enumerate(itertools.pairwise(ends)):
            names = [terms[t] if terms else str(t) for t in vectors.indices[a:b].tolist()]
            yield json.dumps({"index": {"_index": index, "_id": ids[i]}})
            yield json.dumps({field: dict(zip(names, vectors.values[a:b].tolist(), strict=True))})

    return write_lines(path, both())


def read_bulk(path: Path | str, width: int, *, field: str = "vector") -> tuple[list[str], SparseVectors]:
    """Ids and vectors of a bulk file whose terms are numbers.

    Raises:
        CalibrationError: missing, or a line of another form; the message names it.
        ShapeError: a term that is not below `width`.
    """
    ids, texts = [], []
    for where, record in records(path):
        action = record.get("index") or record.get("create")
        if isinstance(action, dict) and field not in record:
            ids.append(str(action.get("_id", len(ids))))
            continue
        try:
            texts.append({int(t): float(w) for t, w in record[field].items()})
        except (KeyError, AttributeError, ValueError, TypeError):
            raise CalibrationError(f"{where} has no field {field!r} of numbers and weights.") from None
    if len(ids) != len(texts):
        raise CalibrationError(f"{path} has {len(ids)} actions and {len(texts)} documents.")
    return ids, SparseVectors.of_terms(texts, width)
