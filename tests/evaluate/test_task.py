from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import NonFiniteError, UnknownNameError
from sparseworks.evaluate import TASKS, Result, Task, task_for
from sparseworks.evaluate.task import device_of


def test_tasks_are_found_by_name():
    assert set(TASKS.names()) == {"perplexity", "retrieval", "similarity", "classification"}
    for name, kind in TASKS.items():
        assert issubclass(kind, Task)
        assert kind.name == name
    assert not TASKS.get("perplexity").higher_is_better
    with pytest.raises(UnknownNameError, match="perplexity"):
        TASKS.get("perplexty")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_is_finite(value: float):
    with pytest.raises(NonFiniteError, match="accuracy"):
        Result("accuracy", value)


def test_the_task_follows_from_the_kind_of_model(tokenizer):
    from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

    small = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    llama = LlamaForCausalLM(LlamaConfig(**small, bos_token_id=0, eos_token_id=1))
    assert task_for(llama, tokenizer) == "perplexity"
    assert task_for(BertForSequenceClassification(BertConfig(**small)), tokenizer) == "classification"
    assert task_for(BertModel(BertConfig(**small)), tokenizer) == "retrieval"
    assert task_for(BertModel(BertConfig(**small))) == "similarity"
    assert task_for(nn.Linear(2, 2), tokenizer) == "similarity"


def test_device_of_modules_without_parameters():
    assert device_of(nn.Identity()) == device_of(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")
