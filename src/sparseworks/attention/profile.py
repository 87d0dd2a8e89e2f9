"""What attention does, measured on a model: the influence of its weights, and the guards under which its heads err little."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.attention.guards import Guard, choose_guards, guards, judge, with_guards
from sparseworks.attention.heads import Heads
from sparseworks.attention.hf import attention, attention_layers, through
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.spans import influence
from sparseworks.core.errors import BudgetError
from sparseworks.core.recipe import Recipe, Rule


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


def tune_guards(
    model: nn.Module,
    batches: Iterable[Int[Tensor, "rows tokens"]],
    method: AttentionMethod,
    *,
    bound: float = 0.07,
    grid: Sequence[Guard] | None = None,
) -> Recipe:
    """The method with a guard for every head of every layer, each the cheapest within the bound: see `choose_guards`.

    Layers see what dense attention gives them; nothing is held of a call but errors and densities.

    Raises:
        BudgetError: no batches.
        RecipeError: a method without a guard.
    """
    grid, seen = guards() if grid is None else grid, defaultdict(list)
    with attention(model) as run, torch.no_grad():
        run.watch = lambda heads, _: seen[heads.layer].append(judge(heads, method, grid))
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    if not seen:
        raise BudgetError("Guards are chosen on at least one batch.")
    names = attention_layers(model)
    return Recipe(
        tuple(Rule((names[i],), with_guards(method, choose_guards(j, grid, bound))) for i, j in sorted(seen.items()))
    )


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
