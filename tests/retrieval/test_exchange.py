"""What is written is read again, by ours and by the libraries whose formats these are."""

from __future__ import annotations

import json

import pytest
import torch

from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.retrieval import Index, SparseVectors, exchange


def test_trec_runs_and_judgements(tmp_path, vectors, queries, ids):
    index = Index.create(tmp_path / "index", 50)
    index.add(ids, vectors)
    hits = index.search(queries, 5)
    names = [f"q{i}" for i in range(len(queries))]
    run = exchange.read_run(exchange.write_run(tmp_path / "run.trec", names, hits))
    assert {q: [d for d, _ in found] for q, found in run.items()} == {
        q: i for q, i in zip(names, hits.ids, strict=True) if i
    }
    exchange.write_qrels(tmp_path / "qrels.txt", {"q1": {"d1": 2}})
    assert exchange.read_qrels(tmp_path / "qrels.txt") == {"q1": {"d1": 2}}
    with pytest.raises(CalibrationError, match="white space"):
        exchange.write_run(tmp_path / "x", [*names[:-1], "a b"], hits)
    with pytest.raises(CalibrationError, match="6 ids"):
        exchange.write_run(tmp_path / "x", names[:-1], hits)


def test_opensearch_bulk(tmp_path, vectors, ids):
    path = exchange.write_bulk(tmp_path / "bulk.ndjson", ids, vectors, terms=[f"t{i}" for i in range(50)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"index": {"_index": "sparse", "_id": "d0"}} and len(lines) == 180
    assert all(t.startswith("t") and w > 0 for t, w in lines[1]["vector"].items())
    again, read = exchange.read_bulk(exchange.write_bulk(tmp_path / "b.ndjson", ids, vectors), 50)
    assert again == ids and torch.equal(read.indices, vectors.indices) and torch.equal(read.values, vectors.values)


def test_ciff_holds_frequencies(tmp_path, vectors, ids):
    names = [f"term {i:02}" for i in range(50)]
    path = exchange.write_ciff(tmp_path / "i.ciff", ids, vectors, names, scale=1)
    again, read, terms = exchange.read_ciff(path)
    assert again == ids and set(terms) <= set(names)
    order = torch.tensor([names.index(t) for t in terms])
    back = SparseVectors.of_terms(
        [dict(zip(order[read.indices[a:b].long()].tolist(), read.values[a:b].tolist(), strict=True))
         for a, b in zip(read.ptr.tolist(), read.ptr.tolist()[1:], strict=False)], 50,
    )  # fmt: skip
    assert torch.equal(back.indices, vectors.indices) and torch.equal(back.values, vectors.values)


def test_ciff_is_what_protobuf_makes_of_it(tmp_path):
    protobuf = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    kinds = {"int32": 5, "int64": 3, "double": 1, "string": 9, "message": 11}
    described = {
        "Header": [("version", "int32"), ("num_postings_lists", "int32"), ("num_docs", "int32"), ("total_postings_lists", "int32"),
                   ("total_docs", "int32"), ("total_terms_in_collection", "int64"), ("average_doclength", "double"),
                   ("description", "string")],
        "Posting": [("docid", "int32"), ("tf", "int32")],
        "PostingsList": [("term", "string"), ("df", "int64"), ("cf", "int64"), ("postings", "message")],
        "DocRecord": [("docid", "int32"), ("collection_docid", "string"), ("doclength", "int32")],
    }  # fmt: skip
    file = protobuf.FileDescriptorProto(name="ciff.proto", syntax="proto3")
    for name, fields in described.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, start=1):
            message.field.add(
                name=field, number=number, type=kinds[kind], label=3 if kind == "message" else 1,
                type_name=".Posting" if kind == "message" else None,
            )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(n)) for n in described}
    vectors = SparseVectors.of_terms([{0: 3.0, 2: 300.0}, {}, {0: 1.0}], 3)
    data = exchange.write_ciff(tmp_path / "i.ciff", ["a", "b", "c"], vectors, ["x", "y", "z"], scale=1).read_bytes()
    from sparseworks.retrieval.exchange.ciff import _messages

    head, first, second, *records = _messages(data)
    header = made["Header"].FromString(head)
    assert (header.num_postings_lists, header.num_docs, header.total_terms_in_collection) == (2, 3, 304)
    assert header.average_doclength == pytest.approx(304 / 3)
    lists = [made["PostingsList"].FromString(m) for m in (first, second)]
    assert [(l.term, l.df, l.cf, [(p.docid, p.tf) for p in l.postings]) for l in lists] == [
        ("x", 2, 4, [(0, 3), (2, 1)]), ("z", 1, 300, [(0, 300)]),
    ]  # fmt: skip
    found = [made["DocRecord"].FromString(m) for m in records]
    assert [(r.docid, r.collection_docid, r.doclength) for r in found] == [(0, "a", 303), (1, "b", 0), (2, "c", 1)]


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        ("r.trec", "q Q0 d 1 x tag", exchange.read_run, "line 1 is no line"),
        ("i.ciff", "\x05\x08", exchange.read_ciff, "truncated"),
        ("i.ciff", "\x02\x08\x07", exchange.read_ciff, "version is 7"),
        ("b.ndjson", '{"index": {"_id": 1}}\n{"text": 1}', lambda p: exchange.read_bulk(p, 5), "no field 'vector'"),
        ("b.ndjson", '{"index": {"_id": 1}}', lambda p: exchange.read_bulk(p, 5), "1 actions and 0"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, read, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read(path)


def test_what_formats_cannot_hold_is_refused(tmp_path, vectors, ids):
    signed = SparseVectors.of_terms([{0: -1.0}], 2)
    with pytest.raises(CalibrationError, match="above 0"):
        exchange.write_bulk(tmp_path / "x", ["a"], signed)
    with pytest.raises(CalibrationError, match="not negative"):
        exchange.write_ciff(tmp_path / "x", ["a"], signed)
    with pytest.raises(ShapeError, match="a name for each"):
        exchange.write_ciff(tmp_path / "x", ids, vectors, ["one"])
    with pytest.raises(CalibrationError, match="ids were given"):
        exchange.write_bulk(tmp_path / "x", ids[:-1], vectors)
    assert not list(tmp_path.iterdir())
