"""A small language model of Markov text, trained in a second."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparseworks.codes.autoencoders.splice import next_token_loss

RATE = 4e-3


@pytest.fixture(scope="session")
def markov_model():
    """(texts of n rows, tokens, layers, steps, share of the steps with a falling rate) -> a model, in eval mode."""

    def made(draw, tokens, layers, steps, falling=0.0):
        config = LlamaConfig(
            vocab_size=tokens,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config)
        adam = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        for i in range(steps):
            if falling:
                adam.param_groups[0]["lr"] = RATE * min(1, (steps - i) / (falling * steps))
            ids = draw(48)
            adam.zero_grad()
            next_token_loss(model(ids), ids).mean().backward()
            adam.step()
        return model.eval()

    return made
