from __future__ import annotations

import random

import pytest

from sparseworks.core.errors import BudgetError, UnknownNameError
from sparseworks.exec.search import InvertedIndex
from sparseworks.retrieval.bm25 import BM25
from sparseworks.retrieval.labels import LabelCube

DIMENSIONS = ("place", "year", "event", "person")
PLACES, EVENTS = [f"town{i}" for i in range(12)], [f"event{i}" for i in range(10)]
PEOPLE, YEARS = [f"person{i}" for i in range(15)], [str(1990 + i) for i in range(10)]


def notes(count=600, seed=0):
    """Notes with four labels each, and words of other notes' labels in passing: what misleads a bag of words."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        labels = {d: [rng.choice(v)] for d, v in zip(DIMENSIONS, (PLACES, YEARS, EVENTS, PEOPLE), strict=True)}
        passing = [rng.choice(rng.choice((PLACES, YEARS, EVENTS, PEOPLE))) for _ in range(12)]
        text = " ".join([*(v[0] for v in labels.values()), *passing])
        found.append((labels, text))
    return found


def test_conjunctive_queries_are_answered_better_than_by_words():
    rng, found = random.Random(1), notes()
    cube, bm25 = LabelCube(DIMENSIONS), BM25().fit([t for _, t in found])
    for i, (labels, _) in enumerate(found):
        cube.add(f"n{i}", labels)
    index = InvertedIndex(bm25.documents([t for _, t in found]))
    ours = theirs = 0.0
    for _ in range(60):
        labels, _ = rng.choice(found)
        asked = {d: labels[d] for d in ("place", "event", "person")}
        right = {f"n{i}" for i, (other, _) in enumerate(found) if all(other[d] == asked[d] for d in asked)}
        hits = {d for d, _ in cube.search(asked, 5)}
        _, ids = index.search(bm25.queries([" ".join(v[0] for v in asked.values())]), 5)
        ours += len(hits & right) / min(5, len(right))
        theirs += len({f"n{i}" for i in ids[0].tolist()} & right) / min(5, len(right))
    assert ours == 60 and theirs < 0.9 * ours


def test_labels_are_matched_by_similarity_where_they_are_unknown():
    cube = LabelCube(("place",), similar=lambda asked, names: [float(n[:3] == asked[:3]) for n in names])
    cube.add("a", {"place": ["Berlin"]})
    cube.add("b", {"place": ["Paris"]})
    assert cube.search({"place": ["BERLIN "]}) == [("a", 1)] and cube.search({"place": ["Berlino"]}) == [("a", 1)]
    assert cube.search({"place": ["Rome"]}) == []
    cube.add("c", {"place": ["Bern"]})
    cube.add("d", {"place": ["Berlin", "Bern"]})  # every label that is like it matches, each once
    assert cube.search({"place": ["Berlino"]}) == [("d", 2), ("a", 1), ("c", 1)]
    cube.least = 1.0  # above, not at
    assert cube.search({"place": ["Berlino"]}) == []


def test_documents_are_replaced_and_deleted():
    cube = LabelCube(("place", "year"))
    cube.add("a", {"place": ["x"], "year": ["1", "2"]})
    cube.add("a", {"place": ["y"]})
    cube.add("b", {"place": ["y", "y"]})
    assert cube.search({"place": ["x"]}) == [] and cube.search({"place": ["y"]}) == [("a", 1), ("b", 1)]
    assert cube.search({"place": ["y"]}, ties={"b": 0.5})[0][0] == "b"
    cube.delete("a")
    assert len(cube) == 1 and cube.search({"place": ["y"]}) == [("b", 1)]
    with pytest.raises(BudgetError):
        cube.delete("a")
    with pytest.raises(UnknownNameError, match="year"):
        cube.search({"years": ["1"]})
