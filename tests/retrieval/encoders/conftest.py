"""Tiny language models, and how well an encoder ranks a collection."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparseworks.evaluate import ndcg, recall
from sparseworks.exec.search import InvertedIndex
from sparseworks.retrieval.encoders import TermEncoder, rows_of


def bert(width: int, seed: int = 0, hidden: int = 64):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=width, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * hidden,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config)


def llama(width: int, seed: int = 0, hidden: int = 64):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=width, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=2 * hidden, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Reader(nn.Module):
    """h_i = x_i + B max(A [x_i, 3 mean x], 0), logits x h: a token names itself before training, and knows its text."""

    def __init__(self, width: int, seed: int = 0, hidden: int = 64):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        draw = lambda k, *shape: nn.Parameter(k * hidden**-0.5 * torch.randn(*shape, generator=g))  # noqa: E731
        self.words = draw(1.7, width, hidden)
        self.mix, self.back = draw(1.0, 2 * hidden, 2 * hidden), draw(0.3, 2 * hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, input_ids, attention_mask, output_hidden_states):
        x, there = self.words[input_ids], attention_mask.unsqueeze(2).float()
        text = 3 * (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        h = x + torch.cat([x, text.expand_as(x)], 2).matmul(self.mix).relu() @ self.back
        return h, h @ self.words.T + self.bias


def measure(encoder: TermEncoder, collection) -> SimpleNamespace:
    """Mean nDCG@10, MRR@10, recall@1 and @10, entries of codes, and the codes."""
    ids, asked = list(collection.documents), collection.judged
    documents = encoder.encode_documents([collection.documents[i] for i in ids])
    queries = encoder.encode_queries([collection.queries[q] for q in asked])
    _, found = InvertedIndex(rows_of(documents)).search(rows_of(queries), 10)
    ranked = [[ids[j] for j in row] for row in found.tolist()]
    judged = [collection.qrels[q] for q in asked]
    mean = lambda f: sum(map(f, ranked, judged)) / len(asked)  # noqa: E731
    return SimpleNamespace(
        ndcg=mean(ndcg), mrr=mean(reciprocal), first=mean(lambda r, j: recall(r, j, 1)), recall=mean(lambda r, j: recall(r, j, 10)),
        nnz=documents.nnz / len(documents), asked=queries.nnz / len(queries), documents=documents, queries=queries,
    )  # fmt: skip


def reciprocal(ranked, judged) -> float:
    """1 / the first rank that is relevant; 0 if none is."""
    return next((1 / rank for rank, d in enumerate(ranked, 1) if judged.get(d, 0) > 0), 0.0)


@pytest.fixture(scope="session")
def tiny():
    """`bert`, `llama`, `reader` and `measure`."""
    return SimpleNamespace(bert=bert, llama=llama, reader=Reader, measure=measure)
