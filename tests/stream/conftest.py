"""Tiny random models of many kinds, and batches with padding for them; built from configurations, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LM = {**_SHAPE, **_TOKENS}
_NO_WORDS = {k: v for k, v in _SHAPE.items() if k not in ("vocab_size", "max_position_embeddings")}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _t(name: str, config: str, **settings) -> nn.Module:
    return getattr(transformers, name)(getattr(transformers, config)(**settings))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: _t("LlamaForCausalLM", "LlamaConfig", **_LM, num_key_value_heads=2),
    "tied": lambda: _t("LlamaForCausalLM", "LlamaConfig", **_LM, tie_word_embeddings=True),
    "gemma": lambda: _t(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        **_LM,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: _t(
        "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=3, n_head=4, vocab_size=64, n_positions=64, **_TOKENS
    ),
    "bert": lambda: _t("BertModel", "BertConfig", **_SHAPE),
    "opt": lambda: _t(
        "OPTForCausalLM",
        "OPTConfig",
        **{k: v for k, v in _LM.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "phi3": lambda: _t("Phi3ForCausalLM", "Phi3Config", **_LM, num_key_value_heads=2),
    "mixtral": lambda: _t("MixtralForCausalLM", "MixtralConfig", **_LM, **_EXPERTS),
    "gptoss": lambda: _t(
        "GptOssForCausalLM", "GptOssConfig", **_LM, **_EXPERTS, head_dim=8, rope_parameters=_ROPE, sliding_window=8
    ),
    "t5": lambda: _t(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=64,
        decoder_start_token_id=0,
    ),
    "vit": lambda: _t("ViTModel", "ViTConfig", **_NO_WORDS, image_size=16, patch_size=4),
    "resnet": lambda: _t(
        "ResNetModel", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    ),
}


def make_batch(name: str, *, rows: int = 3, length: int = 7, seed: int = 0, padded: bool = True) -> dict[str, Tensor]:
    """Random input for the model `name`; with padding at the end of all rows but the first."""
    g = torch.Generator().manual_seed(seed)
    if name in ("vit", "resnet"):
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=g)}
    ids = torch.randint(3, 64, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, rows):
            mask[row, length - 1 - row :] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if name == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 64, (rows, length - 2), generator=g)
    return batch


@pytest.fixture
def tiny() -> Callable[[str], nn.Module]:
    """`tiny(name)`: a random model in evaluation mode."""

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        return MODELS[name]().eval()

    return build


@pytest.fixture
def batch_for() -> Callable[..., dict[str, Tensor]]:
    """`batch_for(name, rows=, length=, seed=, padded=)`."""
    return make_batch
