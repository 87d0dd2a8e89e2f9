"""Transformer blocks without a causal mask, whose attention is whatever function the configuration names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class BlockConfig(PretrainedConfig):
    """Sizes that all models of bidirectional blocks share.

    Args:
        hidden_size: width of the model.
        intermediate_size: width inside the feed-forward networks.
        num_hidden_layers: blocks.
        num_attention_heads: heads; as many keys and values.
        rope_theta: base of the rotary embedding; None: none.
    """

    model_type = "sparseworks_blocks"

    def __init__(
        self, hidden_size: int = 128, intermediate_size: int = 256, num_hidden_layers: int = 4,
        num_attention_heads: int = 4, rope_theta: float | None = None, **kwargs: Any,
    ):  # fmt: skip
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.head_dim = num_attention_heads, hidden_size // num_attention_heads
        self.rope_theta = rope_theta
        super().__init__(**kwargs)


class BlockModel(PreTrainedModel):
    """What loads, saves, and takes another attention by `set_attn_implementation` or `config._attn_implementation`."""

    config_class = BlockConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class Attention(nn.Module):
    """Multi-head attention over all tokens, through the interface of transformers:

    `fn(module, q, k, v, attention_mask, scaling=..., dropout=0.0) -> (out (b, tokens, heads, d), weights or None)`.
    """

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: BlockConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(
        self, hidden: Float[Tensor, "batch tokens width"], turn: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any,
    ) -> Float[Tensor, "batch tokens width"]:  # fmt: skip
        """Keys and values pass through `past_key_values.update(k, v, layer_idx)` if it is given; that returns what is attended to."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if turn is not None:
            q, k = rotated(q, *turn), rotated(k, *turn)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = attention_function(self.config)
        out, _ = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o_proj(out.reshape(*hidden.shape[:-1], -1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + down(gelu(up(norm(x))))."""

    def __init__(self, config: BlockConfig, layer_idx: int):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.self_attn = Attention(config, layer_idx)
        self.up_proj, self.down_proj = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(
        self, hidden: Float[Tensor, "batch tokens width"], **kwargs: Any
    ) -> Float[Tensor, "batch tokens width"]:
        """`kwargs` go to the attention."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), **kwargs)
        return hidden + self.down_proj(F.gelu(self.up_proj(self.post_attention_layernorm(hidden))))


def eager(
    module: nn.Module, query: Float[Tensor, "b heads queries d"], key: Float[Tensor, "b heads keys d"],
    value: Float[Tensor, "b heads keys d"], attention_mask: Tensor | None, scaling: float, **kwargs: Any,
) -> tuple[Float[Tensor, "b queries heads d"], Float[Tensor, "b heads queries keys"]]:  # fmt: skip
    """softmax(q k^T scaling + mask) v, with the weights; a boolean mask is True where a pair is kept."""
    del module, kwargs
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        is_bool = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, -torch.inf) if is_bool else scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


def attention_function(config: PretrainedConfig) -> Any:
    """The function registered under `config._attn_implementation` in transformers, looked up at every call."""
    name = config._attn_implementation
    return eager if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]


def turns(
    positions: Int[Tensor, "batch tokens"], width: int, theta: float
) -> tuple[Float[Tensor, "batch 1 tokens half"], Float[Tensor, "batch 1 tokens half"]]:
    """Cosines and sines of a rotary embedding: angle position * theta^(-2c / width) for channel pair c."""
    rates = theta ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[:, None, :, None] * rates
    return angles.cos(), angles.sin()


def rotated(
    x: Float[Tensor, "batch heads tokens d"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "batch heads tokens d"]:
    """Channels c and c + d/2 turned by their angle."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
