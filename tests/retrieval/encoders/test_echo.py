"""`mistral_splade` beside itself with one reading, on texts whose words mean what their last word says."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

import sparseworks as sw
from sparseworks.evaluate import Collection
from sparseworks.evaluate.topics import SPECIAL
from sparseworks.retrieval.encoders import EchoPooling, MaxPooling
from sparseworks.retrieval.train import train_retriever

WORDS, SENSES, OWN = 12, 2, 4
NAMES = [f"{kind}{i}" for kind, n in (("word", WORDS), ("sense", SENSES), ("thing", WORDS)) for i in range(n)]
THINGS = slice(len(SPECIAL) + WORDS + SENSES, None)
MEANS = [[(word + 5 * sense) % WORDS for word in range(WORDS)] for sense in range(SENSES)]
"""The thing that each word means in each sense, never the same: neither word nor sense alone says which is meant."""


def tokenizer():
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *NAMES))}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def document(rng):
    """Words and then their sense, and the things meant."""
    words, sense = rng.sample(range(WORDS), OWN), rng.randrange(SENSES)
    return " ".join([*(f"word{w}" for w in words), f"sense{sense}"]), [MEANS[sense][w] for w in words]


def asked(rng, things):
    """Two of them by their own names."""
    return rng.sample(things, 2)


def named(things):
    return " ".join(f"thing{t}" for t in things)


def pairs(count, seed):
    rng = random.Random(f"pairs {seed}")
    return [(named(asked(rng, things)), text) for text, things in (document(rng) for _ in range(count))]


def collection(documents=80, queries=60):
    rng = random.Random("collection")
    made = [document(rng) for _ in range(documents)]
    wanted = [asked(rng, rng.choice(made)[1]) for _ in range(queries)]
    judged = {
        f"q{q}": {f"d{i}": 1 for i, (_, things) in enumerate(made) if set(w) <= set(things)}
        for q, w in enumerate(wanted)
    }
    texts = {f"d{i}": text for i, (text, _) in enumerate(made)}
    return Collection(texts, {f"q{q}": named(w) for q, w in enumerate(wanted)}, judged)


def causal(width, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=width, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=64, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def share_of_early_tokens(encoder, seed=0):
    """Of the weight that the words before the sense give to things, how much the things meant get."""
    rng, side = random.Random(seed), encoder.document
    made = [document(rng) for _ in range(60)]
    ids = encoder.token_ids([text for text, _ in made], False)
    batch = encoder.tokens.batch(ids, side.pooling.copies, special=side.pooling.special)
    early = batch.pooled & (batch.ids >= len(SPECIAL)) & (batch.ids < len(SPECIAL) + WORDS)
    with torch.no_grad():
        logits = encoder.model(input_ids=batch.ids, attention_mask=batch.attention).logits
        w = side.pooling(logits, early, side.activation)[:, THINGS]
    meant = torch.stack([torch.zeros(WORDS).index_fill(0, torch.tensor(t), 1.0) for _, t in made])
    return float((w * meant).sum() / w.sum())


def trained(pooling, seed, tiny):
    """As registered but for the pooling of both sides: recall@10, and the share above."""
    method = sw.method("mistral_splade").with_(query_pooling=pooling, document_pooling=pooling)
    words = tokenizer()
    encoder = method.encoder(causal(words.get_vocab_size(), seed), words)
    train_retriever(encoder, method, pairs(3000, seed), steps=150, batch_size=32, rate=1e-2, seed=seed)
    found = tiny.measure(encoder, collection())
    return SimpleNamespace(recall=found.recall, nnz=found.nnz, early=share_of_early_tokens(encoder))


@pytest.mark.parametrize("seed", range(3))
def test_a_second_reading_finds_more_where_the_last_word_says_what_the_others_mean(seed, tiny):
    assert sw.method("mistral_splade").query.pooling == sw.method("mistral_splade").document.pooling == EchoPooling()
    echo, once = trained(EchoPooling(), seed, tiny), trained(MaxPooling(special=seed == 2), seed, tiny)
    assert echo.recall > once.recall + 0.2 and echo.nnz < once.nnz, (echo, once)
    # read once, an early word can only name both things that it may mean
    assert echo.early > 0.8 > 0.75 > once.early, (echo, once)
