"""Static patterns as configuration of serving engines: what vLLM and SGLang take as overrides of a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparseworks.attention.hf import attention_layers
from sparseworks.attention.masks import Causal, Window
from sparseworks.attention.masks.base import Mask
from sparseworks.attention.method import AttentionMethod
from sparseworks.core.errors import RecipeError
from sparseworks.core.published import Published
from sparseworks.core.recipe import Recipe


def serving_overrides(model: nn.Module, method: Published | Recipe | str) -> dict[str, Any]:
    """`{"sliding_window": n, "layer_types": [...]}`: windows by layer, for `vllm serve --hf-overrides` or SGLang's `--json-model-override-args`.

    Layers without a method stay `full_attention`. The engines know one window for all layers that have one, the same in all heads, without
    sink tokens; what they cannot say is refused rather than changed.

    Raises:
        RecipeError: a method that looks at its input, another pattern than a window, or windows of several sizes.
        ModelError: a model without layers of attention.
    """
    layers = attention_layers(model)
    recipe = method if isinstance(method, Recipe) else Recipe.of(AttentionMethod.of(method), kind=AttentionMethod)
    windows = {i: _window(recipe.method_for(name, AttentionMethod), name) for i, name in layers.items()}
    sizes = {n for n in windows.values() if n is not None}
    if len(sizes) > 1:
        raise RecipeError(
            f"An engine has one window for all layers that have one; the recipe asks for {sorted(sizes)}."
        )
    if not sizes:
        return {"layer_types": ["full_attention"] * len(layers)}
    kinds = ["full_attention" if n is None else "sliding_attention" for n in windows.values()]
    return {"sliding_window": sizes.pop(), "layer_types": kinds}


def vertical_slash_overrides(
    counts: Sequence[Sequence[tuple[int, int]]], *, threshold: int = 32768, last: int = 64
) -> dict[str, Any]:
    """`counts[layer][head] = (columns, diagonals)` as the `dual_chunk_attention_config` by which vLLM's dual-chunk backend prunes prefill.

    The engine picks that many columns and diagonals itself, from the last queries of the prompt (MInference: Jiang et al. 2024,
    arXiv 2407.02490). Only models with dual chunk attention read it.

    Args:
        threshold: prompts up to this many tokens stay dense.
        last: queries from which columns and diagonals are chosen.

    Raises:
        RecipeError: no layers, layers with different numbers of heads, or counts below 1.
    """
    if not counts or len({len(heads) for heads in counts}) != 1 or not counts[0]:
        raise RecipeError("Counts are given for every head of every layer, equally many heads in each.")
    if min(n for heads in counts for pair in heads for n in pair) < 1:
        raise RecipeError("Every head keeps at least one column and one diagonal.")
    layers = [{str(h): ["vertical_and_slash", v, s, 1.0] for h, (v, s) in enumerate(heads)} for heads in counts]
    config: Mapping[str, Any] = {
        "sparse_attention_enabled": True,
        "sparse_attention_config": layers,
        "sparse_attention_threshold": threshold,
        "sparse_attention_last_q": last,
    }
    return {"dual_chunk_attention_config": dict(config)}


def _window(method: AttentionMethod | None, layer: str) -> int | None:
    if method is None:
        return None
    if method.score is not None or method.always is None:
        raise RecipeError(f"Method {method.name!r} of {layer} looks at its input; engines take static windows only.")
    window = _only_window(method.always)
    if window is None:
        raise RecipeError(f"Engines know windows without anything beside them; {layer} keeps {method.always}.")
    return window


def _only_window(mask: Mask) -> int | None:
    """n of `Window(n)`, also where causality is named beside it."""
    if isinstance(mask, Window):
        return mask.n
    rest = [part for part in mask.parts if not isinstance(part, Causal)]
    return _only_window(rest[0]) if len(rest) == 1 and len(mask.parts) == 2 and rest[0] is not mask else None
