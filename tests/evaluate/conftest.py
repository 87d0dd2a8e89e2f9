from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = [f"w{i}" for i in range(40)]


def word_tokenizer(*, special: bool = True, padding: bool = False) -> Tokenizer:
    """A word is a token: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then w0 ... w39."""
    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if padding:
        tokenizer.enable_padding(length=9, pad_id=0)
        tokenizer.enable_truncation(9)
    return tokenizer


class Embed(nn.Module):
    """Hidden state of a token = its embedding plus a little of its position: an encoder whose answers can be computed by hand."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.table = nn.Embedding(44, width)
        self.place = nn.Embedding(64, width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        del attention_mask
        hidden = self.table(input_ids) + 0.1 * self.place(torch.arange(input_ids.shape[1]))
        return SimpleNamespace(last_hidden_state=hidden)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return word_tokenizer()


@pytest.fixture
def bare_tokenizer() -> Tokenizer:
    return word_tokenizer(special=False)


@pytest.fixture
def padding_tokenizer() -> Tokenizer:
    return word_tokenizer(padding=True)


@pytest.fixture
def encoder_model() -> nn.Module:
    torch.manual_seed(0)
    return Embed()
