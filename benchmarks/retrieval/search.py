"""Top-10 search of sparse vectors: exact beside bm25s and torch CSR, and to a recall of 0.95 beside Seismic.

`exact`: BM25 weights of bm25s itself (texts of 60 words, 8 words a query), and vectors of 126 terms with queries of 39, beside a
product with a torch CSR matrix and, though it is not exact, Seismic at its fastest setting that finds 99 % of the true hits. `recall`: documents in an `Index` on disk, calibrated when it was merged, beside pyseismic-lsr at
the fastest of its settings that reaches the same recall on the same queries. Data are synthetic (see `data.py`): recall on real
vectors must be measured anew. All on one thread, in microseconds a query over a batch; contenders take turns.

Building is done once and kept in `--folder`, so that it can be run apart from measuring (`--build`).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import common
import data
import peers
from common import Line

import sparseworks as sw
from sparseworks.exec import measure
from sparseworks.retrieval import Index, SparseVectors

K = peers.K
Contender = Callable[[], np.ndarray]


def main() -> None:
    given = common.arguments(
        __doc__ or "",
        part={"choices": ["exact", "recall"], "default": "exact", "help": "which question"},
        documents={"type": int, "default": 100_000, "help": "documents"},
        queries={"type": int, "default": 512, "help": "queries measured"},
        folder={"type": Path, "default": Path("out/retrieval"), "help": "where indexes are kept"},
        build={"action": "store_true", "help": "build what is not there and stop"},
        postings={"type": int, "default": 2000, "help": "postings a list, of Seismic"},
    )
    n, asked = (3000, 64) if given.quick else (given.documents, given.queries)
    torch.set_num_threads(1)
    part = exact if given.part == "exact" else to_a_recall
    lines, setting = part(n, asked, given)
    if lines:
        common.show(lines, f"Top-10 search of {n:,} documents, microseconds a query")
    common.store(f"retrieval_{given.part}", lines, given.json, setting=setting)


def exact(n: int, asked: int, given: Any) -> tuple[list[Line], dict[str, Any]]:
    """Every method that is exact, beside peers that are."""
    if given.build:
        return [], {}
    lines, setting = [], {}
    documents, queries = data.draw(n, 126, 0), data.draw(asked, 39, 2, spread=1.0)
    few = queries[: min(asked, 64)]
    ours = {m: sw.method(m).build(documents) for m in ("exhaustive_postings", "max_score", "block_max_wand")}
    contenders = {m: _ours(b, few) for m, b in ours.items()}
    contenders["torch CSR"] = _run(peers.torch_csr(documents), few)
    others = ["torch CSR"]
    if find_spec("seismic"):
        truth = contenders["torch CSR"]()
        seismic = peers.Seismic(documents, given.postings, given.folder / f"{n}-exact" / "seismic")
        name, search = _best(seismic, few, truth, 0.99)
        contenders[name] = search
        others.append(name)
        setting["seismic"] = {"recall": _recall(search(), truth), "postings": given.postings}
    else:
        setting["seismic"] = "absent"
    lines += _lines("126 terms, queries of 39", contenders, others, few.shape[0], given, exact=True)
    corpus = data.tokens(n, 60, 3)
    peer = peers.bm25s_index(corpus, data.TERMS)
    if peer is None:
        setting["absent"] = "bm25s"
        return lines, setting
    search, weights, name = peer
    words = sp.csr_matrix(_binary(data.tokens(asked, 8, 4)))
    ours = {m: sw.method(m).build(weights) for m in ("exhaustive_postings", "max_score", "block_max_wand")}
    contenders = {m: _ours(b, words) for m, b in ours.items()} | {name: _run(search, words)}
    lines += _lines("BM25, 60 words, queries of 8", contenders, [name], asked, given, exact=True)
    return lines, setting


def to_a_recall(n: int, asked: int, given: Any, recall: float = 0.95) -> tuple[list[Line], dict[str, Any]]:
    """Ours as the index chose it, and by hand, beside Seismic at its best setting for the recall."""
    folder = given.folder / str(n)
    held = {"even": data.draw(asked, 39, 2), "concentrated": data.draw(asked, 39, 5, spread=1.4)}
    calibrating = sp.vstack([data.draw(150, 39, 6), data.draw(150, 39, 7, spread=1.4)], format="csr")
    documents, seconds = None, {}
    if not (folder / "index" / "manifest.json").is_file():
        documents = data.draw(n, 126, 0)
        seconds = _build(folder / "index", documents, calibrating)
        (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    seismic = None
    if find_spec("seismic"):
        kept = folder / "seismic"
        if documents is None and not Path(f"{kept}.index.seismic").is_file():
            documents = data.draw(n, 126, 0)
        seismic = peers.Seismic(documents, given.postings if not given.quick else 200, kept)  # type: ignore[arg-type]
        if seismic.seconds:
            (folder / "seismic_seconds.json").write_text(json.dumps(seismic.seconds), encoding="utf-8")
    if given.build:
        return [], {}
    index = Index.open(folder / "index", verify=False)
    setting: dict[str, Any] = {
        "settings": [s.to_dict() for s in index.snapshot.segments[0].settings],
        "build_seconds": json.loads((folder / "seconds.json").read_text())
        if (folder / "seconds.json").is_file()
        else None,
        "bytes": sum(f.bytes for e in index.snapshot.manifest.segments for f in e.files),
        "seismic": {"postings": given.postings} if seismic else "absent",
    }
    if seismic and (folder / "seismic_seconds.json").is_file():
        setting["seismic"]["build_seconds"] = json.loads((folder / "seismic_seconds.json").read_text())
        setting["seismic"]["bytes"] = (folder / "seismic.index.seismic").stat().st_size
    lines = []
    for name, queries in held.items():
        rows = SparseVectors.of(queries)
        truth = index.search(rows, K, threads=1).positions.numpy()
        contenders: dict[str, Contender] = {
            "exact": lambda r=rows: index.search(r, K, threads=1).positions.numpy(),
            f"recall={recall}": lambda r=rows: index.search(r, K, recall=recall, threads=1).positions.numpy(),
        }
        peer = []
        if seismic:
            found = _best(seismic, queries, truth, recall)
            contenders[found[0]] = found[1]
            peer = [found[0]]
        lines += _lines(name, contenders, peer or ["exact"], queries.shape[0], given, truth=truth)
        setting[f"opened, {name}"] = float(index.search(rows, K, recall=recall).opened.float().mean())
    return lines, setting


def _build(path: Path, documents: sp.csr_matrix, calibrating: sp.csr_matrix) -> dict[str, float]:
    n, start = documents.shape[0], time.perf_counter()
    index = Index.create(path, documents.shape[1])
    index.add([str(i) for i in range(n)], SparseVectors.of(documents))
    added = time.perf_counter()
    for tried in index.merge(SparseVectors.of(calibrating), threads=2):
        print(
            f"{tried.seconds / calibrating.shape[0] * 1e6:8.0f} us  {tried.recall:.4f}  {tried.search}", file=sys.stderr
        )
    return {"add": added - start, "merge and calibrate": time.perf_counter() - added}


def _best(seismic: peers.Seismic, queries: sp.csr_matrix, truth: np.ndarray, recall: float) -> tuple[str, Contender]:
    """The fastest setting of Seismic that reaches the recall on these very queries; the best recall if none does."""
    tried = []
    for cut, heap in itertools.product((3, 5, 8, 12, 20), (1.0, 0.9, 0.8, 0.7)):
        run = _run(seismic.search(cut, heap), queries[:128])
        start = time.perf_counter()
        got = _recall(run(), truth[:128])
        tried.append((time.perf_counter() - start, got, cut, heap))
    fitting = [t for t in tried if t[1] >= recall] or [max(tried, key=lambda t: t[1])]
    _, _, cut, heap = min(fitting)
    return f"seismic {cut}/{heap}", _run(seismic.search(cut, heap), queries)


def _lines(
    case: str,
    contenders: dict[str, Contender],
    others: list[str],
    asked: int,
    given: Any,
    *,
    truth: Any = None,
    exact: bool = False,
) -> list[Line]:
    first = {name: run() for name, run in contenders.items()}
    recalls = {} if exact else {name: _recall(ids, truth) for name, ids in first.items()}
    rounds = 2 if given.quick else min(given.rounds, 5)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time_ns()
            run()
            seconds[name].append((time.process_time_ns() - start) / 1e3 / asked)
    timings = measure.Comparison({name: measure.Timing.of(s) for name, s in seconds.items()})
    shown = {n: n if exact else f"{n}, recall {recalls[n]:.4f}" for n in contenders}
    named = measure.Comparison({shown[n]: timings[n] for n in contenders})
    return [common.line(case, named, shown[m], shown[p]) for m in contenders if m not in others for p in others]


def _ours(built: Any, queries: sp.csr_matrix) -> Contender:
    rows = SparseVectors.of(queries)
    return lambda: built.search(rows, K, threads=1).ids.numpy()


def _run(search: peers.Search, queries: sp.csr_matrix) -> Contender:
    return lambda: search(queries)


def _binary(texts: list[list[int]]) -> sp.csr_matrix:
    rows = [sorted(set(t)) for t in texts]
    ptr = np.cumsum([0, *map(len, rows)])
    return sp.csr_matrix((np.ones(ptr[-1], np.float32), np.concatenate(rows), ptr), (len(rows), data.TERMS))


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]))


if __name__ == "__main__":
    main()
