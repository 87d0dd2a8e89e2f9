"""Influence of attention, measured on a model: one pass and its gradient a batch, weights of every layer kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.hf import through
from sparseworks.attention.spans import influence


def measure_influence(
    model: nn.Module, batches: Iterable[Int[Tensor, "rows tokens"]]
) -> dict[int, Float[Tensor, "heads tokens tokens"]]:
    """Layer -> |dL_ij| of every head, the mean over sequences, with the loss of the next token (Fu et al. 2024, arXiv 2406.14909).

    Batches are of one length; whole maps are held, so lengths are those of a profile.
    """
    total: dict[int, Tensor] = {}
    rows = 0
    for ids in batches:
        seen: dict[int, Tensor] = {}
        with through(model, _keeping(seen)), torch.enable_grad():
            loss = model(input_ids=ids, labels=ids).loss * len(ids)  # type: ignore[operator]
            gradients = torch.autograd.grad(loss, list(seen.values()))
        for (layer, weights), gradient in zip(seen.items(), gradients, strict=True):
            found = influence(weights.detach(), gradient).abs().nan_to_num(posinf=0.0).sum(0)
            total[layer] = total[layer] + found if layer in total else found
        rows += len(ids)
    return {layer: found / rows for layer, found in total.items()}


def _keeping(seen: dict[int, Tensor]) -> Any:
    """Attention with its whole map, which is put into `seen` by layer."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None, **others: Any) -> tuple[Tensor, None]:  # fmt: skip
        del attention_mask, others
        heads = Heads(query, key, value, scale=scaling)
        weights = heads.scores().softmax(-1)
        if not weights.requires_grad:
            weights.requires_grad_()
        seen[int(module.layer_idx)] = weights  # type: ignore[arg-type]
        return (weights @ heads.shared(value.to(weights.dtype))).to(query.dtype).transpose(1, 2).contiguous(), None

    return attend
