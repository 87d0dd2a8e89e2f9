"""What `sparseworks index` and `search` do: each gives `(data for --json, text or table for people)`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sparseworks.cli.commands import Answer, as_table
from sparseworks.core.errors import CalibrationError


def run_index(
    folder: Path,
    add: Path | None,
    delete: Path | None,
    merge: bool,
    queries: Path | None,
    k: int,
    export: Path | None,
    options: dict[str, Any],
) -> Answer:
    """Everything asked for, in the order add, delete, merge, export; then what the index holds."""
    from sparseworks.retrieval import Index

    start = time.perf_counter()
    made = _add(folder, add, options) if add is not None else Index.open(folder)
    deleted = made.delete(delete.read_text(encoding="utf-8").split()) if delete is not None else 0
    tried = made.merge(_vectors(folder, queries) if queries else None, k=k) if merge or queries else []
    if export is not None:
        _export(made, export)
    settings = [s for e in made.snapshot.manifest.segments for s in e.settings]
    data = {
        "index": str(folder), "documents": len(made), "terms": made.width, "segments": len(made.snapshot.segments),
        "bytes": sum(f.bytes for e in made.snapshot.manifest.segments for f in e.files), "deleted": deleted,
        "seconds": time.perf_counter() - start, "settings": settings,
        "tried": [{"search": repr(t.search), "recall": t.recall, "seconds": t.seconds} for t in tried],
    }  # fmt: skip
    lines = [
        f"{folder}: {data['documents']:,} documents of {data['terms']:,} terms in {data['segments']} segments, "
        f"{data['bytes'] / 1e6:.1f} MB",
        *(f"  recall {s['recall']:g} at {s['k']}: {_named(s['search'])}, {s['seen']:.3f} seen" for s in settings),
    ]
    return data, "\n".join(lines)


def run_search(
    folder: Path,
    texts: list[str],
    queries: Path | None,
    k: int,
    recall: float | None,
    where: list[str],
    run: Path | None,
    qrels: Path | None,
) -> Answer:
    """Hits of each query; nDCG@10 where there are judgements."""
    from sparseworks.retrieval import Index

    if bool(texts) == (queries is not None):
        raise CalibrationError("Search takes texts, or --queries FILE.")
    names, vectors = _encoded(folder, texts) if texts else _named_vectors(folder, queries)
    opened = Index.open(folder)
    start = time.perf_counter()
    hits = opened.search(vectors, k, recall=recall, filter=_wanted(where))
    seconds = time.perf_counter() - start
    data: dict[str, Any] = {
        "queries": len(names), "milliseconds": 1000 * seconds / max(len(names), 1), "exact": hits.exact, "how": list(hits.how),
        "opened": float(hits.opened.float().mean()) if len(names) else 0.0, "documents": hits.documents,
    }  # fmt: skip
    if run is not None:
        from sparseworks.retrieval.exchange import write_run

        data["run"] = str(write_run(run, names, hits))
    if qrels is not None:
        data["ndcg@10"] = _ndcg(names, hits.ids, qrels)
    data["hits"] = {n: [{"id": i, "score": s} for i, s in hits.ranked(q)] for q, n in enumerate(names)}
    if not texts:
        shown = [f"{n}: {v:.4f}" if isinstance(v, float) else f"{n}: {v}" for n, v in data.items() if n != "hits"]
        return data, "\n".join(shown)
    rows = [
        [n if rank == 1 else "", str(rank), i, f"{s:.3f}", _snippet(opened, hits, q, rank - 1)]
        for q, n in enumerate(names)
        for rank, (i, s) in enumerate(hits.ranked(q), start=1)
    ]
    how = "exact" if hits.exact else f"{data['opened']:.0f} of {hits.documents:,} documents scored"
    return data, as_table(f"{1000 * seconds:.1f} ms, {how}", ["query", "", "id", "score", "text"], rows)


def words_left_out(given: str) -> str | list[str] | None:
    """What `--stop-words` says, as BM25 takes it.

    Raises:
        CalibrationError: neither english nor none nor a file.
    """
    if given in ("english", "none"):
        return None if given == "none" else given
    try:
        return sorted(set(Path(given).read_text(encoding="utf-8").lower().split()))
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"Stop words are english, none, or a text file of words; {given}: {error}.") from error


def _add(folder: Path, add: Path, options: dict[str, Any]) -> Any:
    from sparseworks.retrieval import Index, SparseVectors
    from sparseworks.retrieval.exchange import read_ciff, read_texts
    from sparseworks.retrieval.texts import TextIndex

    there = (folder / "manifest.json").is_file()
    if add.suffix in (".safetensors", ".ciff"):
        if add.suffix == ".ciff":
            ids, vectors, _ = read_ciff(add)
        else:
            vectors, ids = SparseVectors.load(add)
        made = Index.open(folder) if there else Index.create(folder, vectors.width)
        made.add(ids if ids is not None else [str(len(made) + i) for i in range(len(vectors))], vectors)
        return made
    texts = read_texts(add)
    if there:
        opened = TextIndex.open(folder)
        opened.add(texts)
        return opened.index
    return TextIndex.create(folder, texts, **options).index


def _vectors(folder: Path, queries: Path) -> Any:
    return _named_vectors(folder, queries)[1]


def _named_vectors(folder: Path, queries: Path | None) -> tuple[list[str], Any]:
    from sparseworks.io.beir import read_queries
    from sparseworks.retrieval import SparseVectors
    from sparseworks.retrieval.texts import TextIndex

    assert queries is not None
    if queries.suffix == ".safetensors":
        vectors, ids = SparseVectors.load(queries)
        return ids or [str(i) for i in range(len(vectors))], vectors
    texts = read_queries(queries)
    return list(texts), TextIndex.open(folder).encoder.queries(list(texts.values()))


def _encoded(folder: Path, texts: list[str]) -> tuple[list[str], Any]:
    from sparseworks.retrieval.texts import TextIndex

    return texts, TextIndex.open(folder).encoder.queries(texts)


def _wanted(where: list[str]) -> dict[str, Any] | None:
    pairs = [w.partition("=") for w in where]
    if any(not sign for _, sign, _ in pairs):
        raise CalibrationError("Metadata is wanted as NAME=VALUE, such as --where language=en.")
    return {name: value for name, _, value in pairs} or None


def _ndcg(names: list[str], found: list[list[str]], qrels: Path) -> float:
    from sparseworks.evaluate.ranking import ndcg
    from sparseworks.retrieval.exchange import read_qrels

    judged = read_qrels(qrels)
    scored = [
        ndcg(ids, judged[n])
        for n, ids in zip(names, found, strict=True)
        if any(g > 0 for g in judged.get(n, {}).values())
    ]
    if not scored:
        raise CalibrationError(f"No query has a relevant document in {qrels}: check that both use the same ids.")
    return sum(scored) / len(scored)


def _export(made: Any, path: Path) -> None:
    from sparseworks.retrieval import SparseVectors
    from sparseworks.retrieval.exchange import write_bulk, write_ciff

    snapshot = made.snapshot
    ids = snapshot.ids()
    if not ids:
        raise CalibrationError("The index is empty: there is nothing to export.")
    vectors = SparseVectors.join([s.vectors(made.width) for s in snapshot.segments])
    kinds: dict[str, Any] = {
        ".safetensors": lambda: vectors.save(path, ids),
        ".ciff": lambda: write_ciff(path, ids, vectors),
        ".ndjson": lambda: write_bulk(path, ids, vectors),
    }
    if path.suffix not in kinds:
        raise CalibrationError(f"Vectors are exported as {', '.join(kinds)}, not {path.suffix or path.name!r}.")
    kinds[path.suffix]()


def _named(search: Any) -> str:
    if not isinstance(search, dict):
        return str(search)
    name, options = next(iter(search.items()))
    return f"{name}({', '.join(f'{n}={v}' for n, v in options.items())})" if options else name


def _snippet(opened: Any, hits: Any, query: int, rank: int) -> str:
    text = opened.snapshot.metadata(int(hits.positions[query, rank])).get("text", "")
    return text if len(text) <= 120 else text[:117] + "..."
