from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.encoder import Encoder

TEXTS = ["w1", "w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11", "w1 w2"]


def by_hand(model: nn.Module, tokenizer: Tokenizer, text: str, length: int = 256) -> torch.Tensor:
    ids = torch.tensor([tokenizer.encode(text).ids[:length]])
    with torch.no_grad():
        return F.normalize(model(ids, torch.ones_like(ids)).last_hidden_state.mean(dim=1), dim=-1)[0]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_each_row_is_the_mean_over_its_own_tokens_in_the_given_order(encoder_model, tokenizer, batch: int):
    found = Encoder(encoder_model, tokenizer).encode(TEXTS, batch_size=batch)
    expected = torch.stack([by_hand(encoder_model, tokenizer, t) for t in TEXTS])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)))


def test_the_padding_and_truncation_stored_in_a_tokenizer_do_not_matter(encoder_model, tokenizer, padding_tokenizer):
    long = " ".join(["w5"] * 20)
    a = Encoder(encoder_model, tokenizer).encode([*TEXTS, long])
    b = Encoder(encoder_model, padding_tokenizer).encode([*TEXTS, long])
    assert torch.equal(a, b)
    assert padding_tokenizer.padding is not None


def test_long_texts_are_cut_with_their_special_tokens(encoder_model, tokenizer):
    text = "w1 w2 w3 w4 w5 w6"
    found = Encoder(encoder_model, tokenizer, max_length=5).encode(text)
    torch.testing.assert_close(found[0], by_hand(encoder_model, tokenizer, "w1 w2 w3"))


def test_modes_of_submodules_come_back(encoder_model, tokenizer):
    encoder_model.train()
    encoder_model.table.eval()
    assert not Encoder(encoder_model, tokenizer).encode(TEXTS).requires_grad
    assert encoder_model.training
    assert not encoder_model.table.training


def test_a_hugging_face_tokenizer_and_model(tokenizer):
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=44, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    encoder = Encoder(model, fast)
    alone = torch.cat([encoder.encode(t) for t in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), alone, atol=1e-5, rtol=1e-5)


def test_no_texts_and_no_tokenizer(encoder_model, tokenizer):
    with pytest.raises(CalibrationError, match="no texts"):
        Encoder(encoder_model, tokenizer).encode([])
    with pytest.raises(CalibrationError, match="fast Hugging Face tokenizer"):
        Encoder(encoder_model, object()).encode(TEXTS)
