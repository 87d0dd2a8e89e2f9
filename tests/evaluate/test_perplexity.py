from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.perplexity import Perplexity

VOCAB = 11


class Recurrent(nn.Module):
    """A causal model whose predictions depend on all tokens before: a running mean of embeddings."""

    def __init__(self, wrapped: bool = False):
        super().__init__()
        self.table, self.head, self.wrapped = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB), wrapped

    def forward(self, ids: torch.Tensor):
        seen = self.table(ids).cumsum(dim=1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        logits = self.head(seen)
        return SimpleNamespace(logits=logits) if self.wrapped else logits


@pytest.fixture
def model() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def tokens(count: int) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, context: torch.Tensor, target: torch.Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(context[None])[0, -1:], target[None]).item()


def test_windows_without_overlap_count_every_token_the_same(model):
    text = tokens(23)
    losses = [loss_of(model, text[i - i % 5 : i], text[i]) for i in range(23) if i % 5]
    result = Perplexity(text, 5, batch=3)(model)
    assert result.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert (result.details["tokens"], result.details["windows"]) == (18, 5)
    means = [sum(losses[i : i + 4]) / len(losses[i : i + 4]) for i in range(0, 18, 4)]
    assert result.value != pytest.approx(math.exp(sum(means) / len(means)), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_stride_predicts_every_token_once_with_longer_context(model, stride: int):
    text = tokens(17)
    result = Perplexity(text, 5, stride=stride, batch=2)(model)
    total, done, start = 0.0, 1, 0
    while done < 17:
        stop = min(start + 5, 17)
        total += sum(loss_of(model, text[start:i], text[i]) for i in range(done, stop))
        done, start = stop, start + stride
    assert result.details["tokens"] == 16
    assert result.value == pytest.approx(math.exp(total / 16), rel=1e-5)


def test_one_token_left_over_predicts_nothing(model):
    assert Perplexity(tokens(11), 5)(model).details["tokens"] == 8


def test_uniform_predictions_have_the_perplexity_of_the_vocabulary(model):
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert Perplexity(tokens(40), 8)(model).value == pytest.approx(VOCAB)


def test_outputs_with_logits_and_plain_tensors_are_the_same(model):
    wrapped = Recurrent(wrapped=True)
    wrapped.load_state_dict(model.state_dict())
    task = Perplexity(tokens(30), 7)
    assert task(model).value == task(wrapped).value


def test_agrees_with_the_loss_of_a_hugging_face_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    text = tokens(24)
    with torch.no_grad():
        expected = llama(input_ids=text[None], labels=text[None]).loss.item()
    assert Perplexity(text, 24)(llama).details["loss"] == pytest.approx(expected, rel=1e-5)


def test_nan_shape_and_overflow(model):
    task = Perplexity(tokens(12), 4)
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    with pytest.raises(NonFiniteError, match="logits"):
        task(model)
    with pytest.raises(ShapeError, match="vocabulary"):
        task(nn.Sequential(nn.Embedding(VOCAB, 4), nn.Flatten()))
    with torch.no_grad():
        model.head.bias[3] = 1e30
    with pytest.raises(NonFiniteError, match="perplexity is inf"):
        task(model)


@pytest.mark.parametrize(("count", "length", "stride"), [(1, 4, 4), (0, 4, 4), (9, 1, 1), (9, 4, 0), (9, 4, 5)])
def test_bad_windows_are_refused(count: int, length: int, stride: int):
    with pytest.raises(CalibrationError):
        Perplexity(tokens(count), length, stride=stride)


def test_build_reads_a_text_file_as_one_text(model, tmp_path, bare_tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("w1 w2\n\nw3 w4 w5\n", encoding="utf-8")
    task = Perplexity.build(model, bare_tokenizer, path)
    assert task.tokens.tolist() == [5, 6, 7, 8, 9]
    model.config = SimpleNamespace(max_position_embeddings=3)
    task = Perplexity.build(model, bare_tokenizer, path, limit=1)
    assert (task.length, task.tokens.tolist()) == (3, [5, 6, 7])
    with pytest.raises(CalibrationError, match="tokenizer"):
        Perplexity.build(model)
