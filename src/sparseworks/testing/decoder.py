"""A decoder of two small blocks in LLaMA's form, in plain torch, for suites that must not need transformers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.Module):
    """w x / rms(x)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """w x / sqrt(mean x^2)."""
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class Attention(nn.Module):
    """Causal attention with grouped queries, without positions."""

    def __init__(self, width: int, heads: int, groups: int):
        super().__init__()
        self.head_dim, self.num_heads = width // heads, heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """softmax(q k^T) v."""
        q, k, v = (
            p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W_down (act(W_gate x) * W_up x)."""

    def __init__(self, width: int, hidden: int, relu: bool = False):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = nn.ReLU() if relu else nn.SiLU()

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """The gated product."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DecoderBlock(nn.Module):
    """Attention and feed-forward layer, each behind a norm and beside the residual."""

    def __init__(self, width: int, hidden: int, heads: int, groups: int, relu: bool = False):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(width), Attention(width, heads, groups)
        self.post_attention_layernorm, self.mlp = Norm(width), FeedForward(width, hidden, relu)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """x + attention(norm(x)), then the same with the feed-forward layer."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks, norm, head: tokens -> logits."""

    def __init__(
        self, vocabulary: int = 48, width: int = 32, hidden: int = 64, blocks: int = 2, heads: int = 4, groups: int = 2,
        relu: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderBlock(width, hidden, heads, groups, relu) for _ in range(blocks))
        self.norm, self.lm_head = Norm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of the next token."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
