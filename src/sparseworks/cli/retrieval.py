"""`sparseworks index`, `search` and `serve`: an index of sparse vectors or of texts, in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparseworks.cli.machine import set_threads
from sparseworks.cli.options import Json, Threads

Folder = Annotated[Path, typer.Argument(help="Folder of the index.", file_okay=False, show_default=False)]
Existing = typer.Option(exists=True, show_default=False)


def index(
    folder: Folder,
    add: Annotated[
        Path | None,
        typer.Option(
            help="What to add: a BEIR folder, texts (.jsonl with `_id` and `text`), or vectors (.safetensors, .ciff).",
            exists=True,
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        Path | None, typer.Option(help="A file of ids to delete, one a line.", exists=True, show_default=False)
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make one segment of all, without what was deleted.")] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="With --merge: queries (as --add takes them) on which `search --recall` is calibrated, 50 or more.",
            exists=True,
            show_default=False,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits for which recall is calibrated.", min=1)] = 10,
    export: Annotated[
        Path | None,
        typer.Option(help="Write all vectors: .safetensors, .ciff, or .ndjson (OpenSearch bulk).", show_default=False),
    ] = None,
    k1: Annotated[float, typer.Option(help="BM25 of texts: saturation.", min=0.0)] = 1.5,
    b: Annotated[float, typer.Option(help="BM25 of texts: length normalisation.", min=0.0, max=1.0)] = 0.75,
    variant: Annotated[str, typer.Option(help="BM25 of texts: lucene, robertson, atire, bm25l, bm25+.")] = "lucene",
    stem: Annotated[
        str | None,
        typer.Option(
            help="BM25 of texts: Snowball stemmer, such as english or porter; default: none. Needs `sparseworks[retrieval]`.",
            show_default=False,
        ),
    ] = None,
    stop_words: Annotated[
        str, typer.Option(help="BM25 of texts: words left out: english (Lucene's 33), none, or a file of words.")
    ] = "english",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make an index in a folder, add to it, delete, merge, export; without options: what it holds.

    What was added is on disk when the command ends, and a crash at any moment loses nothing of it. Texts become BM25 vectors;
    their encoder is kept with the index. An id that is there already is replaced.

    Examples:

    `sparseworks index out/papers --add ./scifact`

    `sparseworks index out/papers --add ./scifact --k1 0.9 --b 0.4 --stem porter` (BM25 as Pyserini runs it on BEIR)

    `sparseworks index out/papers --delete gone.txt --merge --queries ./scifact`

    `sparseworks index out/vectors --add splade.safetensors --export for-lucene.ciff`
    """
    from sparseworks.cli.app import show
    from sparseworks.cli.searching import run_index, words_left_out

    set_threads(threads)
    options = {"k1": k1, "b": b, "method": variant, "stem": stem, "stop_words": words_left_out(stop_words)}
    show(run_index(folder, add, delete, merge, queries, k, export, options), as_json)


def search(
    folder: Folder,
    query: Annotated[list[str] | None, typer.Argument(help="Texts to search for.", show_default=False)] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Many queries: a BEIR folder, .jsonl with `_id` and `text`, or vectors (.safetensors).",
            exists=True,
            show_default=False,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits a query.", min=1)] = 10,
    recall: Annotated[
        float | None,
        typer.Option(
            help="Share of the exact hits that is enough; default: exact.", min=0.0, max=1.0, show_default=False
        ),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Metadata that hits must have, NAME=VALUE; repeatable.", show_default=False)
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Write a TREC run.", dir_okay=False, show_default=False)] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(help="Judgements (BEIR folder, .tsv, or TREC): report nDCG@10.", exists=True, show_default=False),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Search an index for texts, or for the vectors of a file: the largest inner products, exact or to a recall.

    Examples:

    `sparseworks search out/papers "does vitamin D prevent infections" -k 5`

    `sparseworks search out/papers --queries ./scifact --qrels ./scifact --run scifact.trec`

    `sparseworks search out/vectors --queries splade-queries.safetensors --recall 0.95 --json`
    """
    from sparseworks.cli.app import show
    from sparseworks.cli.searching import run_search

    set_threads(threads)
    show(run_search(folder, query or [], queries, k, recall, where or [], run, qrels), as_json)


def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than your machine need 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Serve an index over HTTP, with a page to search on. Read only, without authentication; needs the extra `serve`.

    `POST /search` takes {"query": text} or {"vector": {term: weight}}, with k, recall and filter. `--json` prints the address and
    what is served as one JSON document first.

    Examples:

    `sparseworks serve out/papers --port 8000`

    `curl -s localhost:8000/search -H 'content-type: application/json' -d '{"query": "vitamin D", "k": 3}'`
    """
    from sparseworks.cli.app import show
    from sparseworks.retrieval import Index
    from sparseworks.retrieval.serve import serve as run_service

    set_threads(threads)
    address = f"http://{host}:{port}/"
    show(({"address": address, "documents": len(Index.open(folder))}, f"Serving {folder} at {address}"), as_json)
    sys.stdout.flush()
    run_service(folder, host, port)
