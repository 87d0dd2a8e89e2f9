"""The search service: what it answers, what it refuses, and its page in a browser."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from sparseworks.core.errors import CheckpointError
from sparseworks.retrieval import Index
from sparseworks.retrieval.exchange import read_texts
from sparseworks.retrieval.serve import PAGE, answer, service
from sparseworks.retrieval.texts import TextIndex
from sparseworks.testing.index import example_vectors


@pytest.fixture
def texts(tmp_path, words, beir):
    return TextIndex.create(tmp_path / "index", read_texts(beir))


@pytest.fixture
def client(texts):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    with TestClient(service(texts.index.path)) as client:
        yield client


def test_answers_without_http(texts):
    found = answer(texts.index, texts, {"query": "moon tides", "k": 2})
    assert [h["id"] for h in found["hits"]] == ["tides", "moon"] and found["exact"] and found["documents"] == 6
    assert found["hits"][0]["metadata"]["text"].startswith("the moon and")
    place = str(texts.encoder.places["yeast"])
    assert [h["id"] for h in answer(texts.index, texts, {"vector": {place: 1}})["hits"]] == ["bread", "beer"]
    filtered = answer(texts.index, texts, {"query": "moon", "filter": {"text": "nothing"}})
    assert filtered["hits"] == [] and filtered["documents"] == 0


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "either a query or a vector"), ({"query": "a", "vector": {}}, "either a query or a vector"),
        ({"query": 3}, "a text of up to"), ({"query": "x" * 10_001}, "a text of up to"), ({"query": "a", "k": 0}, "k is a whole number"),
        ({"query": "a", "k": True}, "k is a whole number"), ({"query": "a", "k": 10**9}, "k is a whole number"),
        ({"query": "a", "recall": "much"}, "recall is a number"), ({"query": "a", "recall": 2}, "recall <= 1"),
        ({"query": "a", "filter": []}, "mapping of metadata"), ({"vector": {"one": 1}}, "numbers of terms"),
        ({"vector": {"10000000": 1}}, r"must lie in \[0"), ({"vector": {"1": float("nan")}}, "NaN"), ({"vector": 3}, "A vector maps"),
        ({"query": "a", "limit": 3}, "not 'limit'"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(texts, wish, message):
    with pytest.raises(Exception, match=message):
        answer(texts.index, texts, wish)


def test_an_index_of_vectors_is_asked_with_vectors(tmp_path):
    index = Index.create(tmp_path / "vectors", 50)
    index.add(["a"], example_vectors(1, 50, 0))
    with pytest.raises(Exception, match="ask with a vector"):
        answer(index, None, {"query": "a"})
    with pytest.raises(CheckpointError, match="not of texts"):
        TextIndex.open(index.path)


def test_the_service(client, texts):
    found = client.post("/search", json={"query": "yeast", "k": 1})
    assert found.status_code == 200 and [h["id"] for h in found.json()["hits"]] == ["bread"]
    refused = client.post("/search", json={"query": "yeast", "k": -1})
    assert refused.status_code == 422 and "whole number" in refused.json()["error"]
    assert client.post("/search", content=b"{").status_code == 422
    assert client.get("/status").json() == {
        "documents": 6,
        "terms": texts.index.width,
        "segments": 1,
        "texts": True,
        "generation": 1,
    }
    texts.add({"mould": "mould spoils bread"})
    assert client.get("/status").json()["documents"] == 6
    assert client.post("/refresh").json()["documents"] == 7
    assert client.get("/").text == PAGE


def test_the_page_shows_hits_and_errors(texts, tmp_path, chromium):
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(service(texts.index.path), host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)

    def shown(query: str) -> str:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--virtual-time-budget=4000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]  # fmt: skip
        address = f"http://127.0.0.1:{port}/?q={query}"
        return subprocess.run(
            [chromium, *flags, address], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    try:
        page = shown("bread")
        assert "<strong>bread</strong>" in page and "<strong>beer</strong>" in page and "bread rises by yeast" in page
        assert "2 hits in" in page and "exact" in page
        assert "numbers of terms" in shown('{"x":1}')
    finally:
        server.should_exit = True
        thread.join()
