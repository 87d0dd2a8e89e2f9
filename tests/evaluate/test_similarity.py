from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, NonFiniteError
from sparseworks.evaluate.encoder import Encoder
from sparseworks.evaluate.similarity import OutputSimilarity
from sparseworks.evaluate.text import token_batches

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8", "w9 w10"]


def test_a_model_is_like_itself(encoder_model, tokenizer):
    task = OutputSimilarity(token_batches(TEXTS, tokenizer, batch=2), encoder_model)
    result = task(encoder_model)
    assert result.value == pytest.approx(1.0)
    assert result.details["rows"] == 4


def test_is_the_mean_cosine_of_embeddings(encoder_model, tokenizer):
    task = OutputSimilarity(token_batches(TEXTS, tokenizer, batch=2), encoder_model)
    before = Encoder(encoder_model, tokenizer).encode(TEXTS)
    with torch.no_grad():
        encoder_model.table.weight[:, ::2] = 0
    cosines = (before * Encoder(encoder_model, tokenizer).encode(TEXTS)).sum(dim=-1)
    result = task(encoder_model)
    assert result.value == pytest.approx(cosines.mean().item(), rel=1e-5)
    assert result.details["worst row"] == pytest.approx(cosines.min().item(), rel=1e-5)


def test_logits_leave_padding_out():
    torch.manual_seed(0)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 5)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids)

    dense = Tagger()
    sparse = copy.deepcopy(dense)
    with torch.no_grad():
        sparse.table.weight[0] = -sparse.table.weight[0]
    batch = {"input_ids": torch.tensor([[3, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    result = OutputSimilarity([batch], dense)(sparse)
    assert result.value == pytest.approx(1.0)
    assert result.details["rows"] == 2


def test_tensors_as_batches_and_no_more_than_asked_for():
    torch.manual_seed(0)
    dense = nn.Linear(4, 3)
    task = OutputSimilarity([torch.randn(2, 4) for _ in range(5)], dense, most=3)
    assert task(dense).details["rows"] == 6


def test_nothing_to_compare_and_nan(encoder_model, tokenizer):
    with pytest.raises(CalibrationError, match="empty"):
        OutputSimilarity([], encoder_model)
    task = OutputSimilarity(token_batches(TEXTS, tokenizer), encoder_model)
    with torch.no_grad():
        encoder_model.table.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="output similarity is nan"):
        task(encoder_model)
