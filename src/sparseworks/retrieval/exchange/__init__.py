"""What other systems read and write: BEIR folders, TREC runs and judgements, OpenSearch bulk requests, CIFF."""

from __future__ import annotations

from sparseworks.io.beir import read_qrels, read_texts, write_beir
from sparseworks.retrieval.exchange.bulk import read_bulk, write_bulk
from sparseworks.retrieval.exchange.ciff import read_ciff, write_ciff
from sparseworks.retrieval.exchange.trec import read_run, write_qrels, write_run

__all__ = [
    "read_bulk",
    "read_ciff",
    "read_qrels",
    "read_run",
    "read_texts",
    "write_beir",
    "write_bulk",
    "write_ciff",
    "write_qrels",
    "write_run",
]
