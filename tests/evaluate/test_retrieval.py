from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, NonFiniteError
from sparseworks.evaluate import TASKS, Collection, Retrieval
from sparseworks.evaluate.encoder import Encoder
from sparseworks.evaluate.ranking import ndcg


def collection(queries: int = 8) -> Collection:
    documents = {f"d{i}": f"w{i} w{(i * 7 + 3) % 40} w{(i + 1) % 40}" for i in range(30)}
    asked = {f"q{i}": f"w{i + 20} w{i + 21}" for i in range(queries)}
    return Collection(
        documents, asked, {f"q{i}": {f"d{i + 20}": 2, f"d{i + 21}": 1} for i in range(queries - 1)}, "toy"
    )


def test_is_the_mean_of_ndcg_over_judged_queries(encoder_model, tokenizer):
    toy = collection()
    result = Retrieval(toy, tokenizer, batch=4)(encoder_model)
    encoder = Encoder(encoder_model, tokenizer)
    scores = encoder.encode([toy.queries[q] for q in toy.judged]) @ encoder.encode(list(toy.documents.values())).T
    expected = []
    for q, row in zip(toy.judged, scores, strict=True):
        ranked = sorted(toy.documents, key=lambda d, row=row: -row[list(toy.documents).index(d)])
        expected.append(ndcg(ranked, toy.qrels[q]))
    assert result.value == pytest.approx(sum(expected) / 7)
    assert (result.metric, result.details["queries"], result.details["documents"]) == ("nDCG@10", 7, 30)
    assert result.details["recall@100"] == 1.0
    assert 0 < result.details["MAP"] <= 1
    assert result.details["standard error"] == pytest.approx(torch.tensor(expected).std().item() / 7**0.5)


def test_a_model_that_encodes_nothing_is_worse(encoder_model, tokenizer):
    task = Retrieval(collection(), tokenizer)
    good = task(encoder_model).value
    with torch.no_grad():
        encoder_model.table.weight.fill_(1.0)
    assert good > 2 * task(encoder_model).value


def test_nan_is_refused(encoder_model, tokenizer):
    task = Retrieval(collection(), tokenizer)
    with torch.no_grad():
        encoder_model.table.weight[10] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        task(encoder_model)


def test_build_uses_documentation_when_there_are_no_data(encoder_model, tokenizer):
    task = TASKS.get("retrieval").build(encoder_model, tokenizer, limit=5)
    assert isinstance(task, Retrieval)
    assert len(task.query_ids) == 5
    assert task.collection.name == "Python documentation"
    with pytest.raises(CalibrationError, match="tokenizer"):
        Retrieval.build(nn.Identity())
