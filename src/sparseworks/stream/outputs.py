"""What a model returned: its last hidden state, its logits, and the mean over tokens, from Hugging Face outputs and plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.stream.tree import first_tensor


def last_hidden(output: Any) -> Tensor:
    """`output.last_hidden_state`, or the first floating tensor in the output.

    Raises:
        ModelError: the output holds no floating tensor.
    """
    return _named(output, "last_hidden_state")


def logits_of(output: Any) -> Tensor:
    """`output.logits`, or the first floating tensor in the output.

    Raises:
        ModelError: the output holds no floating tensor.
    """
    return _named(output, "logits")


def mean_pooled(
    hidden: Float[Tensor, "batch tokens width"] | Float[Tensor, "batch width"],
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch width"]:
    """sum_t m_t h_t / sum_t m_t: the mean hidden state over the tokens that count, in float32; a matrix is already pooled.

    Raises:
        ShapeError: neither a matrix nor batch x tokens x width, or the mask is not batch x tokens.
    """
    if hidden.dim() == 2:
        return hidden.float()
    if hidden.dim() != 3:
        raise ShapeError(f"Pooling needs batch x tokens x width, got {tuple(hidden.shape)}.")
    if mask is None:
        return hidden.float().mean(dim=1)
    if mask.shape != hidden.shape[:2]:
        raise ShapeError(f"A mask of {tuple(mask.shape)} does not fit hidden states of {tuple(hidden.shape)}.")
    weights = mask.to(hidden.device, torch.float32)
    return torch.einsum("bt,btw->bw", weights, hidden.float()) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def _named(output: Any, key: str) -> Tensor:
    value = output.get(key) if isinstance(output, dict) else getattr(output, key, None)
    value = first_tensor(output) if value is None else value
    if value is None:
        raise ModelError(f"No floating tensor found in an output of type {type(output).__name__}.")
    return value
