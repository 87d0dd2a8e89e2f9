"""TREC runs (`query Q0 document rank score tag`) and judgements (`query 0 document grade`), as trec_eval reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.io.lines import numbered, write_lines
from sparseworks.retrieval.index import Hits

Run = dict[str, list[tuple[str, float]]]


def write_run(path: Path | str, queries: Sequence[str], hits: Hits, tag: str = "sparseworks") -> Path:
    """One line a hit.

    Raises:
        CalibrationError: other than one id a query, or an id with white space, which the format cannot hold.
        CheckpointError: the disk is full or not writable.
    """
    if len(queries) != len(hits):
        raise CalibrationError(f"{len(queries)} ids were given for {len(hits)} queries.")
    for name in (*queries, tag, *(i for row in hits.ids for i in row)):
        if not name or name.split() != [name]:
            raise CalibrationError(f"A TREC run cannot hold the id {name!r}: it is empty or has white space.")
    rows = (
        f"{q} Q0 {d} {rank} {score:.6f} {tag}"
        for i, q in enumerate(queries)
        for rank, (d, score) in enumerate(hits.ranked(i), start=1)
    )
    return write_lines(path, rows)


def read_run(path: Path | str) -> Run:
    """query -> (document, score), best first; trec_eval goes by score, ties here keep the order of the file.

    Raises:
        CalibrationError: missing, or a line of another form.
    """
    run: Run = {}
    for where, line in numbered(path):
        cells = line.split()
        try:
            query, _, document, _, score, _ = cells
            run.setdefault(query, []).append((document, float(score)))
        except ValueError:
            raise CalibrationError(f"{where} is no line of a TREC run: query Q0 document rank score tag.") from None
    return {q: sorted(found, key=lambda hit: -hit[1]) for q, found in run.items()}


def write_qrels(path: Path | str, qrels: Mapping[str, Mapping[str, int]]) -> Path:
    """One line a judgement.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    return write_lines(path, (f"{q} 0 {d} {g}" for q, grades in qrels.items() for d, g in grades.items()))
