from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.evaluate import ndcg, recall
from sparseworks.retrieval.fusion import (
    FeedbackSearch,
    Paths,
    dense_run,
    feedback,
    interpolate,
    normalised,
    reciprocal_rank,
)

RUNS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5), max_size=8)


def corpus(seed, documents=200, queries=100, topics=20):
    """Half of the queries ask for an exact term, half for a topic: (ids, dense vectors, cases of (query, sparse run, relevant)).

    Dense vectors know topics and are noisy; the sparse run knows terms: of an exact query its documents, of a topical one
    only a quarter of them, the others use synonyms.
    """
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(topics, 16, generator=g)
    topic = torch.randint(0, topics, (documents,), generator=g)
    vectors = centre[topic] + 1.1 * torch.randn(documents, 16, generator=g)
    vectors /= vectors.norm(dim=1, keepdim=True)
    ids = [f"d{i}" for i in range(documents)]
    cases = []
    for i in range(queries):
        t = int(torch.randint(0, topics, (1,), generator=g))
        own = (topic == t).nonzero()[:, 0]
        exact = i % 2 == 0
        relevant = own[torch.randperm(len(own), generator=g)[:4]] if exact else own
        query = centre[t] + 1.3 * torch.randn(16, generator=g)
        known = relevant if exact else relevant[torch.rand(len(relevant), generator=g) < 0.35]
        noise = torch.randint(0, documents, (15,), generator=g)
        run = {ids[j]: 0.3 + 0.5 * float(torch.rand(1, generator=g)) for j in noise.tolist()}
        run |= {ids[j]: 0.7 + 0.5 * float(torch.rand(1, generator=g)) for j in known.tolist()}
        cases.append((query / query.norm(), run, {ids[j]: 1 for j in relevant.tolist()}))
    return ids, vectors, cases


def quality(mode, seed):
    ids, vectors, cases = corpus(seed)
    search = FeedbackSearch(mode)
    found = []
    for query, sparse, relevant in cases:
        run = search(sparse, query, vectors, ids)
        found.append(ndcg(sorted(run, key=lambda d: (-run[d], d)), relevant))
    return sum(found) / len(found)


def test_both_beats_post_and_pre_beats_none():
    for seed in range(2):
        q = {mode: quality(mode, seed) for mode in ("none", "pre", "post", "both")}
        assert q["both"] > q["post"] + 0.005 and q["pre"] > q["none"] + 0.02 and q["post"] > q["none"] + 0.02


@given(RUNS, RUNS, st.floats(0, 1))
def test_interpolation_is_of_normalised_scores_with_the_least_for_the_missing(a, b, alpha):
    found = interpolate(a, b, alpha)
    assert set(found) == set(a) | set(b) and all(-1e-9 <= s <= 1 + 1e-9 for s in found.values())
    for d in set(a) & set(b):
        assert found[d] == pytest.approx(alpha * normalised(a)[d] + (1 - alpha) * normalised(b)[d])
    for d in set(a) - set(b):
        assert found[d] == pytest.approx(alpha * normalised(a)[d])


def test_ends_of_interpolation_are_the_runs():
    a, b = {"x": 3.0, "y": 1.0}, {"y": 2.0, "z": 9.0}
    assert interpolate(a, b, 1.0) == {"x": 1.0, "y": 0.0, "z": 0.0}
    assert normalised({"x": 2.0, "y": 2.0}) == {"x": 0.0, "y": 0.0} and normalised({}) == {}
    z = normalised(a, "z")
    assert z["x"] == 1 and z["y"] == -1
    with pytest.raises(BudgetError):
        interpolate(a, b, 1.5)
    with pytest.raises(BudgetError):
        normalised(a, "rank")
    with pytest.raises(NonFiniteError):
        normalised({"x": float("nan")})


def test_reciprocal_ranks_add_up():
    found = reciprocal_rank([{"a": 9.0, "b": 5.0}, {"b": 1.0}], k=60)
    assert found == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61})


def test_the_union_of_paths_finds_what_each_finds():
    runs = [{"a": 3.0, "b": 2.0, "c": 1.0}, {"c": 3.0, "d": 2.0, "e": 1.0}]
    paths = Paths(tuple((lambda q, r=r: r) for r in runs), depth=2)
    assert set(paths.candidates("q")) == {"a", "b", "c", "d"}
    assert max(paths("q"), key=paths("q").get) == paths.candidates("q")[0]
    again = Paths(paths.paths, 2, rerank=lambda q, found: {d: -ord(d) for d in found})
    assert max(again("q"), key=again("q").get) == "a"


def test_the_union_of_paths_recalls_what_each_path_does_and_more():
    ids, vectors, cases = corpus(0)
    sums = torch.zeros(3)
    for query, sparse, relevant in cases:
        runs = sparse, dense_run(query, vectors, ids, len(ids))
        single = [Paths((lambda _, r=r: r,), depth=10).candidates("q") for r in runs]
        union = Paths(tuple((lambda _, r=r: r) for r in runs), depth=10).candidates("q")
        found = [recall(ranked, relevant, len(ids)) for ranked in (*single, union)]
        assert found[2] >= max(found[:2])
        sums += torch.tensor(found)
    assert sums[2] > sums[:2].max() + 0.1 * len(cases)


def test_feedback_moves_the_query():
    q, d = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert torch.allclose(feedback(q, d), torch.tensor([1 / 3, 4 / 3]))
    assert torch.allclose(feedback(q, d, "rocchio", 1.0, 0.5), torch.tensor([1.0, 1.0]))
    assert torch.equal(feedback(q, d[:0]), q)
    with pytest.raises(ShapeError):
        feedback(q, d[0])
    with pytest.raises(BudgetError):
        feedback(q, d, "sum")
    with pytest.raises(BudgetError):
        FeedbackSearch("all")
    with pytest.raises(ShapeError):
        FeedbackSearch()({}, q, d, ["a"])
