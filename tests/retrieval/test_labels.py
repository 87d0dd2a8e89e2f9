from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from sparseworks.core.errors import BudgetError, UnknownNameError
from sparseworks.exec.search import InvertedIndex
from sparseworks.exec.search.rows import dense
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


def test_conjunctive_queries_are_answered_better_than_by_words_or_by_dense_vectors():
    rng, found = random.Random(1), notes()
    cube, bm25 = LabelCube(DIMENSIONS), BM25().fit([t for _, t in found])
    for i, (labels, _) in enumerate(found):
        cube.add(f"n{i}", labels)
    words = bm25.documents([t for _, t in found])
    index, rows = InvertedIndex(words), dense(words, 0, len(words))
    axes = torch.linalg.svd(rows, full_matrices=False)[2][:32].T  # latent semantic analysis
    vectors = F.normalize(rows @ axes, dim=1)
    kept = {"cube": 0.0, "words": 0.0, "dense": 0.0}
    for _ in range(60):
        labels, _ = rng.choice(found)
        asked = {d: labels[d] for d in ("place", "event", "person")}
        right = {f"n{i}" for i, (other, _) in enumerate(found) if all(other[d] == asked[d] for d in asked)}
        query = bm25.queries([" ".join(v[0] for v in asked.values())])
        near = vectors @ F.normalize(dense(query, 0, 1) @ axes, dim=1)[0]
        hits = {"words": index.search(query, 5)[1][0].tolist(), "dense": near.topk(5).indices.tolist()}
        hits["cube"] = [int(d[1:]) for d, _ in cube.search(asked, 5)]
        for name, ids in hits.items():
            kept[name] += len({f"n{i}" for i in ids} & right) / min(5, len(right))
    assert kept["cube"] == 60 and kept["words"] < 0.9 * 60 and kept["dense"] < 0.9 * 60, kept


def test_a_look_up_touches_the_documents_of_its_cells_however_many_others_there_are():
    class Counted(str):
        touched = 0

        def __hash__(self):
            Counted.touched += 1
            return super().__hash__()

        def __eq__(self, other):
            Counted.touched += 1
            return super().__eq__(other)

    work, answers, asked = [], [], {"place": ["town0"], "year": ["1990"]}
    for others in (0, 3000):
        cube = LabelCube(DIMENSIONS)
        for i in range(40):
            cube.add(Counted(f"n{i}"), {"place": [f"town{i % 2}"], "year": [str(1990 + i % 5)]})
        for i in range(others):
            cube.add(Counted(f"m{i}"), {"place": [f"elsewhere{i % 50}"], "year": [str(2000 + i % 50)]})
        del cube._labels  # a look-up reads no labels of documents
        Counted.touched = 0
        answers.append(cube.search(asked, 5))
        work.append(Counted.touched)
    assert answers[0] == answers[1] and answers[0][0] == ("n0", 2) and 0 < work[0] == work[1] < 200


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
