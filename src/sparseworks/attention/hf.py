"""Attention of transformers models through their public interfaces: a function and a mask builder, registered for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.attention.attending import Attending
from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.cache.rotation import Angles, frequencies
from sparseworks.attention.heads import Clip
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.race import Race
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.published import METHODS, Published
from sparseworks.core.recipe import Recipe

OLDEST = "5.16"
"""transformers whose interfaces of attention, masks and caches have this form."""
_NUMBERS = count()
M = TypeVar("M", bound=Published)


@contextmanager
def attention(
    model: nn.Module,
    *methods: Published | Recipe | str,
    steps: int = 1,
    calls: int = 1,
    clip: Clip | None = None,
    prompt: int = 0,
    race: Race | None = None,
) -> Iterator[Attending]:
    """`with sw.attention(model, sw.method("quest")) as run: model.generate(...)`: the model attends by the method inside.

    Goes through the attention interface of transformers: every model that uses it is served, padding included. A recipe gives
    layers methods by the names of their attention modules; layers without one stay dense.

    Args:
        model: with `config` and modules that carry `layer_idx`.
        methods: methods of attention and of the cache, their names, or a recipe of such.
        steps: of a model that denoises. Its calls are then counted, and methods remember what they found until the next sample begins.
        calls: of the model in every step.
        clip: the frames that the tokens are.
        prompt: tokens that are given, the first ones; the others are denoised.
        race: `Race()`: every kind of call is timed once both ways, and stays dense where the method is slower. A cache that a method
            keeps is not raced.

    Raises:
        ModelError: the model has no layers of that kind, or does not use the interface.
        UnknownNameError, RecipeError: no such method, or one of another kind.
        BudgetError: no steps, or no calls.
    """
    if steps < 1 or calls < 1 or prompt < 0:
        raise BudgetError(
            f"There is at least one step and one call in each; got steps={steps}, calls={calls}, prompt={prompt}."
        )
    layers = attention_layers(model)
    run = Attending(
        _by_layer(layers, methods, AttentionMethod),
        len(layers),
        _by_layer(layers, methods, CacheMethod),
        first=next(iter(layers)),
        steps=steps,
        calls=calls,
        clip=clip,
        prompt=prompt,
        race=race,
    )
    frequency = frequencies(model)
    run.angles = None if frequency is None else Angles(frequency)
    hook = model.register_forward_pre_hook(run.give_cache, with_kwargs=True) if run.caches else None
    try:
        with through(model, run):
            yield run
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def through(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, every attention layer of the model calls `function`, which gets and gives what the interface of transformers does."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version(OLDEST):
        raise ModelError(
            f"Attention by a method needs transformers {OLDEST} or later, this is {transformers.__version__}: "
            "pip install -U transformers"
        )
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    name, before = f"sparseworks-{next(_NUMBERS)}", _implementation(model)
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, padding_only)
    try:
        _use(model, name)
        yield
    finally:
        _use(model, before)
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def _by_layer(layers: Mapping[int, str], methods: Sequence[Published | Recipe | str], kind: type[M]) -> dict[int, M]:
    """Layer -> the method of this kind that the last of `methods` gives it."""
    found: dict[int, M] = {}
    for one in methods:
        recipe = one if isinstance(one, Recipe) else Recipe.of(_of_attention(one))
        chosen = {layer: recipe.method_for(name, kind) for layer, name in layers.items()}
        found |= {layer: m for layer, m in chosen.items() if m is not None}
    return found


def _of_attention(method: Published | str) -> Recipe:
    found = METHODS.get(method) if isinstance(method, str) else method
    kind = CacheMethod if isinstance(found, CacheMethod) else AttentionMethod
    return Recipe.of(kind.of(found), kind=kind)


def attention_layers(model: nn.Module) -> dict[int, str]:
    """Index of each attention layer -> name of its module, in order.

    Raises:
        ModelError: there are none.
    """
    found = {int(m.layer_idx): n for n, m in model.named_modules() if isinstance(getattr(m, "layer_idx", None), int)}  # type: ignore[arg-type]
    if not found or not hasattr(model, "config"):
        raise ModelError(
            f"{type(model).__name__} has no attention layers that go by the attention interface of transformers (modules with "
            "`layer_idx`, a `config`); call `sparseworks.attention.sparse_attention` on the tensors instead."
        )
    return dict(sorted(found.items()))


def padding_only(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **others: Any
) -> Bool[Tensor, "batch keys"] | None:
    """The mask as this interface wants it: which keys are no padding, or None where all are real; the rest is known anyway.

    Raises:
        ModelError: a mask that is neither causal, nor bidirectional, nor a window (packed sequences, chunks).
    """
    rule, first = others.get("mask_function"), int(others.get("q_offset", 0))
    if rule is not None and not _plain(rule, batch_size, first, first + q_length):
        raise ModelError("Masks of packed sequences or chunks are not taken: give every sequence a row of its own.")
    if attention_mask is None or bool(attention_mask.all()):
        return None
    begin = int(others.get("kv_offset", 0))
    return attention_mask[:, begin : begin + kv_length].bool()


def _plain(rule: Callable[..., Tensor], batch: int, first: int, last: int) -> bool:
    """Whether a rule lets every query see the key before it, and all or none the key after it: no boundaries between sequences."""
    at = torch.arange(max(first, 1), last)[None]
    row, head = torch.arange(batch)[:, None], torch.zeros(1, 1, dtype=torch.long)
    if not at.numel():
        return True
    before = rule(row, head, at, at - 1).expand(batch, -1)
    after = rule(row, head, at[:, :-1], at[:, :-1] + 1).expand(batch, -1)
    return bool(before.all()) and bool((after == after[:1, :1]).all())


def _implementation(model: nn.Module) -> str:
    return getattr(model.config, "_attn_implementation", None) or "sdpa"  # type: ignore[union-attr]


def _use(model: nn.Module, name: str) -> None:
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)  # type: ignore[operator]
    else:
        model.config._attn_implementation = name  # type: ignore[union-attr]
