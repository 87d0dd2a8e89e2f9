"""Tiny language models, and how well an encoder ranks a collection."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

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


def measure(encoder: TermEncoder, collection) -> SimpleNamespace:
    """Mean nDCG@10, recall@1 and @10, entries of codes, and the codes."""
    ids, asked = list(collection.documents), collection.judged
    documents = encoder.encode_documents([collection.documents[i] for i in ids])
    queries = encoder.encode_queries([collection.queries[q] for q in asked])
    _, found = InvertedIndex(rows_of(documents)).search(rows_of(queries), 10)
    ranked = [[ids[j] for j in row] for row in found.tolist()]
    judged = [collection.qrels[q] for q in asked]
    mean = lambda f: sum(map(f, ranked, judged)) / len(asked)  # noqa: E731
    return SimpleNamespace(
        ndcg=mean(ndcg), first=mean(lambda r, j: recall(r, j, 1)), recall=mean(lambda r, j: recall(r, j, 10)),
        nnz=documents.nnz / len(documents), asked=queries.nnz / len(queries), documents=documents, queries=queries,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    """`bert`, `llama` and `measure`."""
    return SimpleNamespace(bert=bert, llama=llama, measure=measure)
