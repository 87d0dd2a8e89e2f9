"""The recall model answers its tasks, at once and turn by turn, and a window does not."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparseworks as sw
from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.sequences import Recall, mqar, suite, turn_by_turn, worst


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/recall-lm")


def test_the_model_answers_every_task_of_the_suite(model):
    found = {name: task(model) for name, task in suite(512, rows=24, seed=11).items()}
    assert all(r.value >= 0.95 for r in found.values()), found
    assert worst(found)[1] == min(r.value for r in found.values())
    assert len(found["mqar"].details["turns"]) == 4 and found["mqar"].details["rows"] == 24


def test_turns_on_a_full_cache_equal_one_pass(model):
    x = mqar(8, 192, pairs=12, turns=4, seed=3)
    once, seen = Recall(x)(model), []
    for early in (False, True):
        turns = turn_by_turn(model, x, question_in_prompt=early, before=lambda turn, cache: seen.append(turn))
        assert turns.value == once.value and turns.details == once.details
    assert seen == [0, 1, 2, 3] * 2


def test_a_cache_that_forgets_the_context_fails(model):
    """Between prefill and the first question all but the last 16 tokens are dropped."""
    x = mqar(8, 192, pairs=12, turns=4, seed=3)

    def forget(turn, cache):
        if turn == 0:
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, -16:], layer.values[:, :, -16:]

    assert turn_by_turn(model, x).value > 0.95
    assert turn_by_turn(model, x, before=forget).value < 0.4


def test_the_answers_are_in_the_evidence(model):
    """Without the tokens that hold the answer the model guesses; without as many others it does not."""
    x = mqar(16, 192, pairs=12, turns=4, seed=5)
    blind, other = x.ids.clone(), x.ids.clone()
    blind.scatter_(1, x.evidence.flatten(1), 80)
    rest = (torch.arange(16)[:, None], (x.ids[:, : x.context] >= 80).float().argsort(dim=1, descending=True)[:, :8])
    other[rest] = 81
    found = [Recall(type(x)(ids, x.questions, x.evidence))(model).value for ids in (x.ids, blind, other)]
    assert found[0] > 0.95 and found[1] < 0.2 and found[2] > 0.95


def test_a_foreign_vocabulary_is_refused():
    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(CalibrationError, match="recall-lm"):
        Recall(mqar(2, 64, pairs=4))(small)
    with pytest.raises(CalibrationError):
        worst({})
    assert Recall.build(
        small.__class__(
            LlamaConfig(
                vocab_size=96,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=128,
            )
        ),
        limit=3,
    ).examples.ids.shape == (3, 128)
