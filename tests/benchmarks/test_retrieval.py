"""The benchmarks of retrieval run, draw the same data each time, and compare answers that are equal."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "retrieval"
NAMES = ("data", "peers", "common")


@pytest.fixture(scope="module")
def script():
    """`benchmarks/retrieval/search.py`, found as when it is run."""
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    spec = importlib.util.spec_from_file_location("retrieval_search", SCRIPTS / "search.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    paths = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = paths
    for name, old in before.items():
        sys.modules.pop(name, None)
        if old is not None:
            sys.modules[name] = old


def test_data_are_the_same_each_time_and_in_any_number(script):
    draw = script.data.draw
    one, two = draw(300, 126, 0), draw(300, 126, 0)
    assert (one != two).nnz == 0 and one.shape == (300, script.data.TERMS) and 100 < one.nnz / 300 <= 126
    assert (one != draw(300, 126, 1)).nnz > 0


def test_ours_and_the_peer_find_the_same(script, monkeypatch):
    monkeypatch.setattr(script.peers, "bm25s_index", lambda *_: None)
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    lines, setting = script.exact(400, 8, argparse.Namespace(quick=True, rounds=2, build=False))
    assert [line.ours for line in lines] == ["exhaustive_postings", "max_score", "block_max_wand"]
    assert {line.peer for line in lines} == {"torch CSR"} and setting == {"seismic": "absent", "absent": "bm25s"}
    documents, queries = script.data.draw(400, 126, 0), script.data.draw(8, 39, 2)
    found = script.peers.torch_csr(documents)(queries)
    ours = script._ours(script.sw.method("exhaustive_postings").build(documents), queries)()
    assert script._recall(found, ours) == 1.0
    assert script._recall(np.full((8, 10), -1), ours) == 0.0
