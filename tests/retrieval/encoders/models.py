"""Tiny language models, and how well an encoder ranks a collection."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from sparseworks.evaluate import ndcg, recall
from sparseworks.exec.search import InvertedIndex
from sparseworks.retrieval.encoders import TermEncoder, rows_of


def masked(width: int, seed: int = 0, hidden: int = 64) -> BertForMaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=width, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * hidden,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config)


def causal(width: int, seed: int = 0, hidden: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=width, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=128, tie_word_embeddings=True,
        )
    )  # fmt: skip


def measure(encoder: TermEncoder, collection) -> dict:
    """Mean nDCG@10, recall@1 and @10, and what the codes look like."""
    ids, asked = list(collection.documents), collection.judged
    documents = encoder.encode_documents([collection.documents[i] for i in ids])
    queries = encoder.encode_queries([collection.queries[q] for q in asked])
    _, found = InvertedIndex(rows_of(documents)).search(rows_of(queries), 10)
    ranked = [[ids[j] for j in row] for row in found.tolist()]
    judged = [collection.qrels[q] for q in asked]
    mean = lambda f: sum(map(f, ranked, judged)) / len(asked)  # noqa: E731
    return {
        "ndcg": mean(ndcg),
        "recall@1": mean(lambda r, j: recall(r, j, 1)),
        "recall@10": mean(lambda r, j: recall(r, j, 10)),
        "nnz": documents.nnz / len(documents),
        "nnz_q": queries.nnz / len(queries),
        "documents": documents,
        "queries": queries,
    }
