"""A masked diffusion language model over characters, and its block-wise decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from sparseworks.core.errors import BudgetError
from sparseworks.models.blocks import Block, BlockConfig, BlockModel, turns

MASK = 128
"""The token after the 128 ASCII characters."""


class MaskedLMConfig(BlockConfig):
    """Tokens are ASCII codes and `mask_token_id`; rotary positions."""

    model_type = "sparseworks_masked_lm"

    def __init__(
        self, vocab_size: int = MASK + 1, mask_token_id: int = MASK, max_position_embeddings: int = 512,
        rope_theta: float | None = 10000.0, **kwargs: Any,
    ):  # fmt: skip
        self.vocab_size, self.mask_token_id = vocab_size, mask_token_id
        self.max_position_embeddings = max_position_embeddings
        super().__init__(rope_theta=rope_theta, **kwargs)


class MaskedLM(BlockModel):
    """p(x_i | the unmasked) at every masked i at once (LLaDA, Nie et al., 2025, arXiv 2502.09992; no time is told)."""

    config_class = MaskedLMConfig

    def __init__(self, config: MaskedLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, 1e-6)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], position_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any,
    ) -> MaskedLMOutput:  # fmt: skip
        """Logits of every token.

        Args:
            input_ids: all tokens, or those of one block if the others' keys and values come from `past_key_values`.
            position_ids: where they stand; default: 0, 1, ...
            attention_mask: added to the scores or True where kept, broadcast to (batch, heads, queries, keys).
            past_key_values: `update(k, v, layer) -> (k, v)`: what is attended to instead of the tokens' own keys and values
                (keys after the rotary embedding; their order means nothing, since no mask is causal).
            kwargs: for the attention function.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        turn = turns(position_ids, self.config.head_dim, self.config.rope_theta)
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, turn=turn, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        return MaskedLMOutput(logits=self.head(self.norm(hidden)))


Call = Callable[[Int[Tensor, "batch tokens"], slice, int], Float[Tensor, "batch tokens vocab"]]
"""(all tokens, columns of the block, number of the step in the block) -> logits of the block's tokens."""


@torch.no_grad()
def denoise(
    model: MaskedLM, ids: Int[Tensor, "batch tokens"], *, start: int, block: int = 16, steps: int | None = None,
    call: Call | None = None,
) -> Int[Tensor, "batch tokens"]:  # fmt: skip
    """Fill the masked tokens block by block from the left; in each step those that the model is most certain of.

    A step of a block of m masked tokens unmasks ceil(m / steps left) of them: the most probable characters, certainty first.
    Deterministic (temperature 0). Source: semi-autoregressive decoding with low-confidence remasking, arXiv 2502.09992.

    Args:
        model: in evaluation mode.
        ids: tokens, masked ones as `MASK`.
        start: first column that may hold a mask; blocks begin there.
        block: columns of a block.
        steps: calls a block; default: one a masked token.
        call: what is called instead of the model on all tokens: caches and frozen masks live here.

    Raises:
        BudgetError: `start` beyond the tokens, or a block or number of steps below 1.
    """
    if not 0 <= start < ids.shape[1] or block < 1 or (steps is not None and steps < 1):
        raise BudgetError(
            f"Need 0 <= start < {ids.shape[1]}, block >= 1 and steps >= 1; got {start}, {block}, {steps}."
        )
    ids, mask = ids.clone(), model.config.mask_token_id
    call = call or (lambda tokens, at, step: model(tokens).logits[:, at])
    for left in range(start, ids.shape[1], block):
        at = slice(left, min(left + block, ids.shape[1]))
        most = steps or at.stop - at.start
        for step in range(most):
            open_ = ids[:, at] == mask
            if not open_.any():
                break
            logits = call(ids, at, step)
            logits[..., mask:] = -torch.inf
            sure, best = logits.softmax(-1).max(-1)
            share = -(-open_.sum(1) // (most - step))
            rank = sure.masked_fill(~open_, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            ids[:, at] = torch.where(open_ & (rank < share[:, None]), best, ids[:, at])
    return ids


def encode(texts: Sequence[str]) -> Int[Tensor, "texts longest"]:
    """ASCII codes, other characters as `?`, shorter texts padded with spaces at the right."""
    rows = [list(t.encode("ascii", "replace")) for t in texts]
    longest = max(map(len, rows), default=0)
    return torch.tensor([r + [32] * (longest - len(r)) for r in rows]).view(len(rows), longest)


def decode(ids: Int[Tensor, "texts length"]) -> list[str]:
    """The texts; a mask is shown as `_`."""
    return ["".join(chr(i) if i < MASK else "_" for i in row) for row in ids.tolist()]


def diffusion_loss(
    model: MaskedLM, ids: Int[Tensor, "rows tokens"], hidden: Float[Tensor, "rows tokens"], seed: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the masked tokens, where `hidden` is each token's probability of being masked."""
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < hidden
    logits = model(torch.where(drawn, model.config.mask_token_id, ids)).logits
    return F.cross_entropy(logits[drawn], ids[drawn])
