"""Ways to search: Seismic is told from its own baselines, and every part of it does what it says."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, KernelError, RecipeError, UnknownNameError
from sparseworks.exec.search import Blocks, Forward, Lists
from sparseworks.exec.search.blocks import summaries
from sparseworks.exec.search.impacts import kept_postings
from sparseworks.retrieval import SparseVectors
from sparseworks.retrieval.index.calibrate import recall_at
from sparseworks.retrieval.search import SEARCHES
from sparseworks.testing import check_bound
from sparseworks.testing.index import example_vectors, topic_mixtures


@pytest.fixture(scope="module")
def mixtures():
    documents, queries = topic_mixtures(4000, seed=0), topic_mixtures(100, seed=1, entries=16)
    everything = sw.method("exhaustive_postings").build(documents)
    return documents, queries, everything.search(queries, 10), everything.search(queries, 4000)


@pytest.fixture(scope="module")
def seismic(mixtures):
    return sw.method("seismic", postings=600).build(mixtures[0])


def recall(ranked, truth):
    return float(recall_at(ranked.ids, truth.found).mean())


def test_seismic_scores_few_documents_at_high_recall(mixtures, seismic):
    documents, queries, truth, everything = mixtures
    assert 0.7 < float((everything.scores > 0).float().mean()) < 0.8, "three quarters share a term with a query"
    ranked = seismic.search(queries, 10)
    assert recall(ranked, truth) >= 0.99
    assert float(ranked.opened.float().mean()) <= 0.2 * len(documents)
    same = ranked.ids == truth.ids
    assert torch.allclose(ranked.scores[same], truth.scores[same])


def test_the_share_that_seismic_scores_falls_with_the_number_of_documents(mixtures, seismic):
    documents, queries, _, _ = mixtures
    few = sw.method("seismic", postings=600).build(documents.take(slice(0, 1000))).search(queries, 10)
    many = seismic.search(queries, 10)
    assert float(many.opened.float().mean()) / 4000 < 0.7 * float(few.opened.float().mean()) / 1000


def test_blocks_of_like_documents_beat_blocks_of_like_values(mixtures):
    documents, queries, truth, _ = mixtures
    found = {}
    for geometric in (True, False):
        built = sw.method("seismic", postings=250, mass=0.2, heap=1.0, geometric=geometric).build(documents)
        ranked = built.search(queries, 10)
        found[geometric] = recall(ranked, truth), float(ranked.opened.float().mean())
    assert found[True][0] > found[False][0] + 0.01 and found[True][1] < 1.15 * found[False][1]


def test_more_of_everything_is_more_recall_and_all_of_it_is_exact(mixtures):
    documents, queries, truth, _ = mixtures
    built = sw.method("seismic", postings=100, mass=0.1).build(documents)
    rising = [
        recall(built.search(queries, 10, cut=c, heap=h), truth) for c, h in ((1, 1.0), (3, 1.0), (3, 0.7), (16, 0.5))
    ]
    assert rising == sorted(rising) and rising[0] < 0.85 < 0.95 < rising[-1]
    small, asked = example_vectors(150, 40, 0), example_vectors(9, 40, 1)
    whole = sw.method("seismic", postings=150, mass=1.0, cut=40, heap=1.0).build(small).search(asked, 10)
    want = sw.method("exhaustive_postings").build(small).search(asked, 10)
    assert torch.equal(whole.scores, want.scores.where(want.scores > 0, -torch.inf))
    assert float(whole.opened.float().mean()) < 150, "summaries of all their mass are bounds: exact without opening all"


def test_bounded_searches_score_fewer_documents_than_share_a_term():
    draw = torch.Generator().manual_seed(0)
    documents = topic_mixtures(3000, seed=3, entries=30)
    terms = torch.randint(0, 1500, (40, 3), generator=draw)
    queries = SparseVectors.of_terms([{int(t): 2.0**-j for j, t in enumerate(row)} for row in terms], 1500)
    shared = (sw.method("exhaustive_postings").build(documents).search(queries, 3000).scores > 0).sum(1)
    opened = {m: sw.method(m).build(documents).search(queries, 5).opened for m in ("max_score", "block_max_wand")}
    assert all(float(o.sum()) < 0.9 * float(shared.sum()) for o in opened.values())


def forward_of(items):
    flat = items.flatten(0, 1)
    kept = flat > 0
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
    return Forward.of(SparseVectors(ptr, kept.nonzero()[:, 1], flat[kept], flat.shape[1]))


def summarised(items):
    groups, units, _ = items.shape
    of = torch.arange(0, groups * units + 1, units)
    none = torch.zeros(0, dtype=torch.long)
    return Blocks(
        none, of, of, *summaries(forward_of(items), of, torch.arange(groups * units, dtype=torch.int32), 1.0, 1)
    )


def test_summaries_of_all_their_mass_are_bounds():
    check_bound(summarised, lambda query, blocks: blocks.bounds(query), name="The summary")
    with pytest.raises(AssertionError, match="below the truth"):
        check_bound(summarised, lambda query, blocks: 0.99 * blocks.bounds(query))


def test_the_largest_values_of_lists_are_bounds():
    check_bound(
        lambda items: [Lists.of(forward_of(group[None])) for group in items],
        lambda query, groups: torch.stack([(lists.list_max * query).sum() for lists in groups]),
        name="The list",
    )


def test_static_pruning_keeps_the_largest_values_under_one_threshold():
    lists = Lists.of(Forward.of(topic_mixtures(500, seed=0, entries=60)))
    counts = kept_postings(lists, 5, spread=2.0)
    lengths = lists.ptr.diff()
    assert int(counts.max()) <= 10 and bool((counts <= lengths).all())
    assert 0.5 * 5 * 1500 < int(counts.sum()) <= 1.05 * 5 * 1500
    assert torch.equal(kept_postings(lists, 10**6), lengths)
    with pytest.raises(BudgetError):
        kept_postings(lists, 0)


def test_methods_compose_and_refuse(mixtures):
    documents, queries, _, _ = mixtures
    method = sw.method("seismic", cut=5, postings=50)
    assert method.search.cut == 5 and "posting_blocks(postings=50, cut=5)" in method.composition
    assert (
        method.catalog == (201,) and "seismic" in sw.method("seismic").name and set(SEARCHES.names()) >= {"two_stage"}
    )
    with pytest.raises(RecipeError, match="no option 'cuts'"):
        sw.method("seismic", cuts=5)
    with pytest.raises(UnknownNameError):
        sw.method("seismic", search="seismick")
    built = method.build(documents.take(slice(0, 200)))
    with pytest.raises(KernelError, match="fixed when an index is built"):
        built.search(queries, 3, mass=0.9)
    for bad in ({"cut": 0}, {"cut": 65}, {"heap": 1.5}):
        with pytest.raises(BudgetError):
            built.search(queries, 3, **bad)
    for bad in ({"fraction": 0.0}, {"mass": 1.5}, {"postings": 0}):
        with pytest.raises(BudgetError):
            sw.method("seismic", **bad).build(documents.take(slice(0, 20)))
    with pytest.raises(BudgetError):
        sw.method("two_stage", postings=0).build(documents.take(slice(0, 20)))
