"""How well do sparse representations rank beside dense ones of the same bytes, and beside BM25?

Collections are folders of documents, queries and judgements (BEIR's layout); the sentence encoder is all-MiniLM-L6-v2 or another.
What is trained sees the documents alone: made-up queries are their sentences and some words in a row, teachers are the sentence
encoder and BM25. Learning rates of heads are those that keep most of the sentence encoder's ten nearest documents of made-up queries
that were held out. `bytes` a document: 4 a number, and 2 (4 beyond 65,536 terms) for the index of each entry of a sparse vector;
`index bytes`: what `sparseworks.retrieval.Index` takes on disk, ids and both directions included. FLOPs: expected multiplications
of one query with one document. Rows are kept as they are made, embeddings and encoders in `--work`: a run that was cut off goes on.

    python benchmarks/retrieval/quality.py --model minilm --collections nfcorpus cranfield --device cuda --bfloat16 --json quality

With `--device cuda` what learns runs on the GPU; indexes and rankings are made on the CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import encoders
from common import DEVICE, RESULTS, arguments, store, table
from figures import Data, Pairs, best_rate, dense_row, dense_runs, pruned, scored, sparse_row, sparse_runs

import sparseworks as sw
from sparseworks.core.codes import Codes
from sparseworks.evaluate import Collection, TopicCorpus, read_collection
from sparseworks.exec.search import Rows
from sparseworks.io import load_tokenizer
from sparseworks.jobs.journal import Journal
from sparseworks.retrieval import SparseVectors
from sparseworks.retrieval.bm25 import BM25
from sparseworks.retrieval.csr import CSR, train_csr
from sparseworks.retrieval.encoders import rows_of
from sparseworks.retrieval.fusion import interpolate
from sparseworks.retrieval.regularisers import CodeRegulariser, Flops, MaskedFlops

BUDGETS = (1536, 768, 384, 192, 96)
"""Bytes a document at which representations are compared; the first is MiniLM as it is."""
LUCENE = {"k1": 0.9, "b": 0.4, "stem": "porter"}
"""BM25 as Anserini and Pyserini run it on BEIR: Lucene's idf, its 33 stop words, Porter stems."""
BM25S = {
    "BM25, k1 0.9, b 0.4, Porter (Pyserini)": LUCENE,
    "BM25, k1 0.9, b 0.4, Porter, scikit-learn's stop words": {**LUCENE, "stop_words": sorted(ENGLISH_STOP_WORDS)},
    "BM25, k1 1.5, b 0.75, Porter": {"k1": 1.5, "b": 0.75, "stem": "porter"},
    "BM25, k1 0.9, b 0.4, not stemmed": {"k1": 0.9, "b": 0.4},
    "BM25, k1 1.5, b 0.75, not stemmed": {"k1": 1.5, "b": 0.75},
}
TERM_ENCODERS: dict[str, tuple[CodeRegulariser | None, CodeRegulariser]] = {
    "idf_flops": (None, Flops(0.02, summed=True)),
    "splade": (Flops(0.1), Flops(0.08)),
    "l0_inference_free": (None, MaskedFlops(0.08, summed=True, above=60)),
}
"""Published weights on queries and documents; documents of up to 60 terms are let be, as long as BM25's."""


# -- representations ----------------------------------------------------------------------------------------------


def bm25_rows(data: Data, args: Namespace) -> list[dict[str, Any]]:
    """Variants, and the published one with fewer terms."""
    rows = []
    for name, options in BM25S.items():
        model = BM25(**options).fit(data.texts)
        rows.append(sparse_row(data, name, model.queries(data.queries), model.documents(data.texts)))
    model = BM25(**LUCENE).fit(data.texts)
    queries, documents = model.queries(data.queries), model.documents(data.texts)
    return rows + [sparse_row(data, "BM25, strongest terms", queries, pruned(documents, b // 6)) for b in BUDGETS]


def dense_rows(data: Data, args: Namespace) -> list[dict[str, Any]]:
    """MiniLM whole and cut."""
    width = data.documents.shape[1]
    return [
        dense_row(data, "MiniLM" if n == width else "MiniLM, first dimensions", data.asked[:, :n], data.documents[:, :n])
        for n in (width * b // BUDGETS[0] for b in BUDGETS)
    ]  # fmt: skip


def matryoshka_rows(data: Data, args: Namespace) -> list[dict[str, Any]]:
    """A linear head trained to be cut."""
    width, start = data.documents.shape[1], time.perf_counter()
    sizes = [width * b // BUDGETS[0] for b in BUDGETS]
    axes = data.documents.to(args.device)

    def train(pairs: Pairs, rate: float) -> encoders.Matryoshka:
        return encoders.Matryoshka(axes, sizes).fit(*pairs.on(args.device), args.head_steps, rate=rate).cpu()

    rate = best_rate(data, args, (1e-4, 3e-4, 1e-3), train, lambda head, x: head(x, sizes[2]))
    head = train(Pairs.of(data, args.pieces), rate)
    more = {"seconds": time.perf_counter() - start, "rate": rate}
    with torch.no_grad():
        return [
            {**dense_row(data, "Matryoshka head", head(data.asked, n), head(data.documents, n)), **more} for n in sizes
        ]


def csr_rows(data: Data, args: Namespace) -> list[dict[str, Any]]:
    """A top-k autoencoder for each budget, on made-up queries, each beside its document."""
    width, pairs, rows = data.documents.shape[1], Pairs.of(data, args.pieces), []

    def train(pairs: Pairs, rate: float, k: int) -> CSR:
        epochs = max(1, args.head_steps * 512 // len(pairs.queries))
        return train_csr(*pairs.on(args.device), k=k, epochs=epochs, batch_size=512, rate=rate).cpu()

    kept = [max(1, width * b // BUDGETS[0] * 4 // 6) for b in BUDGETS]
    code = lambda model, x, k=kept[2]: _unit(model.encode(x, k))  # noqa: E731
    rate = best_rate(
        data, args, (4e-4, 2e-3, 8e-3), lambda *given: train(*given, kept[2]), lambda m, x: code(m, x).dense()
    )
    for k in kept:
        start = time.perf_counter()
        model = train(pairs, rate, k)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            queries, documents = (rows_of(code(model, v, k)) for v in (data.asked, data.documents))
        rows.append({**sparse_row(data, "CSR", queries, documents), "seconds": seconds, "k": k, "rate": rate})
    return rows


def _unit(codes: Codes) -> Codes:
    return Codes(F.normalize(codes.values, dim=1), codes.indices, codes.width, codes.lengths)


def term_codes(data: Data, name: str, args: Namespace) -> tuple[Rows, Rows, float]:
    """Queries and documents by a trained term encoder, and the seconds of its training; kept once made."""
    folder = data.folder / f"{name}-{args.steps}-{args.batch}-{args.tokens}-{args.read}-{args.rate:g}-{args.weight:g}"
    if not (folder / "seconds.json").is_file():
        asked, bm25 = data.made_up(args.pieces), BM25(**LUCENE).fit(data.texts)
        rows = asked.rows(data.texts, data.documents, 2 * args.batch * args.steps)
        taught = encoders.teachers(data.texts, data.documents, asked, bm25, args.device)
        start = time.perf_counter()
        sides = [r and replace(r, weight=args.weight * r.weight) for r in TERM_ENCODERS[name]]
        method = encoders.distilled(name, *sides)
        made = encoders.train_terms(method, data.model, data.tokenizer, data.texts, rows, taught, steps=args.steps, tokens=args.tokens, read=args.read, folder=folder, bfloat16=args.bfloat16, batch=args.batch, rate=args.rate, layers=args.layers, device=args.device)  # fmt: skip
        seconds = time.perf_counter() - start
        SparseVectors.of(made.encode_queries(data.queries)).save(folder / "queries.safetensors")
        SparseVectors.of(made.encode_documents(data.texts)).save(folder / "documents.safetensors")
        (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
        (folder / "retriever.pt").unlink(missing_ok=True)
    queries, documents = (SparseVectors.load(folder / f"{n}.safetensors")[0] for n in ("queries", "documents"))
    return queries, documents, float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))


def term_rows(data: Data, args: Namespace, name: str) -> list[dict[str, Any]]:
    """As trained, and with the strongest terms of each document."""
    queries, documents, seconds = term_codes(data, name, args)
    rows = [sparse_row(data, name, queries, documents)]
    rows += [sparse_row(data, f"{name}, strongest terms", queries, pruned(documents, b // 6)) for b in BUDGETS[1:]]
    return [{**row, "seconds": seconds} for row in rows]


def fused_rows(data: Data, args: Namespace) -> list[dict[str, Any]]:
    """BM25 interpolated with MiniLM and with each term encoder that is among the parts, half and half."""
    model = BM25(**LUCENE).fit(data.texts)
    words = model.queries(data.queries), model.documents(data.texts)
    first, others = sparse_runs(data, *words), {"MiniLM": dense_runs(data, data.asked, data.documents)}
    size = {"MiniLM": 4.0 * data.documents.shape[1]}
    for name in (n for n in TERM_ENCODERS if n in args.parts):
        queries, documents, _ = term_codes(data, name, args)
        others[name], size[name] = sparse_runs(data, queries, documents), 6 * len(documents.indices) / len(documents)
    own = 6 * len(words[1].indices) / len(words[1])
    return [
        {"name": f"BM25 + {name}", **scored(data, [interpolate(a, b) for a, b in zip(first, runs, strict=True)]), "bytes": own + size[name]}
        for name, runs in others.items()
    ]  # fmt: skip


PARTS: Mapping[str, Callable[[Data, Namespace], list[dict[str, Any]]]] = {
    "bm25": bm25_rows,
    "dense": dense_rows,
    "matryoshka": matryoshka_rows,
    "csr": csr_rows,
    **{name: lambda data, args, n=name: term_rows(data, args, n) for name in TERM_ENCODERS},
    "fused": fused_rows,
}


# -- the run ------------------------------------------------------------------------------------------------------


def synthetic() -> tuple[Any, Any, list[Collection]]:
    """A small untrained encoder and a collection of its words."""
    from transformers import BertConfig, BertModel

    corpus = TopicCorpus(topics=3, concepts=4, own=2, passing=1, asked=1, stop=3)
    tokenizer = corpus.tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config), tokenizer, [corpus.collection(40, 12)]


def run(args: Namespace) -> list[dict[str, Any]]:
    """Every part of every collection."""
    if args.quick:
        args.steps, args.head_steps, args.tokens, args.read, args.weight, args.bfloat16 = 3, 6, 32, 32, 0.1, False
        args.batch, args.pieces, args.layers, args.rate = 8, 3, 2, 2e-4
        args.work = Path(tempfile.mkdtemp())
        model, tokenizer, collections = synthetic()
    else:
        model, tokenizer = sw.load(args.model).float().eval(), load_tokenizer(args.model)
        collections = [read_collection(c) for c in args.collections]
    rows = []
    for collection in collections:
        kept = None if args.quick else args.work / collection.name / "rows.json"
        journal = Journal(kept, json.dumps(setting(args)))
        data = Data(collection, model, tokenizer, args.work / collection.name, args.bfloat16, args.device)
        for part in PARTS:
            if part not in args.parts and f"{collection.name} {part}" not in journal:
                continue
            made = journal.keep(f"{collection.name} {part}", lambda d=data, p=part: PARTS[p](d, args))
            rows += [{"collection": collection.name, **row} for row in made]
            show(rows[-len(made) :])
    return rows


def setting(args: Namespace) -> dict[str, Any]:
    """All that the figures depend on."""
    names = ("steps", "head_steps", "batch", "pieces", "layers", "rate", "tokens", "read", "weight", "bfloat16")
    return {n: getattr(args, n) for n in names} | {"model": Path(args.model).name}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the figures of one part."""
    head = ("ndcg@10", "recall@100", "bytes", "index bytes", "terms", "query terms", "flops", "seconds")
    cells = [[r["name"], *(f"{r[h]:.4g}" if h in r else "" for h in head)] for r in rows]
    table(rows[0]["collection"], ["representation", *head], cells)


def main() -> None:
    args = arguments(
        __doc__ or "",
        model={"default": "minilm", "help": "sentence encoder: a folder, or the name of an embedded model"},
        collections={"type": Path, "nargs": "*", "default": [], "metavar": "FOLDER", "help": "folders in BEIR's layout"},
        parts={"nargs": "*", "default": list(PARTS), "choices": list(PARTS), "help": "what to make; rows that were made before are stored too"},
        steps={"type": int, "default": 150, "help": "steps of a term encoder's training"},
        head_steps={"type": int, "default": 400, "help": "steps of CSR and of the Matryoshka head, 512 made-up queries each"},
        batch={"type": int, "default": 8, "help": "rows of a step: a query and three documents each"},
        pieces={"type": int, "default": 3, "help": "made-up queries of a document"},
        layers={"type": int, "default": 2, "help": "layers of the encoder that learn, from the last"},
        rate={"type": float, "default": 1e-4, "help": "learning rate of a term encoder"},
        tokens={"type": int, "default": 64, "help": "tokens of a text in training"},
        read={"type": int, "default": 128, "help": "tokens of a text that trained term encoders read"},
        weight={"type": float, "default": 0.1, "help": "weights of regularisers over those published for a hundred times the steps"},
        bfloat16={"action": "store_true", "help": "run the encoder's products in bfloat16, where the processor is fast at them"},
        device=DEVICE,
        work={"type": Path, "default": Path("out/retrieval-quality"), "help": "where embeddings, encoders and rows are kept"},
    )  # fmt: skip
    torch.set_default_device("cpu")  # what goes to the GPU is sent there
    if not args.quick and not args.collections:
        raise SystemExit("Give --collections FOLDER ..., or --quick.")
    rows = run(args)
    path = args.json
    store("retrieval_quality", [], None if path is None else path if path.parent != Path() else RESULTS / "retrieval" / path, rows=rows, setting=setting(args))  # fmt: skip


if __name__ == "__main__":
    main()
