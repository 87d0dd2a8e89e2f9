"""A small search service over HTTP with a page: needs the extra `serve` (FastAPI, uvicorn)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sparseworks.core.errors import ModelError, RecipeError, SparseworksError
from sparseworks.exec.search import Rows
from sparseworks.retrieval.index import Hits, Index
from sparseworks.retrieval.texts import NAME, TextIndex
from sparseworks.retrieval.vectors import SparseVectors

_MOST = 1000  # hits a request
_LONGEST = 10_000  # characters or terms of a query


def service(path: Path | str) -> Any:
    """The application: `GET /` a page, `POST /search`, `GET /status`, `POST /refresh`. Read only.

    `POST /search` takes {"query": text} or {"vector": {term: weight}}, and k, recall, filter (metadata); it answers with hits, what
    was searched, and milliseconds. Errors are {"error": sentence} with status 422 (or 404, 400 of HTTP).

    Raises:
        ModelError: FastAPI is not installed.
        CheckpointError: no index, or damage.
    """
    try:
        from fastapi import Body, FastAPI  # pyright: ignore[reportMissingImports]
        from fastapi.responses import HTMLResponse, JSONResponse  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelError("The search service needs FastAPI: pip install 'sparseworks[serve]'.") from None
    texts = TextIndex.open(path) if (Path(path) / NAME).is_file() else None
    index = texts.index if texts is not None else Index.open(path)
    app = FastAPI(title="Sparseworks search", docs_url=None, redoc_url=None)

    @app.exception_handler(SparseworksError)
    def _failed(_: Any, error: SparseworksError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE

    @app.get("/status")
    def status() -> dict[str, Any]:
        return {
            "documents": len(index), "terms": index.width, "segments": len(index.snapshot.segments), "texts": texts is not None,
            "generation": index.snapshot.manifest.generation,
        }  # fmt: skip

    @app.post("/refresh")
    def refresh() -> dict[str, Any]:
        index.refresh()
        return status()

    @app.post("/search")
    def search(wish: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - as FastAPI wants it
        return answer(index, texts, wish)

    return app


def answer(index: Index, texts: TextIndex | None, wish: dict[str, Any]) -> dict[str, Any]:
    """What `POST /search` answers.

    Raises:
        SparseworksError: the request is wrong; the message says what it should be.
    """
    unknown = set(wish) - {"query", "vector", "k", "recall", "filter"}
    if unknown:
        raise RecipeError(f"A request has query or vector, k, recall, filter; not {sorted(unknown)[0]!r}.")
    k, recall, allowed = wish.get("k", 10), wish.get("recall"), wish.get("filter")
    if type(k) is not int or not 1 <= k <= _MOST:
        raise RecipeError(f"k is a whole number from 1 to {_MOST}, got {k!r}.")
    if recall is not None and (isinstance(recall, bool) or not isinstance(recall, int | float)):
        raise RecipeError(f"recall is a number, got {recall!r}.")
    if allowed is not None and not isinstance(allowed, dict):
        raise RecipeError('filter is a mapping of metadata, such as {"language": "en"}.')
    start = time.perf_counter()
    snapshot = index.snapshot
    hits = snapshot.search(_vector(index, texts, wish), k, recall=recall, filter=allowed)
    found = [_hit(snapshot, hits, i) for i in range(len(hits.ids[0]))]
    return {
        "hits": found, "exact": hits.exact, "opened": int(hits.opened[0]), "documents": hits.documents, "how": list(hits.how),
        "milliseconds": round(1000 * (time.perf_counter() - start), 3),
    }  # fmt: skip


def _vector(index: Index, texts: TextIndex | None, wish: dict[str, Any]) -> Rows:
    query, vector = wish.get("query"), wish.get("vector")
    if (query is None) == (vector is None):
        raise RecipeError("A request has either a query or a vector.")
    if vector is not None:
        if not isinstance(vector, dict) or len(vector) > _LONGEST:
            raise RecipeError(f"A vector maps up to {_LONGEST} terms to weights.")
        try:
            return SparseVectors.of_terms([{int(t): float(w) for t, w in vector.items()}], index.width)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"A vector maps numbers of terms to weights: {error}.") from error
    if not isinstance(query, str) or len(query) > _LONGEST:
        raise RecipeError(f"A query is a text of up to {_LONGEST} characters.")
    if texts is None:
        raise RecipeError("This is an index of vectors without an encoder of texts: ask with a vector.")
    return texts.encoder.queries([query])


def _hit(snapshot: Any, hits: Hits, i: int) -> dict[str, Any]:
    return {
        "id": hits.ids[0][i],
        "score": float(hits.scores[0, i]),
        "metadata": snapshot.metadata(int(hits.positions[0, i])),
    }


def serve(path: Path | str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Run the service until interrupted.

    Raises:
        ModelError: FastAPI or uvicorn is not installed.
        CheckpointError: no index, or damage.
    """
    app = service(path)
    try:
        import uvicorn  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelError("The search service needs uvicorn: pip install 'sparseworks[serve]'.") from None
    uvicorn.run(app, host=host, port=port, log_level="warning")


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sparseworks search</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
 form { display: flex; gap: .5rem; } input[name=query] { flex: 1; } input, select, button { font: inherit; padding: .4rem .6rem; }
 ol { padding-left: 1.5rem; } li { margin: .8rem 0; } .score, #facts { color: #666; font-size: .85rem; } .error { color: #a00; }
</style>
<h1>Search</h1>
<form id="form"><input name="query" aria-label="Query" placeholder="words, or {&quot;17&quot;: 1.5} for a vector" autofocus required>
<select name="recall" aria-label="Recall"><option value="">exact</option><option>0.99</option><option>0.95</option><option>0.9</option></select>
<button>Search</button></form>
<p id="facts" role="status"></p><ol id="hits"></ol>
<script>
const form = document.getElementById("form"), facts = document.getElementById("facts"), list = document.getElementById("hits");
const line = (kind, text, name) => { const e = document.createElement(kind); e.textContent = text; if (name) e.className = name; return e; };
async function search() {
  const asked = form.query.value.trim(), wish = {k: 10};
  try { const v = JSON.parse(asked); if (v && typeof v === "object") wish.vector = v; else wish.query = asked; } catch { wish.query = asked; }
  if (form.recall.value) wish.recall = Number(form.recall.value);
  list.replaceChildren(); facts.className = "";
  const reply = await fetch("search", {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(wish)});
  const found = await reply.json();
  if (found.error) { facts.className = "error"; facts.textContent = found.error; return; }
  facts.textContent = `${found.hits.length} hits in ${found.milliseconds} ms, ${found.exact ? "exact" : "approximate"}, ` +
    `${found.opened} of ${found.documents} documents scored`;
  for (const hit of found.hits) {
    const item = line("li", "");
    item.append(line("strong", hit.id), line("span", " " + hit.score.toFixed(3), "score"));
    if (hit.metadata.text) item.append(line("div", hit.metadata.text.slice(0, 300)));
    list.append(item);
  }
}
form.addEventListener("submit", event => { event.preventDefault(); history.replaceState(null, "", "?q=" + encodeURIComponent(form.query.value)); search(); });
const first = new URLSearchParams(location.search).get("q");
if (first) { form.query.value = first; search(); }
</script></html>
"""
