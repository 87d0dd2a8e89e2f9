"""An index on disk: what was acknowledged is there, readers keep what they hold, damage is named."""

from __future__ import annotations

import errno
import json
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CheckpointError, KernelError, ShapeError
from sparseworks.exec.search.rows import dense
from sparseworks.retrieval import Index, SparseVectors
from sparseworks.retrieval.index import index as module
from sparseworks.retrieval.index.calibrate import Tried, recall_at, settings_of
from sparseworks.retrieval.search import PostingBlocks, Postings, TwoStage
from sparseworks.testing.index import example_vectors, topic_mixtures


@pytest.fixture
def made(tmp_path, ids, vectors):
    index = Index.create(tmp_path / "index", vectors.width)
    index.add(ids[:50], vectors.take(slice(0, 50)), [{"n": i, "even": i % 2 == 0} for i in range(50)])
    index.add(ids[50:], vectors.take(slice(50, None)))
    return index


def expected(vectors, queries, k, allowed=None):
    scores = dense(queries, 0, len(queries)) @ dense(vectors, 0, len(vectors)).T
    scores = scores if allowed is None else scores.where(allowed, 0)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return [[f"d{i}" for i in row if scores[q, i] > 0] for q, row in enumerate(order.tolist())]


def test_exact_with_ties_to_the_document_added_first(made, vectors, queries):
    hits = made.search(queries, 12)
    assert hits.ids == expected(vectors, queries, 12)
    assert hits.exact and hits.how == ("Postings", "Postings") and hits.documents == 90 and len(hits) == 7
    assert hits.ranked(0)[0] == (hits.ids[0][0], float(hits.scores[0, 0]))


def test_filters_by_ids_metadata_and_predicate(made, vectors, queries):
    at = torch.arange(90)
    by_id = made.search(queries, 9, filter=["d3", "d60", "d61", "unknown"])
    assert (
        by_id.ids == expected(vectors, queries, 9, torch.isin(at, torch.tensor([3, 60, 61]))) and by_id.documents == 3
    )
    even = expected(vectors, queries, 9, (at < 50) & (at % 2 == 0))
    assert made.search(queries, 9, filter={"even": True}).ids == even
    assert made.search(queries, 9, filter=lambda m: m.get("even", False)).ids == even
    assert made.search(queries, 9, filter={"n": [1, 2]}).ids == expected(vectors, queries, 9, (at == 1) | (at == 2))
    assert made.snapshot.metadata(7) == {"n": 7, "even": False} and made.snapshot.metadata(70) == {}


def test_an_id_that_is_there_is_replaced(made, vectors, queries):
    made.add(["d5", "d70"], vectors.take(torch.tensor([8, 9])))
    assert len(made) == 90 and made.snapshot.ids()[-2:] == ["d5", "d70"]
    made.merge()
    assert len(made.snapshot.segments) == 1 and made.snapshot.segments[0].vectors(50).take(
        slice(-2, None)
    ).indices.tolist() == (vectors.take(torch.tensor([8, 9])).indices.tolist())


def test_a_reader_keeps_its_snapshot_and_another_process_sees_the_next(made, queries):
    other = Index.open(made.path)
    before = other.search(queries, 5)
    made.delete([i for row in before.ids for i in row])
    made.merge()
    assert other.search(queries, 5).ids == before.ids
    assert other.refresh().search(queries, 5).ids == made.search(queries, 5).ids != before.ids


def test_everything_deleted_and_nothing_there(made, queries, ids):
    assert made.delete(ids) == 90 and made.delete(ids) == 0 and len(made) == 0
    assert made.search(queries, 3).ids == [[]] * 7
    made.merge()
    assert made.snapshot.segments == () and made.search(queries, 3).scores.shape == (7, 3)
    assert {p.name for p in made.path.iterdir() if not p.name.startswith(".")} == {"manifest.json"}


def test_documents_deleted_and_added_while_a_merge_runs_are_not_lost(made, vectors, queries, monkeypatch):
    joined, other = module.merging.joined, Index.open(made.path)

    def slowly(path, width, segments):
        entry = joined(path, width, segments)
        other.delete(["d1", "d80"])
        other.add(["new"], vectors.take(slice(0, 1)))
        return entry

    monkeypatch.setattr(module.merging, "joined", slowly)
    made.merge()
    assert len(made) == 89 and len(made.snapshot.segments) == 2
    assert not {"d1", "d80"} & set(made.snapshot.ids()) and made.snapshot.ids()[-1] == "new"
    assert Index.open(made.path).search(queries, 9).ids == made.search(queries, 9).ids


def test_threads_search_while_others_write(tmp_path, vectors, queries):
    index = Index.create(tmp_path / "index", 50)
    index.add(["first"], vectors.take(slice(0, 1)))
    wrong: list[BaseException] = []

    def search():
        try:
            for _ in range(40):
                assert all(len(row) == len(set(row)) for row in index.search(queries, 9).ids)
        except BaseException as error:
            wrong.append(error)

    readers = [threading.Thread(target=search) for _ in range(2)]
    for r in readers:
        r.start()
    for i in range(module._MANY + 3):
        index.add([f"d{i}"], vectors.take(slice(i, i + 1)))
    for r in readers:
        r.join()
    assert not wrong and len(index) == module._MANY + 4
    assert len(index.snapshot.segments) < module._MANY, "small segments are merged on the way"


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(["add", "delete", "merge", "open"]), st.integers(0, 30)), max_size=9))
def test_any_sequence_of_changes_is_as_building_anew(tmp_path_factory, changes):
    pool, queries = example_vectors(40, 50, 4), example_vectors(3, 50, 5)
    folder = tmp_path_factory.mktemp("any")
    index, held = Index.create(folder / "index", 50), {}
    for what, n in changes:
        if what == "add":
            rows = {f"d{(n + j) % 40}": (n * 3 + j) % 40 for j in range(4)}
            index.add(list(rows), pool.take(torch.tensor(list(rows.values()))))
            held = {i: r for i, r in held.items() if i not in rows} | rows
        elif what == "delete":
            gone = [f"d{(n + j) % 40}" for j in range(3)]
            assert index.delete(gone) == sum(held.pop(i, None) is not None for i in gone)
        elif what == "merge":
            index.merge()
        else:
            index = Index.open(folder / "index")
    assert index.snapshot.ids() == list(held)
    anew = Index.create(folder / "anew", 50)
    anew.add(list(held), pool.take(torch.tensor(list(held.values()), dtype=torch.long)))
    assert index.search(queries, 6).ids == anew.search(queries, 6).ids


def test_requested_recall_holds_on_queries_that_were_held_out(tmp_path):
    documents, asked = topic_mixtures(3000, seed=0), topic_mixtures(400, seed=1, entries=20)
    index = Index.create(tmp_path / "index", documents.width)
    index.add([str(i) for i in range(len(documents))], documents)
    grid = [PostingBlocks(postings=300, cut=c, heap=h) for c in (2, 5, 10) for h in (1.0, 0.8)]
    tried = index.merge(asked.take(slice(0, 200)), searches=grid, recalls=(0.8, 0.95))
    assert {type(t.search) for t in tried} == {Postings, PostingBlocks}
    held = asked.take(slice(200, None))
    truth = index.search(held, 10)
    for setting in index.snapshot.segments[0].settings:
        hits = index.search(held, 10, recall=setting.recall)
        got = recall_at(hits.positions, (truth.scores, truth.positions))
        assert float(got.mean()) >= setting.recall - 0.005
    again = Index.open(index.path)
    assert again.snapshot.segments[0].settings == index.snapshot.segments[0].settings
    assert again.search(held, 10, recall=0.8).ids == index.search(held, 10, recall=0.8).ids
    assert index.search(held, 11, recall=0.8).exact, "more hits than were calibrated: exact"
    assert index.search(held, 10, recall=0.999).exact, "more recall than was calibrated: exact"
    assert index.search(held, 10, recall=0.8, filter=["1"]).exact


def test_the_fastest_search_that_surely_reaches_the_recall_is_kept():
    slow, fast, unsure = PostingBlocks(cut=9), PostingBlocks(cut=3), TwoStage()
    tried = [
        Tried(Postings(), 1, 0, 9.0),
        Tried(slow, 0.99, 0, 3.0),
        Tried(fast, 0.92, 0, 1.0),
        Tried(unsure, 0.951, 0.01, 0.5),
    ]
    chosen = {s.recall: s.search for s in settings_of(tried, (0.9, 0.95, 0.999), 10)}
    assert chosen == {0.9: unsure, 0.95: slow, 0.999: Postings()}


@pytest.mark.parametrize("what", ["flipped", "short", "gone", "manifest", "version", "no json"])
def test_damage_is_refused_with_the_name_of_the_file(made, what):
    made.delete(["d3"])
    manifest = made.path / "manifest.json"
    segment = made.path / made.snapshot.manifest.segments[0].file.name
    if what == "flipped":
        data = bytearray(segment.read_bytes())
        data[-9] ^= 1
        segment.write_bytes(data)
    elif what == "short":
        segment.write_bytes(segment.read_bytes()[:-1])
    elif what == "gone":
        segment.unlink()
    elif what == "manifest":
        manifest.write_text(manifest.read_text().replace('"deleted": 1', '"deleted": 0'))
    elif what == "version":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 9}))
    else:
        manifest.write_text("{")
    name = segment.name if what in ("flipped", "short", "gone") else "manifest.json"
    with pytest.raises(CheckpointError, match=name):
        Index.open(made.path)
    with pytest.raises(CheckpointError, match=name):
        Index.open(made.path, verify=what != "short")


def test_a_full_disk_leaves_the_index_as_it_was(made, vectors, queries, monkeypatch):
    before, files = made.search(queries, 9).ids, sorted(p.name for p in made.path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for change in (lambda: made.add(["x"], vectors.take(slice(0, 1))), lambda: made.delete(["d1"]), made.merge):
        with pytest.raises(CheckpointError, match="No space left"):
            change()
    monkeypatch.undo()
    assert made.search(queries, 9).ids == Index.open(made.path).search(queries, 9).ids == before
    assert set(files) <= {p.name for p in made.path.iterdir()}
    made.add(["x"], vectors.take(slice(0, 1)))
    assert len(Index.open(made.path)) == 91


def test_refusals(made, vectors, queries, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        Index.create(made.path, 50)
    with pytest.raises(CheckpointError, match="is no index"):
        Index.open(tmp_path)
    with pytest.raises(ShapeError, match="at least one term"):
        Index.create(tmp_path / "x", 0)
    for bad in (["a"], ["a", "a"]):
        with pytest.raises(ShapeError):
            made.add(bad, vectors.take(slice(0, 2)))
    with pytest.raises(ShapeError, match="50 terms"):
        made.add(["a"], example_vectors(1, 60, 0))
    with pytest.raises(ShapeError, match="50 terms"):
        made.search(example_vectors(1, 60, 0))
    with pytest.raises(ShapeError, match="collection"):
        made.search(queries, filter="d1")
    for bad in ({"k": 0}, {"recall": 0}, {"recall": 1.5}, {"threads": 0}):
        with pytest.raises(BudgetError):
            made.search(queries, **bad)
    with pytest.raises(KernelError, match="nothing built"):
        made.search(queries, method="seismic")
    signed = SparseVectors.of_terms([{1: -1.0, 2: 2.0}], 50)
    assert made.search(signed, 5).ids == expected(vectors, signed, 5)
    with pytest.raises(KernelError, match="not negative"):
        made.search(signed, method="max_score")
    with pytest.raises(KernelError, match="refuses these vectors"):
        sw.method("seismic").build(signed)
    assert made.add([], vectors.take(slice(0, 0))) == 90
